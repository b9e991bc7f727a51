"""Where experts live: strategies that fill a table of slots.

A strategy is a frozen dataclass, its fields are its parameters, and `place(problem)` gives a `Placement`. One
that looks at `problem.loads` serves as a planner for rebalancing, too.
"""

from rayemu.placement.affinity import Affinity
from rayemu.placement.balanced import Balanced
from rayemu.placement.domains import Domains
from rayemu.placement.eplb import rebalance_experts
from rayemu.placement.graph import Graph
from rayemu.placement.incremental import Incremental
from rayemu.placement.linear import Linear
from rayemu.placement.near import rebalance_incrementally
from rayemu.placement.placement import Placement, check_placement, from_columns
from rayemu.placement.problem import PlacementProblem, problem_of
from rayemu.placement.qubo import Qubo
from rayemu.placement.random import Random
from rayemu.placement.replicator import Replicator
from rayemu.placement.round_robin import RoundRobin
from rayemu.placement.split import split_load
from rayemu.placement.supernodes import Supernodes
from rayemu.placement.thresholds import Thresholds
from rayemu.placement.tiers import Tiers
from rayemu.placement.variance import Variance

PLACEMENTS = {
    "linear": Linear,
    "round_robin": RoundRobin,
    "random": Random,
    "balanced": Balanced,
    "incremental": Incremental,
    "graph": Graph,
    "affinity": Affinity,
    "supernodes": Supernodes,
    "tiers": Tiers,
    "variance": Variance,
    "thresholds": Thresholds,
    "replicator": Replicator,
    "qubo": Qubo,
    "domains": Domains,
}

__all__ = [
    "PLACEMENTS",
    "Affinity",
    "Balanced",
    "Domains",
    "Graph",
    "Incremental",
    "Linear",
    "Placement",
    "PlacementProblem",
    "Qubo",
    "Random",
    "Replicator",
    "RoundRobin",
    "Supernodes",
    "Thresholds",
    "Tiers",
    "Variance",
    "check_placement",
    "from_columns",
    "problem_of",
    "rebalance_experts",
    "rebalance_incrementally",
    "split_load",
]
