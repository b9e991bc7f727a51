"""Filling a layer's modules copy by copy, within what their memory holds.

Strategies that choose modules one at a time share it: it keeps count of what each module holds and has room
for, and makes room by an exchange where the only free modules already hold a copy of the expert.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rayemu.placement.placement import Placement, from_columns
from rayemu.placement.problem import PlacementProblem


class Filling:
    """One layer under way: `room [M]` slots are left at each module, whose copies carry `load [M]`."""

    def __init__(self, experts: int, room: np.ndarray) -> None:
        self.held = np.zeros((experts, len(room)), bool)  # [E, M]
        self.room = room.astype(np.int64)  # [M]
        self.load = np.zeros(len(room))  # [M]
        self.placed: list[tuple[int, int, float]] = []  # expert, module and load of each copy, in order

    def free(self, expert: int) -> np.ndarray:
        """Return the modules [M] bool that have room and lack the expert."""
        return (self.room > 0) & ~self.held[expert]

    def put(self, expert: int, load: float, cost: np.ndarray | None = None) -> int:
        """Give a copy to the free module of least `cost [M]`, of those the emptiest; return the module.

        Ties go to the lowest module. Raises ValueError when nothing that is free can be made free.
        """
        free = self.free(expert)
        if not free.any():
            self._exchange(expert)
            free = self.free(expert)
        if cost is not None:
            free &= cost <= cost[free].min()
        module = int(np.where(free, self.load, np.inf).argmin())
        self.put_at(expert, module, load)
        return module

    def put_at(self, expert: int, module: int, load: float) -> None:
        """Give a copy to a module that is free for it."""
        self.held[expert, module] = True
        self.room[module] -= 1
        self.load[module] += load
        self.placed.append((expert, module, load))

    def keep_level(self, least: int, most: int) -> int:
        """Cut the room to as many as `most` slots, as evenly as memory lets; return how many there are.

        Raises ValueError where memory holds fewer than `least`.
        """
        slots = min(max(least, most), max(least, int(self.room.sum())))
        self.room = level_sizes(slots, self.room)
        return slots

    def _exchange(self, expert: int) -> None:
        """Free a module that lacks `expert`: its lightest copy that fits moves to one with room."""
        open_modules = np.flatnonzero(self.room > 0)
        order = sorted(range(len(self.placed)), key=lambda at: self.placed[at][2])
        for at in order:
            other, source, load = self.placed[at]
            targets = open_modules[~self.held[other, open_modules]]
            if len(targets) and not self.held[expert, source]:
                target = int(targets[0])
                self.held[other, source], self.held[other, target] = False, True
                self.room[source] += 1
                self.room[target] -= 1
                self.load[source] -= load
                self.load[target] += load
                self.placed[at] = (other, target, load)
                return
        raise ValueError(
            f"the modules' memory has no room for a copy of expert {expert}: "
            "give the modules more memory, or take fewer copies"
        )


def layer_by_layer(problem: PlacementProblem, fill: Callable[[int, Filling], None]) -> Placement:
    """Let `fill(layer, filling)` fill each layer that has experts, within `problem.memory`.

    What is left of a module's memory is shared out evenly among the layers that are still to come.
    """
    left = slots_of_memory(problem)
    moe = np.flatnonzero(problem.copies.any(axis=1)).tolist()
    rows: list[tuple[int, int, int]] = []
    for done, layer in enumerate(moe):
        filling = Filling(problem.experts, -(-left // (len(moe) - done)))
        fill(layer, filling)
        for expert, module, _ in filling.placed:
            rows.append((layer, expert, module))
            left[module] -= 1
    table = np.array(rows, np.int32).reshape(-1, 3)
    return from_columns(table[:, 0], table[:, 1], table[:, 2])


def slots_of_memory(problem: PlacementProblem) -> np.ndarray:
    """Return how many slots, of all layers, each module's memory holds [M]: L * E where it has no limit."""
    most = problem.layers * problem.experts
    if problem.memory is None or problem.expert_bytes <= 0:
        return np.full(problem.modules, most)
    return np.minimum(problem.memory // problem.expert_bytes, most).astype(np.int64)


def level_sizes(total: int, room: np.ndarray) -> np.ndarray:
    """Share `total` slots out as evenly as `room [M]` lets: sizes [M]; what is over goes evenly spaced.

    Raises ValueError where the room is less than the total.
    """
    if room.sum() < total:
        raise ValueError(
            f"the modules' memory holds {int(room.sum())} experts of a layer and {total} are to be placed: "
            "give the modules more memory, or take fewer copies"
        )
    sizes = np.zeros(len(room), np.int64)
    while total:
        low = np.where(sizes < room, sizes, sizes.max() + 1)
        lowest = np.flatnonzero(low == low.min())
        given = min(total, len(lowest))
        sizes[lowest[np.arange(given) * len(lowest) // given]] += 1
        total -= given
    return sizes


def heaviest_first(filling: Filling, copies: np.ndarray, loads: np.ndarray) -> None:
    """Give each copy [E] of each expert, those with the heaviest copies first, to the emptiest module."""
    share = loads / np.maximum(copies, 1)  # [E]
    for expert in np.argsort(-share, kind="stable").tolist():
        for _ in range(copies[expert]):
            filling.put(expert, share[expert])


def trimmed(copies: np.ndarray, loads: np.ndarray, slots: int) -> np.ndarray:
    """Take copies away until `slots` hold them, always where the load per copy is least afterwards."""
    copies = copies.copy()
    while copies.sum() > slots:
        after = np.where(copies > 1, loads / np.maximum(copies - 1, 1), np.inf)
        copies[after.argmin()] -= 1
    return copies
