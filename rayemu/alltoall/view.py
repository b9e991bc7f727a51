"""One epoch of the cluster: who is alive, where the expert copies are, who relays for whom."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rayemu.placement import Placement

DEAD, SUSPECTED, ALIVE = 0, 1, 2


@dataclass(frozen=True, eq=False)
class View:
    """Membership and placement at one epoch. Immutable; policies may keep tables in `memo`."""

    epoch: int
    module_to_node: np.ndarray  # [M] int32
    state: np.ndarray  # [M] uint8: DEAD, SUSPECTED or ALIVE
    incarnations: np.ndarray  # [M] int32, how often the module has been replaced
    placement: Placement
    experts: int
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def modules(self) -> int:
        """Number of modules M, dead ones included."""
        return len(self.module_to_node)

    @cached_property
    def slot_to_module(self) -> np.ndarray:
        """Return the module of each slot, with -1 appended so that slot -1 (no copy) maps to -1."""
        return np.append(self.placement.slot_to_module, -1).astype(np.int32)  # [P + 1]

    @cached_property
    def copies(self) -> list[np.ndarray]:
        """Usable slots of each expert: on live modules; where none is live, on suspected ones."""
        order = np.argsort(self.placement.slot_to_expert, kind="stable")
        ends = np.searchsorted(self.placement.slot_to_expert[order], np.arange(1, self.experts))
        table = []
        for slots in np.split(order, ends):
            states = self.state[self.placement.slot_to_module[slots]]
            best = states.max(initial=DEAD)
            table.append(slots[states == best] if best != DEAD else slots[:0])
        return table

    def live_in_node(self, node: int) -> np.ndarray:
        """Return the live modules of a node, ascending."""
        return np.flatnonzero((self.module_to_node == node) & (self.state == ALIVE))

    def serves(self, module: int, incarnation: int) -> bool:
        """Tell whether that incarnation of the module is still worth waiting for."""
        return bool(self.state[module] == ALIVE and self.incarnations[module] == incarnation)
