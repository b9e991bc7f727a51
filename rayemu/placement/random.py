"""Random placement: a seeded baseline that keeps slot counts level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.placement import Placement


@dataclass(frozen=True)
class Random:
    """Each replica goes to a random module among the least filled that lack the expert."""

    def place(self, copies: np.ndarray, modules: int, rng: np.random.Generator) -> Placement:
        """Place `copies [E]` replicas per expert on `modules` modules, experts in random order."""
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
        slot_to_module = np.array([m for held in chosen for m in held], dtype=np.int32)
        return Placement(slot_to_expert, slot_to_module)
