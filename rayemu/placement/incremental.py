"""Incremental placement: from the present plan, with few changes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rayemu.placement.balanced import Balanced, check_slots
from rayemu.placement.near import rebalance_incrementally
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem
from rayemu.placement.tables import Table


@dataclass(frozen=True)
class Incremental:
    """The present plan with few slots changed, `within` a share of the balance of a fresh one.

    `extra` and `groups` are those of `balanced`, which makes the first plan and the fresh one.
    """

    within: float = 0.01
    extra: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        check_slots(self.extra, self.groups)
        if not (self.within >= 0 and math.isfinite(self.within)):
            raise ValueError(f"within: {self.within} is not allowed; allowed: finite numbers from 0 on")

    def place(self, problem: PlacementProblem) -> Placement:
        """Change `problem.present` to suit `problem.loads`; slots that it lacks are filled."""
        present = problem.present
        if present is None or not len(present):
            return Balanced(self.extra, self.groups).place(problem)
        held = np.zeros((problem.layers, problem.modules), np.int64)
        np.add.at(held, (present.layer, present.module), 1)
        slots = max(problem.slots + self.extra, int(held.sum(1).max()))
        table = Table.of(problem, slots, self.groups, at_least=int(held.max()))
        rows = table.rows(present)
        plan = rebalance_incrementally(
            table.weight, rows, self.groups, table.nodes, problem.modules, self.within
        )
        return table.placement(plan)
