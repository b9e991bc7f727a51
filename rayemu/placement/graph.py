"""Graph partitioning: experts that tokens choose together share a module, and a node."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.filling import Filling, layer_by_layer, level_sizes
from rayemu.placement.partition import exchanged, in_two_levels, resized
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class Graph:
    """METIS cuts the graph of co-chosen experts, first into nodes, then into modules, layer by layer.

    METIS (Karypis and Kumar 1998) keeps parts only about level; experts are then moved and exchanged until
    every module holds as many as any other, give or take one, and no exchange of two keeps more together.
    Each further copy goes where it brings most new pairs together. Loads are not looked at; memory is
    respected.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed: {self.seed!r} is not allowed; allowed: 0 to 2^31 - 1")

    def place(self, problem: PlacementProblem) -> Placement:
        """Place `problem.copies` of each expert. Raises ValueError without coactivation or pymetis."""
        if problem.coactivation is None:
            raise ValueError(
                "graph placement needs which experts tokens choose together (coactivation), and none is "
                "known: give a trace with the choices of each token, or take linear or round_robin"
            )
        coactivation = problem.coactivation

        def fill(layer: int, filling: Filling) -> None:
            copies, weights = problem.copies[layer], coactivation[layer].astype(np.float64)
            used = np.flatnonzero(copies)
            filling.keep_level(int(copies.sum()), int(copies.sum()))
            share = problem.loads[layer] / np.maximum(copies, 1)
            sizes = level_sizes(len(used), filling.room)
            modules = in_two_levels(weights[np.ix_(used, used)], sizes, problem.module_to_node, self._split)
            for expert, module in zip(used.tolist(), modules.tolist(), strict=True):
                filling.put_at(expert, module, share[expert])
            for copy in range(1, copies.max()):
                for expert in np.flatnonzero(copies > copy).tolist():
                    together = filling.held @ filling.held[expert]  # [E] already on one module with it
                    new = np.where(together, 0.0, weights[expert]) @ filling.held  # [M]
                    filling.put(expert, share[expert], -new)

        return layer_by_layer(problem, fill)

    def _split(self, weights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        taken = np.flatnonzero(sizes)
        if len(taken) < 2:
            return np.full(len(weights), taken[0] if len(taken) else 0)
        part = taken[_metis(weights, sizes[taken], self.seed)]
        return exchanged(weights, resized(weights, part, sizes))


def _metis(weights: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Cut a graph with symmetric `weights [E, E]` into parts of about `sizes [P]`: part [E]."""
    try:
        import pymetis
    except ImportError:
        raise ValueError(
            "graph placement needs pymetis, which is not installed: pip install 'rayemu[plan]'"
        ) from None
    whole = np.rint(weights * (1e6 / max(weights.max(), 1e-300))).astype(np.int64)  # METIS takes integers
    np.fill_diagonal(whole, 0)
    u, v = np.nonzero(whole)
    if not len(u):
        return np.repeat(np.arange(len(sizes)), sizes)
    start = np.searchsorted(u, np.arange(len(whole) + 1))
    result = pymetis.part_graph(
        len(sizes),
        pymetis.CSRAdjacency(start.tolist(), v.tolist()),
        eweights=whole[u, v].tolist(),
        tpwgts=(sizes / sizes.sum()).tolist(),
        options=pymetis.Options(seed=seed),
    )
    return np.asarray(result[1], np.int64)
