"""Balanced placement: copies and places from load, afresh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.eplb import phy2log
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem
from rayemu.placement.tables import Table


@dataclass(frozen=True)
class Balanced:
    """Copies and places such that the fullest module has the least load, as `rebalance_experts` finds them.

    `extra` is the number of slots of a layer beside those that the copies asked for take. How many an expert
    gets goes by its load; slots that would not help stay empty. With `groups`, that many groups of
    consecutive experts stay whole on one node.
    """

    extra: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        check_slots(self.extra, self.groups)

    def place(self, problem: PlacementProblem) -> Placement:
        """Fill `problem.slots` and the extra ones by `problem.loads`."""
        table = Table.of(problem, problem.slots + self.extra, self.groups)
        if not table.per_module:
            return table.placement(np.zeros((0, 0), np.int64))
        slots = table.per_module * problem.modules
        return table.placement(phy2log(table.weight, slots, self.groups, table.nodes, problem.modules))


def check_slots(extra: int, groups: int) -> None:
    """Refuse numbers of extra slots and groups that no problem can have."""
    for name, value, least in (("extra", extra, 0), ("groups", groups, 1)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name}: {value!r} is not allowed; allowed: whole numbers from {least} on")
