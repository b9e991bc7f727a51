"""Top-p router: as many experts as it takes to be sure enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices, softmax_powers, top_k
from rayemu.routing.router import Context, Router


@dataclass(frozen=True)
class TopP(Router):
    """The fewest experts whose probabilities sum to `p`: at least `least` of them, at most `top_k`.

    With probabilities in descending order the n-th is chosen when those before it sum to less than `p`.
    Weights are the probabilities, with `renormalise` divided by the sum of those that are chosen, both times
    `scaling`. A row without a probability (NaN among its logits) gets `least` experts, NaN first.
    Huang et al. 2024, "Harder Tasks Need More Experts" (arXiv 2403.07652), section 2.2; its bound is all
    experts, ours is `top_k`, which cuts off what else would be chosen.
    """

    varies: ClassVar[bool] = True
    top_k: int
    p: float = 0.4
    least: int = 1
    renormalise: bool = False
    scaling: float = 1.0

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        if not 0 < self.p <= 1:
            raise ValueError(f"routing.p is {self.p}; allowed: above 0, up to 1")
        if not 1 <= self.least <= self.top_k:
            raise ValueError(f"routing.least is {self.least}; allowed: 1 to top_k = {self.top_k}")

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, top_k] by descending logit, ties to the lower expert, then -1."""
        powers = softmax_powers(scores)  # [T, E]
        total = np.add.reduce(powers, axis=1, keepdims=True)  # [T, 1]
        chosen, _ = top_k(scores, self.top_k)  # [T, K]
        weights = np.take_along_axis(powers, chosen, axis=1)
        weights /= total
        before = np.zeros(weights.shape)  # [T, K] float64: the sum of the better ones
        np.cumsum(weights[:, :-1], axis=1, dtype=np.float64, out=before[:, 1:])
        left_out = ~(before < self.p)
        left_out[:, : self.least] = False
        experts = chosen.astype(np.int32)
        experts[left_out] = -1
        if self.renormalise:
            kept = np.where(left_out, np.float32(0), weights)
            weights /= np.add.reduce(kept, axis=1, keepdims=True)
        weights *= np.float32(self.scaling)
        weights[left_out] = 0
        return Routing(experts, weights)
