"""Random placement: a seeded baseline that keeps slot counts level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.placement import Placement, by_layer
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class Random:
    """Each copy goes to a random module among the least filled that lack the expert; layers differ."""

    def place(self, problem: PlacementProblem) -> Placement:
        """Place `problem.copies` of each expert, experts in random order."""
        return by_layer(problem, lambda copies: _place(copies, problem.modules, problem.rng))


def _place(copies: np.ndarray, modules: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    filled = np.zeros(modules, dtype=np.int64)
    chosen: list[list[int]] = [[] for _ in copies]
    for expert in rng.permutation(len(copies)):
        for _ in range(copies[expert]):
            free = np.setdiff1d(np.arange(modules), chosen[expert])
            lowest = free[filled[free] == filled[free].min()]
            module = int(rng.choice(lowest))
            filled[module] += 1
            chosen[expert].append(module)
    slot_to_expert = np.repeat(np.arange(len(copies), dtype=np.int32), copies)
    return slot_to_expert, np.array([m for held in chosen for m in held], dtype=np.int32)
