"""Expert choice: the experts take their best tokens, and a token gets as many experts as want it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.capacity import best_rows, capacity, check_capacity_factor, routing_of, softmax
from rayemu.routing.gate import Gate, Routing, check_choices
from rayemu.routing.router import Context, Router


@dataclass(frozen=True)
class ExpertChoice(Router):
    """Each expert takes the ceil(capacity_factor * T * top_k / E) tokens of the batch that score it highest.

    Scores are the softmax over experts; ties go to the earlier token, NaN is taken first. All experts have
    the same load; a token may get none (counted as `tokens_without_expert`), one or up to all E. Weights are
    the scores, with `renormalise` divided by their sum over the token's experts, times `scaling`.
    The choice costs 2.5 times softmax_topk's at T=4096, E=64, K=8: the whole softmax, columns, then rows.
    Zhou et al. 2022, arXiv 2202.09368, whose capacity factor c is capacity_factor * top_k here. It looks at
    later tokens too: for generation see `cached_expert_choice`.
    """

    top_k: int
    capacity_factor: float = 1.0
    renormalise: bool = False
    scaling: float = 1.0
    scope: ClassVar[str] = "batch"

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        check_capacity_factor(self.capacity_factor)

    def most(self, experts: int) -> int:
        """All experts may want the same token."""
        return experts

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K], best first, then -1; K is the most that a token got."""
        tokens, experts = scores.shape
        probabilities = softmax(scores)  # [T, E]
        chosen = best_rows(probabilities, capacity(self.capacity_factor, tokens, self.top_k, experts))
        context.count("tokens_without_expert", tokens - np.count_nonzero(chosen.any(axis=1)))
        return routing_of(scores, probabilities, chosen, self.renormalise, self.scaling)
