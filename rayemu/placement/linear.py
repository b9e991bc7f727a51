"""Linear placement: consecutive experts share a module."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.placement import Placement, around_the_ring, by_layer
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class Linear:
    """Contiguous blocks of experts per module (the usual expert-parallel layout), the same in every layer."""

    def place(self, problem: PlacementProblem) -> Placement:
        """Place `problem.copies` of each expert."""
        first = np.arange(problem.experts) * problem.modules // max(problem.experts, 1)
        return by_layer(problem, lambda copies: around_the_ring(first, copies, problem.modules))
