"""Softmax router: the usual gate of Mixtral, Qwen, OLMoE and Switch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices, renormalised, softmax_choice, top_k
from rayemu.routing.offers import Offer, merge_top_k
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
        return softmax_choice(
            scores, lambda logits: top_k(logits, self.top_k), self.renormalise, self.scaling
        )

    @property
    def merges(self) -> bool:
        """Where weights are those of the chosen experts alone."""
        return self.renormalise

    def merge(self, offers: Sequence[Offer]) -> Routing:
        """The best of all offers, weighted as `choose` does."""
        return renormalised(*merge_top_k(offers, self.top_k), self.scaling)
