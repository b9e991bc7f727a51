"""An exchange in phases without conflicts: in each, no module sends to two others nor receives from two.

Modules begin a phase together, and it lasts as long as its largest transfer. M modules, P phases.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Phases(NamedTuple):
    """Phases, the longest first, each a permutation of the modules or part of one."""

    receiver: np.ndarray  # [P, M] int32, to whom each module sends; -1: it sends nothing
    sent: np.ndarray  # [P, M] int64, how many bytes each module sends
    duration: np.ndarray  # [P] int64, bytes that pass through a port in the time that the phase takes

    def total(self) -> int:
        """Bytes through one port in the time that all phases take, one after the other."""
        return int(self.duration.sum())


def permutation_phases(bytes_between: np.ndarray) -> Phases:
    """Phases that take `bytes_between [M, M]` as long as its fullest port: the largest row or column sum.

    Row sends to column; the diagonal counts like the rest, so set it to 0 where a module needs no port to
    send to itself. The matrix is filled up with idle time until all rows and columns have that sum, and is
    then a sum of permutations (Birkhoff 1946, von Neumann 1953). Each is found as a perfect matching among
    the entries above a threshold, which is halved when there is none any more: so large transfers come first
    and are seldom cut. There are at most (M - 1)^2 + 1 phases.

    Raises ValueError unless the matrix is square and holds whole numbers of bytes, 0 or more, of which M
    times the largest sum stays below 2^62.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    left = _checked(bytes_between)  # what is still to be sent
    modules = len(left)
    filled = left + _idle(left)
    rows = np.arange(modules)
    receivers, sent, durations = [], [], []
    threshold = 1 << 62
    while modules and (most := int(filled.max())):
        threshold = min(threshold, 1 << (most.bit_length() - 1))
        there = filled >= threshold
        receiver = np.full(modules, -1)
        if there.any(axis=0).all() and there.any(axis=1).all():
            receiver = maximum_bipartite_matching(csr_matrix(there), perm_type="column")
        if (receiver < 0).any():
            threshold //= 2
            continue
        duration = int(filled[rows, receiver].min())
        real = np.minimum(left[rows, receiver], duration)
        filled[rows, receiver] -= duration
        left[rows, receiver] -= real
        receivers.append(np.where(real > 0, receiver, -1))
        sent.append(real)
        durations.append(duration)
    return _longest_first(receivers, sent, durations, modules)


def rotation_phases(bytes_between: np.ndarray) -> Phases:
    """Phases of the order that needs no knowledge of others: in phase s module m sends to m + s, modulo M.

    At most M of them. The total is what the largest transfers of the phases sum to, which is up to M times
    what `permutation_phases` takes. Raises ValueError as that does.
    """
    matrix = _checked(bytes_between)
    modules = len(matrix)
    rows = np.arange(modules)
    receiver = (rows + rows[:, None]) % max(modules, 1)  # [P, M]
    sent = matrix[rows, receiver]
    used = sent.any(axis=1)
    receiver = np.where(sent > 0, receiver, -1)
    return _longest_first(receiver[used], sent[used], sent[used].max(axis=1, initial=0), modules)


def _checked(bytes_between: np.ndarray) -> np.ndarray:
    given = np.asarray(bytes_between)
    if given.ndim != 2 or given.shape[0] != given.shape[1]:
        raise ValueError(f"bytes_between: shape {given.shape} is not allowed; allowed: square, [M, M]")
    numbers = given.astype(np.float64)
    whole = np.isfinite(numbers).all() and (numbers >= 0).all() and (numbers == np.floor(numbers)).all()
    if not whole:
        raise ValueError("bytes_between: holds what is no number of bytes; allowed: whole numbers from 0 on")
    if len(given) * max(numbers.sum(axis=0).max(initial=0), numbers.sum(axis=1).max(initial=0)) >= 2**62:
        raise ValueError("bytes_between: M times the largest sum is 2^62 or more; count in larger units")
    return given.astype(np.int64)


def _idle(matrix: np.ndarray) -> np.ndarray:
    """Idle time [M, M] that brings all row and column sums to the largest of them, by the north-west rule."""
    most = max(matrix.sum(axis=0).max(initial=0), matrix.sum(axis=1).max(initial=0))
    row_ends, column_ends = np.cumsum(most - matrix.sum(axis=1)), np.cumsum(most - matrix.sum(axis=0))
    begins = np.maximum(np.append(0, row_ends[:-1])[:, None], np.append(0, column_ends[:-1]))
    ends = np.minimum(row_ends[:, None], column_ends)
    idle: np.ndarray = np.maximum(ends - begins, 0)
    return idle


def _longest_first(receiver: ArrayLike, sent: ArrayLike, duration: ArrayLike, modules: int) -> Phases:
    durations = np.asarray(duration, np.int64).reshape(-1)
    order = np.argsort(-durations, kind="stable")
    shape = (len(durations), modules)
    receivers = np.asarray(receiver, np.int32).reshape(shape)
    return Phases(receivers[order], np.asarray(sent, np.int64).reshape(shape)[order], durations[order])
