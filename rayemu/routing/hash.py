"""Hash router: a row's own bits say where it goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices
from rayemu.routing.router import Context, Router
from rayemu.routing.row_bits import draw_experts, keys, row_hash


@dataclass(frozen=True)
class Hash(Router):
    """Each row goes to K different experts by a hash of its bits, with weights of 1/K; the gate is not asked.

    Equal rows go to the same experts in every layer and every run; rows that differ in a bit have nothing in
    common. Roller et al. 2021, "Hash Layers" (arXiv 2106.04426), section 3.1: a fixed random hash. There it
    is of the token's number in the vocabulary; here of the row (XXH3), which in the first layer is a function
    of that number, and later of the text before it too. -0.0 counts as 0.0, NaN by its bits.
    """

    top_k: int

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)

    def scores(self, x: F32, gate: Gate) -> F32:
        """Rows [T, D] -> their hash [T, 2], in float32 columns."""
        return row_hash(x, 0)

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Hashes [T, 2] -> choices [T, K] in no order, of equal weight."""
        experts = draw_experts(keys(scores), gate.weight.shape[1], self.top_k)
        return Routing(experts, np.full(experts.shape, 1 / self.top_k, np.float32))
