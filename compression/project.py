"""project: rows as coordinates in the few directions that hold most of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .buffers import New, placed
from .errors import CodecError, WireError
from .segments import Buffer, check_finite, refuse_row, view
from .stage import ArrayStage


@dataclass(frozen=True)
class Project(ArrayStage):
    """Coordinates in the `rank` leading right singular vectors of the rows, which travel beside them.

    The best approximation of that rank (Eckart and Young): the squared error of a lossless rest is the sum of
    the other squared singular values. Rows of independent values lose 1 - rank / D of their energy; it pays
    for rows that lie in few directions, and for many more rows than `rank`. Not row-local: the directions
    belong to the rows together. NaN and Inf are refused, and so are rows of more than 1e15.
    Own segment: directions float32 [r, D], r = min(rank, n, D).
    """

    rank: int = 64

    stage_name = "project"
    lossless = False
    row_local = False
    dtype = np.dtype(np.float32)
    sides = 1

    def __post_init__(self) -> None:
        if type(self.rank) is not int or not 1 <= self.rank <= 65536:
            raise CodecError(f"project: rank is {self.rank!r}, allowed is a whole number from 1 to 65536")

    def inner_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        return shape[0], min(self.rank, *shape)

    def encode_sides(self, x: np.ndarray, new: New, new_side: New) -> tuple[np.ndarray, list[Buffer]]:
        n, rank = self.inner_shape(x.shape)  # type: ignore[arg-type]
        if x.size and not np.maximum.reduce(np.abs(x), axis=None) < LARGEST:
            if not np.isfinite(x).all():
                raise refuse_row(x, "project")
            row = int(np.argmax((np.abs(x) >= LARGEST).any(axis=1)))
            raise CodecError(f"project: row {row} holds a value of {LARGEST:g} or more", row)
        directions = _leading(x, rank)
        y = new((n, rank), np.float32)
        np.matmul(x, directions.T, out=y)
        return y, [placed(directions, new_side)]

    def decode_sides(
        self, y: np.ndarray, sides: Sequence[Buffer], shape: tuple[int, int], out: np.ndarray | None
    ) -> np.ndarray:
        rank = self.inner_shape(shape)[1]
        directions = view(sides[0], np.float32, rank * shape[1], "project directions")
        check_finite(directions.view(np.uint32), 0x7F800000, "project")
        with np.errstate(over="ignore", invalid="ignore"):
            x = y @ directions.reshape(rank, shape[1])
        if x.size and not np.isfinite(x).all():
            raise WireError("project: a value is NaN or Inf, which no encoder writes")
        if out is None:
            return x
        np.copyto(out, x)
        return out

    def max_side_bytes(self, shape: tuple[int, int]) -> list[int]:
        return [4 * self.inner_shape(shape)[1] * shape[1]]


LARGEST = 1e15  # squares of more, summed over rows and columns, could leave the float32 range


def _leading(x: np.ndarray, rank: int) -> np.ndarray:
    """The `rank` leading right singular vectors of x [n, D], as rows: float32 [rank, D]."""
    if not x.size:
        return np.zeros((rank, x.shape[1]), np.float32)
    # Of the smaller of the two products of x with itself, in float64: squaring halves the digits.
    wide = x.astype(np.float64)
    if x.shape[1] <= x.shape[0]:
        vectors = np.linalg.eigh(wide.T @ wide)[1][:, ::-1].T
        return np.ascontiguousarray(vectors[:rank], np.float32)
    left = np.linalg.eigh(wide @ wide.T)[1][:, ::-1]
    across = left[:, :rank].T @ wide
    # Orthonormal also where singular values vanish.
    return np.ascontiguousarray(np.linalg.qr(across.T)[0].T, np.float32)
