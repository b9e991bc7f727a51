"""Inter-layer affinity: experts that tokens choose one after the other lie near each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.filling import Filling, layer_by_layer, level_sizes
from rayemu.placement.partition import blocks, in_two_levels
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class Affinity:
    """Layer by layer, the assignment of experts to modules with the fewest hops from the layer before.

    Each assignment is exact (Hungarian method) for the hops of the steps that tokens take, one hop in a node
    and two across; all of them together are not. The first layer keeps experts together that lead to the same
    experts of the second. Modules hold as many experts as any other, give or take one. Each further copy goes
    where it saves most hops. Memory is respected. It counts for rows that travel from expert to expert; where
    each token goes home between two layers, as here, distance to the last layer's experts costs nothing.
    """

    def place(self, problem: PlacementProblem) -> Placement:
        """Place `problem.copies` of each expert; raises ValueError without `problem.transitions`."""
        if problem.transitions is None:
            raise ValueError(
                "affinity placement needs which experts tokens choose layer after layer (transitions), and "
                "none are known: give a trace with the choices of each token, or take linear or round_robin"
            )
        steps = problem.transitions.astype(np.float64)
        before: list[np.ndarray] = []  # held [E, M] of the layer before, where it has experts

        def fill(layer: int, filling: Filling) -> None:
            copies = problem.copies[layer]
            used = np.flatnonzero(copies)
            filling.keep_level(int(copies.sum()), int(copies.sum()))
            share = problem.loads[layer] / np.maximum(copies, 1)
            sizes = level_sizes(len(used), filling.room)
            if before:
                near = _nearest(before[-1], problem.distances)  # [E, M]
                cost = steps[layer - 1].T @ near  # [E, M] hops of the steps to each expert
                modules = _assigned(cost[used], sizes)
            else:
                near = np.zeros((problem.experts, problem.modules))
                leads = steps[layer] if layer < len(steps) else np.zeros((problem.experts, 1))
                modules = in_two_levels(_alike(leads[used]), sizes, problem.module_to_node, blocks)
            for expert, module in zip(used.tolist(), modules.tolist(), strict=True):
                filling.put_at(expert, module, share[expert])
            for copy in range(1, copies.max()):
                for expert in np.flatnonzero(copies > copy).tolist():
                    now = near[:, filling.held[expert]].min(axis=1, keepdims=True)  # [E, 1]
                    come = steps[layer - 1][:, expert] if before else np.zeros(problem.experts)
                    filling.put(expert, share[expert], come @ np.minimum(now, near))
            before.append(filling.held)

        return layer_by_layer(problem, fill)


def _nearest(held: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Return the hops from each expert's nearest copy to each module [E, M]; 0 for experts without copies."""
    hops = np.where(held[:, :, None], distances, np.iinfo(distances.dtype).max).min(axis=1)
    return np.where(held.any(axis=1, keepdims=True), hops, 0).astype(np.float64)


def _assigned(cost: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the module of each expert [E] with the least sum of cost [E, M], `sizes [M]` on each."""
    from scipy.optimize import linear_sum_assignment

    seats = np.repeat(np.arange(len(sizes)), sizes)
    _, seat = linear_sum_assignment(cost[:, seats])
    return seats[seat]


def _alike(leads: np.ndarray) -> np.ndarray:
    """Return how often tokens of two experts meet again at the next ones [E, E], from steps [E, E]."""
    share = leads / np.maximum(leads.sum(axis=0), 1)
    alike = share @ leads.T
    np.fill_diagonal(alike, 0)
    return (alike + alike.T) / 2
