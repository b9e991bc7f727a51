"""Group-limited softmax router: the `group_limited_greedy` gate of DeepSeek-V2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import (
    Gate,
    Routing,
    best_groups,
    check_choices,
    close_groups,
    softmax_powers,
    top_k,
)
from rayemu.routing.router import Context, Router


@dataclass(frozen=True)
class SoftmaxGroupTopK(Router):
    """Softmax top-k among the experts of the best groups, a group being as good as its best expert.

    With `renormalise` the K weights sum to `scaling`, otherwise they are probabilities times `scaling`.
    DeepSeek-AI 2024 (V2), section 2.2.2, device-limited routing.
    """

    top_k: int
    groups: int = 1
    top_groups: int = 1
    renormalise: bool = False
    scaling: float = 1.0

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts, self.groups, self.top_groups)

    @property
    def group_limit(self) -> tuple[int, int] | None:
        """How many groups there are, and how many of them are open to a token; None if all are."""
        return (self.groups, self.top_groups) if self.top_groups < self.groups else None

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K] by descending logit, ties (of groups too) to the lower number."""
        groups = None if self.group_limit is None else self.open_groups(scores, gate, context)
        return self.choose_within(scores, gate, context, groups)

    def open_groups(self, scores: F32, gate: Gate, context: Context) -> npt.NDArray[np.intp]:
        """Logits [T, E] -> the groups [T, top_groups] with the best experts, best first."""
        rows, experts = scores.shape
        best_of_group = scores.reshape(rows, self.groups, experts // self.groups).max(axis=2)  # [T, G]
        return best_groups(best_of_group, self.top_groups)

    def choose_within(
        self, scores: F32, gate: Gate, context: Context, groups: npt.NDArray[np.integer] | None
    ) -> Routing:
        """Logits [T, E] -> choices [T, K] among the experts of `groups` [T, g], or of all."""
        powers = softmax_powers(scores)  # [T, E]
        total = np.add.reduce(powers, axis=1, keepdims=True)  # [T, 1]
        closed = None if groups is None else close_groups(scores, groups, self.groups)
        chosen, _ = top_k(scores, self.top_k, closed)  # [T, K]
        weights = np.take_along_axis(powers, chosen, axis=1)
        weights /= np.add.reduce(weights, axis=1, keepdims=True) if self.renormalise else total
        weights *= np.float32(self.scaling)
        return Routing(chosen.astype(np.int32), weights)
