"""Softmax top-k with a capacity: an expert takes so many rows of a batch and no more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.capacity import capacity, check_capacity_factor, softmax, weights_of
from rayemu.routing.gate import Gate, Routing, check_choices, top_k
from rayemu.routing.router import Context, Router
from rayemu.routing.softmax_topk import SoftmaxTopK

DROPLESS = "dropless"


@dataclass(frozen=True)
class CapacityTopK(Router):
    """Softmax top-k of which an expert keeps ceil(capacity_factor * T * top_k / E) rows of a batch.

    It keeps those of the highest probability, or with `by: position` the earliest (ties: the earlier); the
    others overflow. With `overflow: drop` they are lost (-1). With `next` each such token applies, round
    after round, to its best expert with room that it does not have, for one choice a round; experts take
    applicants in the same order, and nobody who has a place loses it. What finds no room is lost too.
    Only chosen rows compete for places, so a low score is kept before a place stays empty.

    `capacity_factor: dropless` (or infinity) is `softmax_topk`. With a `target_overflow` the factor adapts
    from batch to batch (kept in the layer's state): when more than that share of the choices overflowed it
    is multiplied by 1 + `step`, when less than half of it did it is divided by it, within min(1,
    capacity_factor) and E / top_k, where nothing can overflow.

    Weights sum to 1 over the choices kept with `renormalise`, otherwise they are probabilities, so that a
    dropped choice's share is missing; times `scaling`. Counted: `overflowed_choices`, `dropped_choices`,
    `tokens_without_expert`, and `padded_rows`, empty places that a kernel of fixed capacity would compute.
    While nothing overflows the choice costs 1.2 times softmax_topk's at T=4096, E=64, K=8. With a quarter
    of the choices overflowing it is 1.6 by position; 2.8 by probability, which takes the whole softmax and a
    sort for each full expert; and 5.2 with `next`, whose rounds come on top.
    Lepikhin et al. 2020 (GShard), arXiv 2006.16668; Fedus et al. 2021 (Switch), arXiv 2101.03961; the two
    orders are Megatron-Core's token drop policies `probs` and `position`.
    """

    top_k: int
    capacity_factor: float | Literal["dropless"] = 1.25
    overflow: Literal["drop", "next"] = "drop"
    by: Literal["probability", "position"] = "probability"
    renormalise: bool = True
    scaling: float = 1.0
    target_overflow: float | None = None
    step: float = 0.1
    scope: ClassVar[str] = "batch"

    @property
    def _dropless(self) -> bool:
        return self.capacity_factor in (DROPLESS, math.inf)

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        if not self._dropless:
            check_capacity_factor(self.capacity_factor, f" or {DROPLESS}")
        for name, allowed in (("overflow", ("drop", "next")), ("by", ("probability", "position"))):
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise ValueError(f"routing.{name} is {value!r}; allowed: one of {', '.join(allowed)}")
        target = self.target_overflow
        if target is not None and (self._dropless or not 0 < target < 1):
            allows = f"none with capacity_factor {DROPLESS}" if self._dropless else "above 0, below 1"
            raise ValueError(f"routing.target_overflow is {target!r}; allowed: {allows}")
        if not 0 < self.step <= 1:
            raise ValueError(f"routing.step is {self.step!r}; allowed: above 0, up to 1")

    def new_state(self, experts: int) -> Any:
        """The present capacity factor where it adapts: {"capacity_factor": float}."""
        return None if self.target_overflow is None else {"capacity_factor": float(self.capacity_factor)}

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, top_k], best first, then -1."""
        if self._dropless:
            return SoftmaxTopK(self.top_k, self.renormalise, self.scaling).choose(scores, gate, context)
        tokens, experts = scores.shape
        state = context.state or {"capacity_factor": self.capacity_factor}
        places = capacity(state["capacity_factor"], tokens, self.top_k, experts)
        best, picked = top_k(scores, self.top_k)  # [T, K]
        np.put_along_axis(scores, best, picked, axis=1)  # which top_k took out
        chosen = best.astype(np.int32)
        room = places - np.bincount(chosen.ravel(), minlength=experts)  # [E]
        overflowed = int(-room[room < 0].sum())
        weighed = not self.renormalise or (overflowed and self.by == "probability")
        probabilities = softmax(scores) if weighed else None  # [T, E]
        if overflowed:
            worth = None if probabilities is None else np.take_along_axis(probabilities, best, axis=1).ravel()
            kept = self._granted(chosen.ravel(), worth, np.full(experts, places)).reshape(chosen.shape)
            chosen[~kept], picked[~kept] = -1, -np.inf
            order = (~kept).argsort(axis=1, kind="stable")
            chosen = np.take_along_axis(chosen, order, axis=1)
            picked = np.take_along_axis(picked, order, axis=1)
            if self.overflow == "next":
                self._place(chosen, picked, scores, probabilities, np.maximum(room, 0))
        dropped = int(np.count_nonzero(chosen < 0))
        context.count("overflowed_choices", overflowed)
        context.count("dropped_choices", dropped)
        context.count("tokens_without_expert", int(np.count_nonzero(chosen[:, 0] < 0)))
        context.count("padded_rows", experts * places - (chosen.size - dropped))
        if self.target_overflow is not None and tokens:
            state["capacity_factor"] = self._adapted(
                state["capacity_factor"], overflowed / chosen.size, experts
            )
        return Routing(
            chosen, weights_of(chosen, picked, None if self.renormalise else probabilities, self.scaling)
        )

    def _granted(
        self, experts: npt.NDArray[Any], worth: F32 | None, room: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Which of n pairs, in the order of tokens, their `experts` [n] have `room` [E] for, [n].

        `worth` [n] are their probabilities.
        """
        granted = np.ones(len(experts), bool)
        loads = np.bincount(experts, minlength=len(room))
        pairs = experts.astype(np.int16 if len(room) < 2**15 else np.int32).argsort(kind="stable")
        ends = loads.cumsum()
        for expert in np.flatnonzero(loads > room).tolist():
            mine = pairs[ends[expert] - loads[expert] : ends[expert]]
            if self.by == "probability" and worth is not None:
                # NaN first, for it is to show in the weights
                mine = mine[(-np.nan_to_num(worth[mine], nan=np.inf)).argsort(kind="stable")]
            granted[mine[room[expert] :]] = False
        return granted

    def _place(
        self,
        chosen: npt.NDArray[np.int32],
        picked: F32,
        logits: F32,
        probabilities: F32 | None,
        room: npt.NDArray[np.int64],
    ) -> None:
        """Fill the -1 of `chosen` and the -inf of `picked` [T, K] by what has `room` [E], in place.

        What is open to a token only shrinks, so that its choices come best first.
        """
        counts = np.count_nonzero(chosen >= 0, axis=1)  # [T]
        short = np.flatnonzero(counts < self.top_k)  # [n]
        # an open expert at -inf comes before one that is not open
        worth = np.maximum(logits[short], np.finfo(np.float32).min)  # [n, E]
        row, choice = np.nonzero(chosen[short] >= 0)
        worth[row, chosen[short][row, choice]] = -np.inf
        while True:
            worth[:, room <= 0] = -np.inf
            best = worth.argmax(axis=1)  # [n]
            applies = (worth[np.arange(len(short)), best] != -np.inf) & (counts[short] < self.top_k)
            if not applies.any():
                return
            row, experts = np.flatnonzero(applies), best[applies]
            odds = None if probabilities is None else probabilities[short[row], experts]
            granted = self._granted(experts, odds, room)
            row, experts = row[granted], experts[granted]
            worth[row, experts] = -np.inf
            tokens = short[row]
            chosen[tokens, counts[tokens]] = experts
            picked[tokens, counts[tokens]] = logits[tokens, experts]
            counts[tokens] += 1
            room = room - np.bincount(experts, minlength=len(room))

    def _adapted(self, factor: float, share: float, experts: int) -> float:
        target = self.target_overflow or 0.0
        if share > target:
            factor *= 1 + self.step
        elif share < target / 2:
            factor /= 1 + self.step
        lowest, highest = min(1.0, float(self.capacity_factor)), experts / self.top_k
        return max(lowest, min(factor, highest))
