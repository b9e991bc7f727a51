"""Frequency tiers: the hottest experts on the first node, the next ones on the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.filling import Filling, layer_by_layer, level_sizes
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class Tiers:
    """Experts by falling load fill node after node, as many on each; in a node, the emptiest module first.

    Further copies lie on nodes evenly around the ring. Memory is respected.
    """

    def place(self, problem: PlacementProblem) -> Placement:
        """Place `problem.copies` of each expert; raises ValueError where memory does not hold them."""

        def fill(layer: int, filling: Filling) -> None:
            copies = problem.copies[layer]
            filling.keep_level(int(copies.sum()), int(copies.sum()))
            share = problem.loads[layer] / np.maximum(copies, 1)
            tier = tiers(problem.loads[layer], copies, filling.room, problem.module_to_node)  # [E]
            for copy in range(copies.max()):
                for expert in hottest_first(problem.loads[layer]):
                    if copy < copies[expert]:
                        node = (tier[expert] + copy * problem.nodes // copies[expert]) % problem.nodes
                        filling.put(expert, share[expert], problem.module_to_node != node)

        return layer_by_layer(problem, fill)


def hottest_first(loads: np.ndarray) -> list[int]:
    """Order experts by falling load [E], of equal ones the lower first."""
    order: list[int] = np.argsort(-loads, kind="stable").tolist()
    return order


def tiers(loads: np.ndarray, copies: np.ndarray, room: np.ndarray, module_to_node: np.ndarray) -> np.ndarray:
    """Return the node of each expert [E]: the hottest fill the first node, the next ones the next."""
    placed = np.flatnonzero(copies)
    sizes = np.bincount(module_to_node, weights=level_sizes(len(placed), room)).astype(np.int64)  # [N]
    tier = np.zeros(len(loads), np.int64)
    order = [expert for expert in hottest_first(loads) if copies[expert]]
    tier[order] = np.repeat(np.arange(len(sizes)), sizes)
    return tier
