"""Random router: the baseline that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices
from rayemu.routing.router import Context, Router
from rayemu.routing.row_bits import draw_experts, keys, row_hash


@dataclass(frozen=True)
class Random(Router):
    """Each row goes to K experts drawn at random, with weights of 1/K: the baseline that knows nothing.

    Drawn from `seed`, the layer and the row's own bits, so that a row goes to the same experts wherever it is
    routed; equal rows of a layer therefore do, too. Any set of K experts is as likely as any other.
    """

    top_k: int
    seed: int = 0

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        if self.seed < 0:
            raise ValueError(f"routing.seed is {self.seed}; allowed: 0 and above")

    def scores(self, x: F32, gate: Gate) -> F32:
        """Rows [T, D] -> their hash [T, 2], in float32 columns."""
        return row_hash(x, self.seed)

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Hashes [T, 2] -> choices [T, K] in no order, of equal weight."""
        drawn = draw_experts(keys(scores, context.layer + 1), gate.weight.shape[1], self.top_k)
        return Routing(drawn, np.full(drawn.shape, 1 / self.top_k, np.float32))
