"""delta: rows as differences from a base row nearby."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .buffers import New
from .errors import CodecError, WireError
from .segments import Buffer, check_finite, refuse_row, view
from .stage import ArrayStage


@dataclass(frozen=True)
class Delta(ArrayStage):
    """Differences from the first row of each run of `rows` rows, which travels as it is beside them.

    It pays where neighbouring rows are alike: differences are smaller, so what quantises them has finer
    scales. Error: rounding of the difference and of the sum, at most 2^-23 * (|x| + |base|), plus what the
    later stages make of the difference; base rows are exact. Not row-local: a row needs its base. NaN and
    Inf are refused, and so are differences beyond the float32 range.
    Own segment: base rows float32 [ceil(n / rows), D].
    """

    rows: int = 16

    stage_name = "delta"
    lossless = False
    row_local = False
    dtype = np.dtype(np.float32)
    sides = 1

    def __post_init__(self) -> None:
        if type(self.rows) is not int or not 2 <= self.rows <= 65536:
            raise CodecError(f"delta: rows is {self.rows!r}, allowed is a whole number from 2 to 65536")

    def encode_sides(self, x: np.ndarray, new: New, new_side: New) -> tuple[np.ndarray, list[Buffer]]:
        y = new(x.shape, np.float32)
        bases = new_side((-(-len(x) // self.rows), x.shape[1]), np.float32)
        np.copyto(bases, x[:: self.rows])
        with np.errstate(over="ignore", invalid="ignore"):
            for number, base in enumerate(bases):
                run = slice(number * self.rows, (number + 1) * self.rows)
                np.subtract(x[run], base, out=y[run])
        if y.size and not np.maximum.reduce(np.abs(y), axis=None) < np.inf:
            if not np.isfinite(x).all():
                raise refuse_row(x, "delta")
            row = int(np.argmin(np.isfinite(y).all(axis=1)))
            raise CodecError(f"delta: row {row} differs from its base by more than float32 can say", row)
        return y, [bases]

    def decode_sides(
        self, y: np.ndarray, sides: Sequence[Buffer], shape: tuple[int, int], out: np.ndarray | None
    ) -> np.ndarray:
        n, width = shape
        count = -(-n // self.rows)
        bases = view(sides[0], np.float32, count * width, "delta bases").reshape(count, width)
        check_finite(bases.view(np.uint32), 0x7F800000, "delta")
        x = np.empty(shape, np.float32) if out is None else out
        with np.errstate(over="ignore", invalid="ignore"):
            for number, base in enumerate(bases):
                run = slice(number * self.rows, (number + 1) * self.rows)
                np.add(y[run], base, out=x[run])
        if x.size and not np.isfinite(x).all():
            raise WireError("delta: a sum is NaN or Inf, which no encoder writes")
        return x

    def max_side_bytes(self, shape: tuple[int, int]) -> list[int]:
        return [4 * -(-shape[0] // self.rows) * shape[1]]
