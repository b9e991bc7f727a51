"""Softmax router: the usual gate of Mixtral, Qwen, OLMoE and Switch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices, softmax_powers, top_k
from rayemu.routing.router import Context, Router


@dataclass(frozen=True)
class SoftmaxTopK(Router):
    """Top-k of the softmax over all experts, weights renormalised to sum 1 or left as probabilities.

    `scaling` multiplies the weights (DeepSeek-V2's greedy variant, routed_scaling_factor). Experts are chosen
    by their logits, whose order is that of the probabilities without the ties that rounding makes.
    """

    top_k: int
    renormalise: bool = True
    scaling: float = 1.0

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K] by descending logit, ties to the lower expert."""
        logits = scores  # [T, E]
        if self.renormalise:  # the probabilities' common denominator cancels
            experts, best = top_k(logits, self.top_k)  # [T, K]
            weights = softmax_powers(best)
            weights /= np.add.reduce(weights, axis=1, keepdims=True)
        else:
            powers = softmax_powers(logits)  # [T, E]
            total = np.add.reduce(powers, axis=1, keepdims=True)  # [T, 1]
            experts, _ = top_k(logits, self.top_k)
            weights = np.take_along_axis(powers, experts, axis=1)
            weights /= total
        if self.scaling != 1.0:
            weights *= np.float32(self.scaling)
        return Routing(experts.astype(np.int32), weights)
