"""Sigmoid router with selection bias and groups: the `noaux_tc` gate of DeepSeek-V3."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices, close_groups, top_k
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

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K] by descending biased score, ties to the lower group and expert."""
        # [T, E], turned into 1 / (1 + exp(-logit)) in place
        limited = self.top_groups < self.groups
        by_logit = None if limited or gate.selection_bias is not None else scores.copy()
        np.negative(scores, out=scores)
        with np.errstate(over="ignore"):  # exp = inf gives score 0, which is right
            np.exp(scores, out=scores)
        scores += 1.0
        np.reciprocal(scores, out=scores)
        if by_logit is not None:
            biased = by_logit
        else:  # [T, E]
            biased = scores.copy() if gate.selection_bias is None else scores + gate.selection_bias
        closed = None
        if limited:
            rows, experts = scores.shape
            grouped = biased.reshape(rows * self.groups, experts // self.groups).copy()  # [T*G, E/G]
            _, two = top_k(grouped, 2)  # [T*G, 2]
            worth = (two[:, 0] + two[:, 1]).reshape(rows, self.groups)  # [T, G]
            closed = close_groups(biased, worth, self.top_groups)
        chosen, _ = top_k(biased, self.top_k, closed)  # [T, K]
        weights = np.take_along_axis(scores, chosen, axis=1)
        if self.renormalise:
            weights /= np.add.reduce(weights, axis=1, keepdims=True) + np.float32(1e-20)
        weights *= np.float32(self.scaling)
        return Routing(chosen.astype(np.int32), weights)
