"""Replica choice: which copy of a chosen expert computes a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.alltoall.view import View
from rayemu.placement.split import split_load


@dataclass(frozen=True)
class Nearest:
    """The copy on the home module itself, else in its node, else any; ties spread over homes."""

    def choose(self, layer: int, experts: np.ndarray, view: View, home: int, load: np.ndarray) -> np.ndarray:
        """Map logical experts [T, K] of a layer to slots [T, K]; -1 where no copy is left."""
        return view.derive(self, home, lambda: _nearest(view, home))[layer][experts]


@dataclass(frozen=True)
class Hash:
    """A copy fixed by home and expert: spreads homes over copies, blind to load and distance."""

    def choose(self, layer: int, experts: np.ndarray, view: View, home: int, load: np.ndarray) -> np.ndarray:
        """Map logical experts [T, K] of a layer to slots [T, K]; -1 where no copy is left."""
        return view.derive(self, home, lambda: _hashed(view, home))[layer][experts]


@dataclass(frozen=True)
class LeastLoaded:
    """The copy whose module has the fewest rows outstanding from this home, busiest expert first."""

    def choose(self, layer: int, experts: np.ndarray, view: View, home: int, load: np.ndarray) -> np.ndarray:
        """Map logical experts [T, K] of a layer to slots [T, K]; `load [M]` is rows outstanding at each."""
        counts = np.bincount(experts.ravel(), minlength=view.experts)
        load = load.astype(np.int64)
        table = np.full(view.experts, -1, dtype=np.int32)
        order = np.argsort(-counts, kind="stable")
        for expert in order[: np.count_nonzero(counts)].tolist():
            slots = view.copies.of(layer, expert)
            if not len(slots):
                continue
            modules = view.placement.module[slots]
            turn = (home + expert) % len(slots)  # homes with equal loads start at different copies
            pick = (turn + int(np.argmin(np.roll(load[modules], -turn)))) % len(slots)
            table[expert] = slots[pick]
            load[modules[pick]] += counts[expert]
        return table[experts]


@dataclass(frozen=True)
class Even:
    """All copies, each for the same share of an expert's rows: what planners of copies count on."""

    def choose(self, layer: int, experts: np.ndarray, view: View, home: int, load: np.ndarray) -> np.ndarray:
        """Map logical experts [T, K] of a layer to slots [T, K]; -1 where no copy is left.

        The rows of an expert are cut into as many runs as it has copies; homes begin with different ones.
        """
        copies, wanted = view.copies, experts.ravel()
        begin = copies.start[layer * view.experts : (layer + 1) * view.experts + 1]  # [E + 1]
        count = np.diff(begin)  # [E]
        rows = np.bincount(wanted, minlength=view.experts)  # [E]
        order = np.argsort(wanted, kind="stable")
        of = wanted[order]
        rank = np.arange(len(order)) - (np.cumsum(rows) - rows)[of]  # among the rows of its expert
        there = count[of] > 0
        of, rank = of[there], rank[there]
        run = (rank * count[of] // rows[of] + home + of) % count[of]
        slots = np.full(wanted.shape, -1, np.int32)
        slots[order[there]] = copies.slots[begin[of] + run]
        return slots.reshape(experts.shape)


@dataclass(frozen=True)
class Split:
    """Copies with the shares that leave the fullest module the fewest rows, by a linear program.

    A home goes by its own rows and by what it has outstanding: batches are dealt evenly to homes, so their
    answers are alike. Solving takes a millisecond or more, for every layer of every unit.
    """

    def choose(self, layer: int, experts: np.ndarray, view: View, home: int, load: np.ndarray) -> np.ndarray:
        """Map logical experts [T, K] of a layer to slots [T, K]; -1 where no copy is left."""
        copies, wanted = view.copies, experts.ravel()
        begin = copies.start[layer * view.experts : (layer + 1) * view.experts + 1]  # [E + 1]
        usable = copies.slots[begin[0] : begin[-1]]
        held, modules = view.placement.expert[usable], view.placement.module[usable]
        rows = np.bincount(wanted, minlength=view.experts)  # [E]
        served = np.where(np.diff(begin) > 0, rows, 0)
        share = split_load(served, held, modules, view.modules, load)
        slots = np.full(wanted.shape, -1, np.int32)
        order = np.argsort(wanted, kind="stable")
        ends = np.cumsum(rows)
        for expert in np.flatnonzero(served).tolist():
            low, high = begin[expert] - begin[0], begin[expert + 1] - begin[0]
            cuts = np.rint(np.cumsum(share[low:high]) * rows[expert]).astype(np.int64)
            cuts[-1] = rows[expert]
            given = np.repeat(usable[low:high], np.diff(cuts, prepend=0))
            slots[order[ends[expert] - rows[expert] : ends[expert]]] = given
        return slots.reshape(experts.shape)


def _nearest(view: View, home: int) -> np.ndarray:
    """The slot [L, E] of the copy that is fewest hops away, of equal ones the (home + expert)-th in turn."""
    copies = view.copies
    modules = view.placement.module[copies.slots]
    hops = np.where(
        modules == home, 0, np.where(view.module_to_node[modules] == view.module_to_node[home], 1, 2)
    )
    least = np.full(len(copies.start) - 1, 3)
    np.minimum.at(least, copies.expert, hops)
    near = hops == least[copies.expert]
    start = np.searchsorted(copies.expert[near], np.arange(len(copies.start)))
    closest = copies._replace(slots=copies.slots[near], expert=copies.expert[near], start=start)
    return closest.pick(_turn(view, home) % np.maximum(np.diff(start), 1))


def _hashed(view: View, home: int) -> np.ndarray:
    """The slot [L, E] that multiplicative hashing of expert and home picks."""
    expert = np.arange(view.layers * view.experts, dtype=np.uint64) % np.uint64(view.experts)
    mixed = (expert * np.uint64(0x9E3779B1) + np.uint64(home * 0x85EBCA77)) & np.uint64(0xFFFFFFFF)
    rank = (mixed >> np.uint64(16)).astype(np.int64)
    return view.copies.pick(rank % np.maximum(np.diff(view.copies.start), 1))


def _turn(view: View, home: int) -> np.ndarray:
    return home + np.arange(view.layers * view.experts) % view.experts
