"""Supernodes: frequency tiers, and hot experts with a replica in the neighbouring supernode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.filling import Filling, layer_by_layer
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem
from rayemu.placement.tiers import hottest_first, tiers


@dataclass(frozen=True)
class Supernodes:
    """One copy of each expert by frequency tiers, and the slots beyond them for the hottest experts.

    Each of those gets one replica, on the emptiest module of the next node of the ring, or of the one after
    it where memory has no room there. First copies are level, replicas crowd next to the hot nodes.
    `rayemu.placement.quality` says what it gives: hops, deviation of load, hit rate.
    """

    def place(self, problem: PlacementProblem) -> Placement:
        """Fill up to `problem.slots` of a layer. Raises ValueError where memory holds too few."""

        def fill(layer: int, filling: Filling) -> None:
            loads, once = problem.loads[layer], (problem.copies[layer] > 0).astype(np.int64)
            room = filling.room.copy()
            spare = min(problem.slots, int(room.sum())) - int(once.sum()) if problem.modules > 1 else 0
            filling.keep_level(int(once.sum()), int(once.sum()))
            tier = tiers(loads, once, filling.room, problem.module_to_node)  # [E]
            order = [expert for expert in hottest_first(loads) if once[expert]]
            share = loads.copy()
            share[order[: max(spare, 0)]] /= 2
            for expert in order:
                filling.put(expert, share[expert], problem.module_to_node != tier[expert])
            filling.room = room - filling.held.sum(axis=0)
            for expert in order[: max(spare, 0)]:
                if filling.free(expert).any():
                    steps = (problem.module_to_node - tier[expert] - 1) % problem.nodes  # [M]
                    filling.put(expert, share[expert], steps)

        return layer_by_layer(problem, fill)
