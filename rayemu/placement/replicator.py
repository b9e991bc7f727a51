"""The hot-expert replicator: one copy more at a time, where it saves most communication."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement.filling import Filling, layer_by_layer
from rayemu.placement.linear import Linear
from rayemu.placement.placement import Placement
from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True)
class Replicator:
    """Adds copies of hot experts to the present plan's first copies (without one, to `linear`'s).

    An expert is hot while it has at least `least` rows and a copy of it carries more than `over` times an
    expert's mean load. The hottest gets its copy first, up to `most` copies, at the module with the least
    communication: hops of its rows, from all modules alike, to their nearest copy; of equal ones the
    emptiest. Memory and `slots` are respected.
    """

    least: int = 100
    over: float = 1.5
    most: int = 4

    def __post_init__(self) -> None:
        if self.least < 0:
            raise ValueError(f"least: {self.least!r} is not allowed; allowed: 0 or more rows")
        if not 0 <= self.over <= 1e6:
            raise ValueError(f"over: {self.over!r} is not allowed; allowed: 0 to 1e6 times the mean load")
        if self.most < 1:
            raise ValueError(f"most: {self.most!r} is not allowed; allowed: 1 or more copies")

    def place(self, problem: PlacementProblem) -> Placement:
        """Fill up to `problem.slots` of a layer. Raises ValueError where memory holds too few."""
        homes = _first_modules(problem)

        def fill(layer: int, filling: Filling) -> None:
            loads, used = problem.loads[layer], np.flatnonzero(problem.copies[layer])
            slots = filling.keep_level(len(used), problem.slots)
            for expert in used.tolist():
                filling.put(expert, loads[expert], np.arange(problem.modules) != homes[layer, expert])
            copies = np.zeros(problem.experts, np.int64)
            copies[used] = 1
            hot = (copies > 0) & (loads >= self.least)
            while copies.sum() < slots and (expert := self._hottest(loads, copies, hot)) is not None:
                if not filling.free(expert).any():
                    hot[expert] = False
                    continue
                copies[expert] += 1
                filling.load = (loads / np.maximum(copies, 1)) @ filling.held  # [M]
                near = problem.distances[:, filling.held[expert]].min(axis=1, keepdims=True)  # [home, 1]
                filling.put(expert, 0.0, np.minimum(near, problem.distances).sum(axis=0))

        return layer_by_layer(problem, fill)

    def _hottest(self, loads: np.ndarray, copies: np.ndarray, hot: np.ndarray) -> int | None:
        """Return the hot expert with the heaviest copies; None when all are below the threshold."""
        each = np.where(hot & (copies < self.most), loads / np.maximum(copies, 1), -1.0)
        expert = int(each.argmax())
        return expert if each[expert] > self.over * loads[copies > 0].mean() else None


def _first_modules(problem: PlacementProblem) -> np.ndarray:
    """Return the module of each expert's first copy [L, E], in the present plan or a linear one."""
    plan = problem.present if problem.present is not None else Linear().place(problem)
    homes = np.zeros((problem.layers, problem.experts), np.int64)
    homes[plan.layer[::-1], plan.expert[::-1]] = plan.module[::-1]  # the first one is written last
    return homes
