"""Replica choice: which copy of a chosen expert computes a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.alltoall.view import View


@dataclass(frozen=True)
class Nearest:
    """The copy on the home module itself, else in its node, else any; ties spread over homes."""

    def choose(self, experts: np.ndarray, view: View, home: int, load: np.ndarray) -> np.ndarray:
        """Map logical experts [T, K] to slots [T, K]; -1 where no copy is left."""

        def closest(expert: int, slots: np.ndarray) -> int:
            modules = view.placement.slot_to_module[slots]
            hops = np.where(modules == home, 0, np.where(_same_node(view, modules, home), 1, 2))
            near = slots[hops == hops.min()]
            return int(near[(home + expert) % len(near)])

        return _static_table(("nearest", home), view, closest)[experts]


@dataclass(frozen=True)
class Hash:
    """A copy fixed by home and expert: spreads homes over copies, blind to load and distance."""

    def choose(self, experts: np.ndarray, view: View, home: int, load: np.ndarray) -> np.ndarray:
        """Map logical experts [T, K] to slots [T, K]; -1 where no copy is left."""

        def hashed(expert: int, slots: np.ndarray) -> int:
            mixed = (expert * 0x9E3779B1 + home * 0x85EBCA77) & 0xFFFFFFFF  # multiplicative hashing
            return int(slots[(mixed >> 16) % len(slots)])

        return _static_table(("hash", home), view, hashed)[experts]


@dataclass(frozen=True)
class LeastLoaded:
    """The copy whose module has the fewest rows outstanding from this home, busiest expert first."""

    def choose(self, experts: np.ndarray, view: View, home: int, load: np.ndarray) -> np.ndarray:
        """Map logical experts [T, K] to slots [T, K]; `load [M]` is outstanding rows per module."""
        counts = np.bincount(experts.ravel(), minlength=view.experts)
        load = load.astype(np.int64)
        table = np.full(view.experts, -1, dtype=np.int32)
        order = np.argsort(-counts, kind="stable")
        for expert in order[: np.count_nonzero(counts)]:
            slots = view.copies[expert]
            if not len(slots):
                continue
            modules = view.placement.slot_to_module[slots]
            turn = (home + expert) % len(slots)  # homes with equal loads start at different copies
            pick = (turn + int(np.argmin(np.roll(load[modules], -turn)))) % len(slots)
            table[expert] = slots[pick]
            load[modules[pick]] += counts[expert]
        return table[experts]


def _same_node(view: View, modules: np.ndarray, home: int) -> np.ndarray:
    return view.module_to_node[modules] == view.module_to_node[home]


def _static_table(key: object, view: View, pick) -> np.ndarray:  # type: ignore[no-untyped-def]
    table = view.memo.get(key)
    if table is None:
        table = np.array([pick(e, s) if len(s) else -1 for e, s in enumerate(view.copies)], dtype=np.int32)
        view.memo[key] = table
    return table
