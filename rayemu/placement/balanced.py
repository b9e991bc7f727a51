"""Balanced placement: copies and places by load."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.eplb import rebalance_experts
from rayemu.placement.placement import Placement, from_columns
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class Balanced:
    """Copies and places by load, so that the busiest module has as little as can be (`rebalance_experts`).

    `extra` slots for each module besides those that the scenario's copies take. `groups`: experts of a group
    that a router limits tokens to stay in one node where the nodes' number divides it.
    """

    extra: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        if self.extra < 0:
            raise ValueError(f"extra: {self.extra} is not allowed; allowed: 0 and above")
        if self.groups < 1:
            raise ValueError(f"groups: {self.groups} is not allowed; allowed: 1 and above")

    def place(self, problem: PlacementProblem) -> Placement:
        """Fill `problem.slots` slots of each layer, and the extra ones."""
        moe = np.flatnonzero(problem.copies.any(axis=1))  # [L']
        experts, modules = problem.experts, problem.modules
        if not len(moe):
            return from_columns(*np.zeros((3, 0), np.int32))
        if self.groups > 1 and experts % self.groups:
            raise ValueError(f"groups: {self.groups} is not allowed; allowed: a divisor of {experts} experts")
        slots = max(experts, problem.slots) + self.extra * modules
        full = -(-slots // modules) * modules
        # Slots that stay empty, as experts without load: all modules have as many slots in EPLB's terms.
        empty = full - slots
        weight = np.pad(problem.loads[moe], ((0, 0), (0, empty)))  # [L', E + empty]
        whole = problem.nodes if modules % problem.nodes == 0 and not empty else 1
        groups = self.groups if not empty else 1
        held, _, _ = rebalance_experts(weight, full, groups, whole if groups > 1 else 1, modules)  # [L', R]
        layer, slot = np.nonzero(held < experts)
        table = np.stack([moe[layer], held[layer, slot], slot * modules // full])
        return from_columns(*np.unique(table, axis=1))  # a module needs no second copy
