"""Round-robin placement: consecutive experts live on consecutive modules."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.placement import Placement, from_homes


@dataclass(frozen=True)
class RoundRobin:
    """Expert e starts at module e mod M, so neighbouring experts never share a module."""

    def place(self, copies: np.ndarray, modules: int, rng: np.random.Generator) -> Placement:
        """Place `copies [E]` replicas per expert on `modules` modules."""
        return from_homes(np.arange(len(copies)) % modules, copies, modules)
