"""Where experts live: strategies that fill a table of slots.

A strategy is a frozen dataclass, its fields are its parameters, and `place(problem)` gives a `Placement`. One
that looks at `problem.loads` serves as a planner for rebalancing, too.
"""

from rayemu.placement.balanced import Balanced
from rayemu.placement.eplb import rebalance_experts
from rayemu.placement.incremental import Incremental
from rayemu.placement.linear import Linear
from rayemu.placement.near import rebalance_incrementally
from rayemu.placement.placement import Placement, check_placement, from_columns
from rayemu.placement.problem import PlacementProblem, problem_of
from rayemu.placement.random import Random
from rayemu.placement.round_robin import RoundRobin
from rayemu.placement.split import split_load

PLACEMENTS = {
    "linear": Linear,
    "round_robin": RoundRobin,
    "random": Random,
    "balanced": Balanced,
    "incremental": Incremental,
}

__all__ = [
    "PLACEMENTS",
    "Balanced",
    "Incremental",
    "Linear",
    "Placement",
    "PlacementProblem",
    "Random",
    "RoundRobin",
    "check_placement",
    "from_columns",
    "problem_of",
    "rebalance_experts",
    "rebalance_incrementally",
    "split_load",
]
