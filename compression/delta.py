"""delta: rows as differences from a base row nearby."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import CodecError, WireError
from .segments import refuse_row
from .stage import ArrayStage


@dataclass(frozen=True)
class Delta(ArrayStage):
    """Each run of `rows` rows as its first row, the base, and the others' differences from it.

    It pays where neighbouring rows are alike: differences are smaller, so what quantises them has finer
    scales. Error: rounding of the difference and of the sum, at most 2^-23 * (|x| + |base|), plus what the
    later stages make of the row and of the base. Not row-local: a row needs its base. NaN and Inf are
    refused, and so are differences beyond the float32 range.
    """

    rows: int = 16

    stage_name = "delta"
    lossless = False
    row_local = False
    dtype = np.dtype(np.float32)

    def __post_init__(self) -> None:
        if type(self.rows) is not int or not 2 <= self.rows <= 65536:
            raise CodecError(f"delta: rows is {self.rows!r}, allowed is a whole number from 2 to 65536")

    def encode(self, x: np.ndarray) -> np.ndarray:
        y = np.empty(x.shape, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(x), self.rows):
                run = slice(start + 1, start + self.rows)
                y[start] = x[start]
                np.subtract(x[run], x[start], out=y[run])
        if y.size and not np.maximum.reduce(np.abs(y), axis=None) < np.inf:
            if not np.isfinite(x).all():
                raise refuse_row(x, "delta")
            row = int(np.argmin(np.isfinite(y).all(axis=1)))
            raise CodecError(f"delta: row {row} differs from its base by more than float32 can say", row)
        return y

    def decode(self, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        x = np.empty(y.shape, np.float32) if out is None else out
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(y), self.rows):
                run = slice(start + 1, start + self.rows)
                base = x[start] = y[start]
                np.add(y[run], base, out=x[run])
        if x.size and not np.isfinite(x).all():
            raise WireError("delta: a sum is NaN or Inf, which no encoder writes")
        return x
