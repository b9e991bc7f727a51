"""Linear placement: consecutive experts share a module."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.placement import Placement, from_homes


@dataclass(frozen=True)
class Linear:
    """Contiguous blocks of experts per module (the usual expert-parallel layout)."""

    def place(self, copies: np.ndarray, modules: int, rng: np.random.Generator) -> Placement:
        """Place `copies [E]` replicas per expert on `modules` modules."""
        experts = len(copies)
        return from_homes(np.arange(experts) * modules // max(experts, 1), copies, modules)
