"""Hierarchical balancing: experts over nodes first, then over a node's modules, then over a module's banks.

L layers, P items of a layer (experts, or slots with their part of an expert's load).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayemu.balance.metrics import average, max_over_mean


@dataclass(frozen=True)
class Level:
    """One level of the machine: `units` in each unit of the level above, each with room for `slots` items."""

    name: str
    units: int
    slots: int


@dataclass(frozen=True, eq=False)
class LevelPlan:
    """By the level's name: the unit of each item [L, P] among all of that level, and max/mean of loads."""

    unit: dict[str, np.ndarray]
    balance: dict[str, float]


def balance_levels(loads: np.ndarray, levels: Sequence[Level]) -> LevelPlan:
    """Spread items of `loads [L, P]` level by level, from the whole machine down.

    On each level the items of a unit are dealt out, heaviest first, to the least loaded of its parts with
    room (LPT, ties to the lower unit); then pairs of items of the busiest and another part change places
    while that lowers the busiest. Levels above are never reconsidered: what crosses the dearest link is
    balanced first, and lower levels get what that leaves. Items are distinct: with several copies of an
    expert, keep those of one module apart beforehand.

    Raises ValueError, naming the level, when items do not fit.
    """
    loads = np.asarray(loads, np.float64)
    _check(loads.shape[1], levels)
    unit: dict[str, np.ndarray] = {}
    balance: dict[str, float] = {}
    above, parents = np.zeros(loads.shape, np.int64), 1
    for level in levels:
        inside = np.zeros(loads.shape, np.int64)
        for layer, load in enumerate(loads):
            for parent in range(parents):
                mine = np.flatnonzero(above[layer] == parent)
                inside[layer, mine] = spread(load[mine], level.units, level.slots)
        above, parents = above * level.units + inside, parents * level.units
        per_unit = np.stack(
            [np.bincount(u, weights=w, minlength=parents) for u, w in zip(above, loads, strict=True)]
        )
        unit[level.name] = above
        balance[level.name] = average(max_over_mean(per_unit), per_unit)
    return LevelPlan(unit, balance)


def spread(loads: np.ndarray, parts: int, slots: int) -> np.ndarray:
    """The part of each item [P], at most `slots` in a part: LPT, then exchanges with the busiest part."""
    part = np.zeros(len(loads), np.int64)
    busy, room = np.zeros(parts), np.full(parts, slots)
    for item in np.argsort(-loads, kind="stable"):
        to = int(np.argmin(np.where(room > 0, busy, np.inf)))
        part[item] = to
        busy[to] += loads[item]
        room[to] -= 1
    while _relieve(loads, part, busy):
        pass
    return part


def _relieve(loads: np.ndarray, part: np.ndarray, busy: np.ndarray) -> bool:
    """Exchange the pair of items, one on the busiest part, that brings both parts nearest to each other."""
    top = int(np.argmax(busy))
    mine, others = np.flatnonzero(part == top), np.flatnonzero(part != top)
    shift = loads[mine][:, None] - loads[others]  # [mine, others]
    after = np.maximum(busy[top] - shift, busy[part[others]] + shift)
    if not after.size or after.min() >= busy[top] * (1 - 1e-12):
        return False
    a, b = np.unravel_index(int(np.argmin(after)), after.shape)
    to = part[others[b]]
    part[mine[a]], part[others[b]] = to, top
    busy[top] -= shift[a, b]
    busy[to] += shift[a, b]
    return True


def _check(items: int, levels: Sequence[Level]) -> None:
    held, what = items, f"{items} items"
    for level in levels:
        if level.units < 1 or level.units * level.slots < held:
            raise ValueError(
                f"levels: {level.units} x {level.name} with {level.slots} slots is not allowed; allowed: "
                f"room for {what}"
            )
        held, what = min(held, level.slots), f"the {level.slots} slots of a {level.name}"
