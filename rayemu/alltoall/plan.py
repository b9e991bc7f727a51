"""Exchange plans: which rows travel together, to whom, in which order. Pure arrays.

A *pair* is one (token, choice); pair p belongs to token p // K. A *lot* is a run of pairs for one expert
on one module. A *parcel* is what one frame carries to its first hop.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import sqrt

import numpy as np

LEAST_ROWS = 64  # of a slice, unless it is said otherwise
FRAMES_BYTES = 1 << 20  # whose combining takes as long as a frame there and back, some 0.5 ms


@dataclass(frozen=True, eq=False)
class Parcel:
    """Pairs that travel in one frame, sorted by module and expert, cut into lots."""

    hop: int
    pairs: np.ndarray  # [n] int64, indices into the unit's T * K pairs
    lots: np.ndarray  # [m, 3] int32: module, expert and pairs of each lot, in the order of the pairs

    @property
    def modules(self) -> np.ndarray:
        """Return the module of each pair [n]."""
        return np.repeat(self.lots[:, 0], self.lots[:, 2])


def plan_parcels(
    pairs: np.ndarray, hops: np.ndarray, modules: np.ndarray, experts: np.ndarray, chunk_pairs: int
) -> list[Parcel]:
    """Group pairs by first hop, module and expert; what is more than `chunk_pairs` for a hop is cut evenly.

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
    starts = np.concatenate([[0], np.flatnonzero(key[1:] != key[:-1]) + 1, [len(key)]])  # of the lots
    lots = np.empty((len(starts) - 1, 3), np.int32)
    rest, lots[:, 1] = np.divmod(key[starts[:-1]], width)
    hop, lots[:, 0] = np.divmod(rest, span)
    lots[:, 2] = np.diff(starts)
    parcels: list[Parcel] = []
    for first, last in itertools.pairwise([0, *(np.flatnonzero(hop[1:] != hop[:-1]) + 1), len(hop)]):
        begin, end, to = int(starts[first]), int(starts[last]), int(hop[first])
        parts = -(-(end - begin) // chunk_pairs)
        if parts == 1:
            parcels.append(Parcel(to, pairs[begin:end], lots[first:last]))
            continue
        cuts = [begin - (begin - end) * part // parts for part in range(parts + 1)]  # rounded up
        for low, high in itertools.pairwise(cuts):
            inside = np.clip(starts[first : last + 1], low, high)
            part = lots[first:last].copy()
            part[:, 2] = np.diff(inside)
            parcels.append(Parcel(to, pairs[low:high], part[part[:, 2] > 0]))
    return parcels


def count_slices(tokens: int, modules: int, min_rows: int | None, pairs_bytes: float = 0.0) -> int:
    """How many slices T tokens are cut into: up to `modules`, of at least `min_rows` rows (or one).

    Without `min_rows` it is as many as the work at homes is worth. `pairs_bytes` are those of the rows that
    come back to all homes together, one for each choice. Few homes take long to sum them up; with many there
    are more frames, one there and one back between each home and each module. If combining takes w seconds
    in all and such a pair of frames f, w / homes + f * homes * modules is least at sqrt(w / f / modules).
    """
    if min_rows is None:
        worth = max(1, round(sqrt(pairs_bytes / FRAMES_BYTES / modules)))
        return max(1, min(modules, tokens // LEAST_ROWS, worth))
    return max(1, min(modules, tokens // max(min_rows, 1)))


def cut_slices(
    tokens: int, modules: int, min_rows: int | None, pairs_bytes: float = 0.0
) -> list[tuple[int, int]]:
    """Cut T tokens into even slices, see `count_slices`."""
    slices = count_slices(tokens, modules, min_rows, pairs_bytes)
    edges = [tokens * i // slices for i in range(slices + 1)]
    return list(itertools.pairwise(edges))


def cut_micro_batches(rows: int, count: int) -> list[tuple[int, int]]:
    """Cut a slice's rows into at most `count` even, non-empty micro-batches."""
    count = max(1, min(count, rows))
    edges = [rows * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))
