"""Exchange plans: which rows travel together, to whom, in which order. Pure arrays.

A *pair* is one (token, choice); pair p belongs to token p // K. A *lot* is a run of pairs for one expert
on one module. A *parcel* is what one frame carries to its first hop.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Parcel:
    """Pairs that travel in one frame, sorted by module and expert, cut into lots."""

    hop: int
    pairs: np.ndarray  # [n] int64, indices into the unit's T * K pairs
    lots: list[list[int]]  # (module, expert, pairs) of each lot, in the order of the pairs

    @property
    def modules(self) -> np.ndarray:
        """Return the module of each pair [n]."""
        table = np.array(self.lots)
        return np.repeat(table[:, 0], table[:, 2])


def plan_parcels(
    pairs: np.ndarray, hops: np.ndarray, modules: np.ndarray, experts: np.ndarray, chunk_pairs: int
) -> list[Parcel]:
    """Group pairs by first hop, module and expert, each group at most `chunk_pairs` long.

    All inputs are [n]: pair index, first hop, module and logical expert. Sorting is stable, so pairs of
    one lot keep token order. Parcels come by hop; `rayemu.alltoall.order` says which is sent first.
    """
    if not len(pairs):
        return []
    width = int(experts.max()) + 1
    span = int(modules.max()) + 1
    key = (hops.astype(np.int64) * span + modules) * width + experts
    order = np.argsort(key, kind="stable")
    key, pairs = key[order], pairs[order]
    cuts = (np.flatnonzero(key[1:] != key[:-1]) + 1).tolist()
    starts, ends = [0, *cuts], [*cuts, len(key)]
    parcels: list[Parcel] = []
    hop, begin = -1, 0
    lots: list[list[int]] = []
    for lot, low, high in zip(key[starts].tolist(), starts, ends, strict=True):
        rest, expert = divmod(lot, width)
        lot_hop, module = divmod(rest, span)
        while low < high:
            if lots and (lot_hop != hop or low - begin == chunk_pairs):
                parcels.append(Parcel(hop, pairs[begin:low], lots))
                begin, lots = low, []
            hop = lot_hop
            taken = min(high, begin + chunk_pairs) - low
            lots.append([module, expert, taken])
            low += taken
    parcels.append(Parcel(hop, pairs[begin:], lots))
    return parcels


def cut_slices(tokens: int, modules: int, min_rows: int) -> list[tuple[int, int]]:
    """Cut T tokens into at most `modules` even slices of at least `min_rows` rows (one if T is small)."""
    slices = max(1, min(modules, tokens // max(min_rows, 1)))
    edges = [tokens * i // slices for i in range(slices + 1)]
    return list(itertools.pairwise(edges))


def cut_micro_batches(rows: int, count: int) -> list[tuple[int, int]]:
    """Cut a slice's rows into at most `count` even, non-empty micro-batches."""
    count = max(1, min(count, rows))
    edges = [rows * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))
