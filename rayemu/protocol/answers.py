"""The expert outputs that have come for a unit's pairs, left where they lie until they are summed up."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from rayemu.numerics import scratch

FEW_BYTES = 1 << 19  # of all rows: so few stay in the cache anyway, and are put in order as they come


class Answers:
    """Which row of which array is the output of each pair; those that have none yet are zeros."""

    def __init__(self, pairs: int, choices: int, width: int) -> None:
        self.choices = choices
        few = pairs * width * 4 <= FEW_BYTES
        self._whole = np.zeros((pairs, width), np.float32) if few else None
        self._arrays = [np.zeros((1, width), np.float32)]
        self._of = np.zeros(pairs, np.int32)  # [n] number of the array
        self._at = np.zeros(pairs, np.int32)  # [n] row of it

    def take(self, pairs: np.ndarray, rows: np.ndarray, index: np.ndarray | None) -> None:
        """Note that `rows` [n, D], or those at `index` [n] of `rows`, are the outputs of pairs [n]."""
        if self._whole is not None:
            self._whole[pairs] = rows if index is None else rows[index]
            return
        self._of[pairs] = len(self._arrays)
        self._at[pairs] = np.arange(len(pairs)) if index is None else index
        self._arrays.append(rows)

    def terms(self, low: int, high: int) -> Iterator[np.ndarray]:
        """The outputs of each choice in turn, [t, D] of tokens [low, high), in this thread's scratch memory.

        Rows are fetched array after array, and then put in order in the cache.
        """
        part = slice(low * self.choices, high * self.choices)
        if self._whole is not None:
            yield from self._whole[part].reshape(high - low, self.choices, -1).swapaxes(0, 1)
            return
        order = np.argsort(self._of[part], kind="stable")
        of, at = self._of[part][order], self._at[part][order]
        place = np.empty(len(order), np.intp)  # of each pair among the fetched
        place[order] = np.arange(len(order))
        width = self._arrays[0].shape[1]
        fetched, term = scratch("fetched", len(of), width), scratch("term", high - low, width)
        begins = np.flatnonzero(np.diff(of, prepend=-1)).tolist()
        for begin, end in pairwise([*begins, len(of)]):
            rows = self._arrays[of[begin]]
            np.take(rows, at[begin:end], axis=0, out=fetched[begin:end], mode="clip")
        for choice in np.ascontiguousarray(place.reshape(-1, self.choices).T):
            yield np.take(fetched, choice, axis=0, out=term, mode="clip")
