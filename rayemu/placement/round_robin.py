"""Round-robin placement: consecutive experts live on consecutive modules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.placement import Placement, around_the_ring, by_layer
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class RoundRobin:
    """Expert e starts at module e mod M, so neighbouring experts never share a module."""

    def place(self, problem: PlacementProblem) -> Placement:
        """Place `problem.copies` of each expert."""
        first = np.arange(problem.experts) % problem.modules
        return by_layer(problem, lambda copies: around_the_ring(first, copies, problem.modules))
