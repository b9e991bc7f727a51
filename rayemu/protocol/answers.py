"""The expert outputs that have come for a unit's pairs, left where they lie until they are summed up."""

from __future__ import annotations

import numpy as np

from rayemu.numerics import scratch


class Answers:
    """Which row of which array is the output of each pair; those that have none yet are zeros."""

    def __init__(self, pairs: int, choices: int, width: int) -> None:
        self.choices = choices
        self._arrays = [np.zeros((1, width), np.float32)]
        self._of = np.zeros(pairs, np.int32)  # [n] number of the array
        self._at = np.zeros(pairs, np.int32)  # [n] row of it

    def take(self, pairs: np.ndarray, rows: np.ndarray, index: np.ndarray | None) -> None:
        """Note that `rows` [n, D], or those at `index` [n] of `rows`, are the outputs of pairs [n]."""
        self._of[pairs] = len(self._arrays)
        self._at[pairs] = np.arange(len(pairs)) if index is None else index
        self._arrays.append(rows)

    def rows(self, low: int, high: int) -> np.ndarray:
        """The outputs [t, K, D] of tokens [low, high), in this thread's scratch memory."""
        part = slice(low * self.choices, high * self.choices)
        of, at = self._of[part], self._at[part]
        width = self._arrays[0].shape[1]
        whole = scratch("answers", len(of), width)
        order = np.argsort(of, kind="stable")  # positions, array after array
        ends = np.cumsum(np.bincount(of, minlength=len(self._arrays)))
        begin = 0
        for number in np.flatnonzero(np.diff(ends, prepend=0)).tolist():
            end = int(ends[number])
            places = order[begin:end]
            whole[places] = np.take(self._arrays[number], at[places], axis=0, mode="clip")
            begin = end
        return whole.reshape(high - low, self.choices, width)
