"""Top-k that says how many of its choices could have been prefetched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices
from rayemu.routing.predicting import Transitions, compared, predict
from rayemu.routing.router import Context, Router
from rayemu.routing.softmax_topk import SoftmaxTopK


@dataclass
class Seen:
    """What is kept of one layer: the transitions so far, and the last row's choices [K]."""

    model: Transitions
    last: npt.NDArray[np.int32]


@dataclass(frozen=True)
class PredictiveTopK(Router):
    """softmax_topk's choices and weights, to the bit, and a count of those that its last rows foretold.

    Rows are taken as the tokens of one sequence: before each, `prefetch` experts (0: `top_k`) are predicted
    from the choices of the row before, by the transitions of all batches so far, and only those in which the
    confidence is at least `confidence` (speculation). Counted, in experts: `prefetch_hits`,
    `prefetch_misses` (choices that were not predicted), `prefetch_wasted` (predictions that were not chosen:
    so many experts' bytes are fetched for nothing, each row fetching for itself).
    Nothing is fetched and no choice changed: the counts say what a fast tier would gain; `rayemu tiers`
    prices one. Transition matrices between experts: Eliseev and Mazur 2023 (arXiv 2312.17238) predict with
    the next layer's gate instead.
    It takes twice softmax_topk's time at T=4096, D=512, E=64, K=8, where each row predicts 8 experts.
    """

    top_k: int
    prefetch: int = 0
    confidence: float = 0.0
    renormalise: bool = True
    scaling: float = 1.0
    scope: ClassVar[str] = "batch"

    def __post_init__(self) -> None:
        if self.prefetch < 0:
            raise ValueError(f"prefetch: {self.prefetch} is not allowed; allowed: 0 (top_k) and above")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence: {self.confidence} is not allowed; allowed: 0 to 1")

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        if self.prefetch > experts:
            raise ValueError(f"routing.prefetch is {self.prefetch}; allowed: 0 to {experts}, the experts")

    def new_state(self, experts: int) -> Seen:
        """Nothing seen yet."""
        return Seen(Transitions(experts), np.full(self.top_k, -1, np.int32))

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K] by descending logit, ties to the lower expert."""
        seen = self.new_state(scores.shape[1]) if context.state is None else context.state
        routing = SoftmaxTopK(self.top_k, self.renormalise, self.scaling).choose(scores, gate, context)
        chosen = routing.experts  # [T, K]
        if not len(chosen):
            return routing
        history = np.concatenate([seen.last[None], chosen[:-1]])[:, None]  # [T, 1, K]
        likely = predict(seen.model, history, self.prefetch or self.top_k, self.confidence)
        found = compared(likely.experts, chosen)
        context.count("prefetch_hits", found.hits)
        context.count("prefetch_misses", found.used - found.hits)
        context.count("prefetch_wasted", found.fetched - found.hits)
        seen.model.learn(history, chosen)
        seen.last = chosen[-1].copy()
        return routing
