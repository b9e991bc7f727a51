"""Where experts live: strategies that map replica counts to slots and modules."""

from rayemu.placement.eplb import rebalance_experts
from rayemu.placement.incremental import rebalance_incrementally
from rayemu.placement.linear import Linear
from rayemu.placement.placement import Placement
from rayemu.placement.random import Random
from rayemu.placement.round_robin import RoundRobin

PLACEMENTS = {"linear": Linear, "round_robin": RoundRobin, "random": Random}

__all__ = [
    "PLACEMENTS",
    "Linear",
    "Placement",
    "Random",
    "RoundRobin",
    "rebalance_experts",
    "rebalance_incrementally",
]
