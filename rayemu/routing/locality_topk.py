"""Locality-aware router: remote experts must be better than near ones by a margin."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices, top_k
from rayemu.routing.nearness import count_choices, near
from rayemu.routing.router import Context, Router
from rayemu.routing.softmax_weights import softmax_weights


@dataclass(frozen=True)
class LocalityTopK(Router):
    """Softmax top-k with a penalty on experts that are far from the row's home.

    Chosen by p_e (1 - module)^[the home does not hold e] (1 - node)^[no module of its node holds e], where p
    is the softmax; weights are those of p, with `renormalise` divided by their sum over the K choices, times
    `scaling`. With penalties of 0 it is `softmax_topk` to the bit. The second of the texts has the one-level
    form, p_e (1 - penalty) for remote experts.

    Needs home, holders and nodes of the context. Counts `choices`, `choices_outside_module` and
    `choices_outside_node`. Costs 1.3 times what `softmax_topk` does: a gathered penalty, and the counts.
    """

    top_k: int
    module: float = 0.0
    node: float = 0.1
    renormalise: bool = True
    scaling: float = 1.0
    scope: ClassVar[str] = "batch"

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        for name in ("module", "node"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"routing.{name} is {getattr(self, name)}; allowed: 0 to less than 1")

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K] by descending penalised probability, ties to the lower expert."""
        around = near(context, *scores.shape)
        # The logarithm of the penalised probability, but for what all experts of a row share.
        penalty = np.zeros(around.module.shape, np.float32)  # [M, E]
        penalty[~around.module] += np.float32(math.log1p(-self.module))
        penalty[~around.node] += np.float32(math.log1p(-self.node))
        penalised = penalty.take(context.home, axis=0)  # [T, E]
        penalised += scores
        chosen, _ = top_k(penalised, self.top_k)  # [T, K]
        count_choices(context, chosen, around)
        return Routing(
            chosen.astype(np.int32), softmax_weights(scores, chosen, self.renormalise, self.scaling)
        )
