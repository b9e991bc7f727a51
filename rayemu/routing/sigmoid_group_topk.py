"""Sigmoid router with selection bias and groups: the `noaux_tc` gate of DeepSeek-V3."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, best_groups, check_choices, close_groups, top_k
from rayemu.routing.router import Context, Router


@dataclass(frozen=True)
class SigmoidGroupTopK(Router):
    """Top-k of sigmoid score plus the gate's selection bias, among the experts of the best groups.

    A group is as good as the sum of its two best biased scores. Weights are the scores without bias, with
    `renormalise` divided by their sum over the K choices, times `scaling`.
    DeepSeek-AI 2024 (V3), equations 13-16 and section 2.1.2, node-limited routing.
    Without bias and groups experts are chosen by their logits (Llama 4), whose order is that of the scores
    without the ties of scores that round to 1.
    """

    top_k: int
    groups: int = 1
    top_groups: int = 1
    renormalise: bool = True
    scaling: float = 1.0

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        limited = self.top_groups < self.groups
        check_choices(self.top_k, experts, self.groups, self.top_groups, least=2 if limited else 1)

    @property
    def group_limit(self) -> tuple[int, int] | None:
        """How many groups there are, and how many of them are open to a token; None if all are."""
        return (self.groups, self.top_groups) if self.top_groups < self.groups else None

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K] by descending biased score, ties to the lower group and expert."""
        return self._choose(scores, gate, None)

    def open_groups(self, scores: F32, gate: Gate, context: Context) -> npt.NDArray[np.intp]:
        """Logits [T, E] (overwritten) -> the groups [T, top_groups] with the best two experts, best first."""
        return self._best_groups(_biased(_sigmoid(scores), gate))

    def choose_within(
        self, scores: F32, gate: Gate, context: Context, groups: npt.NDArray[np.integer]
    ) -> Routing:
        """Logits [T, E] -> choices [T, K] among the experts of `groups` [T, g]."""
        return self._choose(scores, gate, groups)

    def _best_groups(self, biased: F32) -> npt.NDArray[np.intp]:
        """Biased scores [T, E] -> [T, top_groups]."""
        rows, experts = biased.shape
        grouped = biased.reshape(rows * self.groups, experts // self.groups).copy()  # [T*G, E/G]
        _, two = top_k(grouped, 2)  # [T*G, 2]
        return best_groups((two[:, 0] + two[:, 1]).reshape(rows, self.groups), self.top_groups)

    def _choose(self, scores: F32, gate: Gate, groups: npt.NDArray[np.integer] | None) -> Routing:
        """Of `groups` [T, g] if they are known, else of those that are to be open."""
        limited = self.group_limit is not None
        by_logit = None if limited or gate.selection_bias is not None else scores.copy()
        scores = _sigmoid(scores)  # [T, E]
        biased = _biased(scores, gate) if by_logit is None else by_logit  # [T, E]
        closed = None
        if limited:
            closed = close_groups(
                biased, self._best_groups(biased) if groups is None else groups, self.groups
            )
        chosen, _ = top_k(biased, self.top_k, closed)  # [T, K]
        weights = np.take_along_axis(scores, chosen, axis=1)
        if self.renormalise:
            weights /= np.add.reduce(weights, axis=1, keepdims=True) + np.float32(1e-20)
        weights *= np.float32(self.scaling)
        return Routing(chosen.astype(np.int32), weights)


def _sigmoid(logits: F32) -> F32:
    """1 / (1 + exp(-logit)), in place."""
    np.negative(logits, out=logits)
    with np.errstate(over="ignore"):  # exp = inf gives score 0, which is right
        np.exp(logits, out=logits)
    logits += 1.0
    return np.reciprocal(logits, out=logits)


def _biased(scores: F32, gate: Gate) -> F32:
    """A copy of scores [T, E], with the gate's selection bias if it has one."""
    return scores.copy() if gate.selection_bias is None else scores + gate.selection_bias
