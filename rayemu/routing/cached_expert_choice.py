"""Expert choice for generation: new tokens compete with the scores of those before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.capacity import best_rows, capacity, check_capacity_factor, routing_of, softmax
from rayemu.routing.gate import Gate, Routing, check_choices
from rayemu.routing.router import Context, Router


@dataclass(frozen=True)
class CachedExpertChoice(Router):
    """Expert choice among a batch's tokens and the last `window` before them, whose scores are in a cache.

    Each expert takes the tokens of the batch that are among its best ceil(capacity_factor * n * top_k / E) of
    the n scores in cache and batch; ties go to the earlier token. What earlier batches chose stays as it is.
    A first batch is thus routed as by `expert_choice` (the prompt), and one token at a time can follow it,
    without the gate being asked about earlier tokens again. It may get no expert (`tokens_without_expert`);
    without anything before it, a single token gets all.

    The cache is one for a layer, all of whose rows count as one sequence: window * E * 4 bytes, {"scores":
    [w, E] float32, oldest first}. Rows with NaN are taken first and do not enter it. Scores and weights are
    those of `expert_choice`, whose cost it has plus that of the window's rows: 3 to 4 times softmax_topk's at
    T=4096, E=64, K=8 and a full window of 1,024.
    Gao and Yang 2026, arXiv 2602.10254 (the gate-output cache; it holds each expert's best scores and their
    outputs instead of a window, for a fixed number of tokens per expert); Zhou et al. 2022, arXiv 2202.09368.
    """

    top_k: int
    capacity_factor: float = 1.0
    window: int = 1024
    renormalise: bool = False
    scaling: float = 1.0
    scope: ClassVar[str] = "batch"

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        check_capacity_factor(self.capacity_factor)
        if self.window < 1:
            raise ValueError(f"routing.window is {self.window!r}; allowed: 1 or more tokens")

    def most(self, experts: int) -> int:
        """All experts may want the same token."""
        return experts

    def new_state(self, experts: int) -> Any:
        """A cache without scores."""
        return {"scores": np.empty((0, experts), np.float32)}

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K], best first, then -1; K is the most that a token got.

        Raises ValueError when the cache is of another number of experts.
        """
        tokens, experts = scores.shape
        state = self.new_state(experts) if context.state is None else context.state
        cached = state["scores"]  # [w, E]
        if cached.shape[1:] != (experts,):
            raise ValueError(
                f"the cache holds scores {list(cached.shape)}; allowed: [w, {experts}], w tokens"
            )
        probabilities = softmax(scores)  # [T, E]
        pool = np.concatenate([cached, probabilities])  # [w + T, E], earlier ones first
        limit = capacity(self.capacity_factor, len(pool), self.top_k, experts)
        chosen = best_rows(pool, limit)[len(cached) :]
        state["scores"] = pool[~np.isnan(pool).any(axis=1)][-self.window :].copy()
        context.count("tokens_without_expert", tokens - np.count_nonzero(chosen.any(axis=1)))
        context.count("cached_scores", len(cached))
        return routing_of(scores, probabilities, chosen, self.renormalise, self.scaling)
