"""One epoch of the cluster: who is alive, where the expert copies are, who relays for whom."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rayemu.placement import Placement

DEAD, SUSPECTED, ALIVE = 0, 1, 2  # modules
LOADING, READY, LEAVING = 0, 1, 2  # slots: not held yet; in use; held, but given no more work


class Copies(NamedTuple):
    """The usable slots of all experts, sorted by layer, expert and slot number."""

    slots: np.ndarray  # [n] int64
    expert: np.ndarray  # [n] int64, layer * E + expert of each
    start: np.ndarray  # [L * E + 1] int64, where the slots of each begin
    experts: int  # E

    def of(self, layer: int, expert: int) -> np.ndarray:
        """Return the usable slots of an expert, ascending."""
        key = layer * self.experts + expert
        return self.slots[self.start[key] : self.start[key + 1]]

    def pick(self, rank: np.ndarray) -> np.ndarray:
        """Return a slot of each expert [L, E]: of its own the one at place `rank` [L * E]; -1 for none."""
        count = np.diff(self.start)
        chosen = np.full(len(count), -1, np.int32)
        there = count > 0
        chosen[there] = self.slots[self.start[:-1][there] + rank[there]]
        return chosen.reshape(-1, self.experts)


@dataclass(frozen=True, eq=False)
class View:
    """Membership and placement at one epoch. Immutable; policies may keep what they derive from it."""

    epoch: int
    module_to_node: np.ndarray  # [M] int32
    state: np.ndarray  # [M] uint8: DEAD, SUSPECTED or ALIVE
    incarnations: np.ndarray  # [M] int32, how often the module has been replaced
    placement: Placement
    slot_state: np.ndarray  # [S] uint8: LOADING, READY or LEAVING
    layers: int
    experts: int
    _derived: dict[Hashable, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def modules(self) -> int:
        """Number of modules M, dead ones included."""
        return len(self.module_to_node)

    @cached_property
    def slot_to_module(self) -> np.ndarray:
        """Return the module of each slot, with -1 appended so that slot -1 (no copy) maps to -1."""
        return np.append(self.placement.module, -1).astype(np.int32)  # [S + 1]

    @cached_property
    def copies(self) -> Copies:
        """Usable slots of each expert: ready ones on live modules; where none is live, on suspected ones."""
        placed = self.placement
        key = placed.layer.astype(np.int64) * self.experts + placed.expert  # [S]
        rank = np.where(self.slot_state == READY, self.state[placed.module], DEAD)  # [S]
        best = np.zeros(self.layers * self.experts, rank.dtype)
        np.maximum.at(best, key, rank)
        usable = np.flatnonzero((rank != DEAD) & (rank == best[key]))
        usable = usable[np.argsort(key[usable], kind="stable")]
        start = np.searchsorted(key[usable], np.arange(len(best) + 1))
        return Copies(usable, key[usable], start, self.experts)

    def holders(self, layer: int) -> np.ndarray:
        """Tell which modules have a usable copy of which experts of a layer [M, E]."""
        low, high = layer * self.experts, (layer + 1) * self.experts
        slots = self.copies.slots[self.copies.start[low] : self.copies.start[high]]
        held = np.zeros((self.modules, self.experts), bool)
        held[self.placement.module[slots], self.placement.expert[slots]] = True
        return held

    def derive(self, strategy: Hashable, home: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return what `make` gives; once per strategy (with its parameters) and home, then from memory."""
        made = self._derived.get((strategy, home))
        if made is None:
            made = self._derived[strategy, home] = make()
        return made

    def live_in_node(self, node: int) -> np.ndarray:
        """Return the live modules of a node, ascending."""
        return np.flatnonzero((self.module_to_node == node) & (self.state == ALIVE))

    def serves(self, module: int, incarnation: int) -> bool:
        """Tell whether that incarnation of the module is still worth waiting for."""
        return bool(self.state[module] == ALIVE and self.incarnations[module] == incarnation)
