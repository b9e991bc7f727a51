"""Ways to make a matrix product whose rows do not depend on their company, one per habit of BLAS kernels.

A row must come out of an expert with the same bits whether it arrives alone, in a micro-batch or in the
whole batch; otherwise no distributed run could equal the reference. BLAS promises nothing of the kind. Each
way here keeps to paths of a BLAS on which it holds; `products.py` finds out which of them holds here.

Shapes: x [M, K] rows, w [K, N] C-contiguous, out [M, N]; rows of x and out may be strided.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, Protocol

import numpy as np

from rayemu.numerics.blas import one_thread
from rayemu.numerics.scratch import F32, padded, scratch

_SMALL = 1_000_000  # M*N*K up to which OpenBLAS may choose its small-matrix kernels
_NARROW = 64  # columns below which rows are computed in tiles
_TILE = 16  # rows of a tile
_BLOCK = 256  # K that no kernel cuts into blocks
_UNROLL = 32  # K whose halves are whole unrolled steps of every kernel
_MOST_ROWS = 512 * 12  # that are padded or mended at once: bounds what a thread keeps


class Way(Protocol):
    """One way to make products."""

    name: ClassVar[str]

    @property
    def multiple(self) -> int:
        """Rows that are a multiple of it are computed without padding."""

    @property
    def alone(self) -> bool:
        """Whether it holds only while BLAS uses one thread."""

    def __hash__(self) -> int:
        """Ways that are equal give equal products."""

    def product(self, x: F32, w: F32, out: F32) -> None:
        """Write x @ w to out, for at least one row."""


@dataclass(frozen=True)
class PaddedRows:
    """Plain products, with zero rows appended where a small product would take another path.

    What was found for OpenBLAS (0.3.27 to 0.3.34, Sandybridge and SkylakeX kernels, 1 to 4 threads):
    - one row goes to another kernel (gemv), and a product with M*N*K <= 10^6 may go to a small-matrix kernel:
      both round differently. Zero rows are appended until neither is taken.
    - with few columns (N < 64) the bits of a row can depend on M and on the threads: such products are cut in
      tiles of a fixed number of rows, which are all computed alike.
    - one thread and several threads cut a long K into different blocks unless K is a multiple of the kernel's
      unrolling: what exceeds a multiple is multiplied apart and added.
    - transposed weights round differently for small M: weights are C-contiguous [K, N].
    The kernels of Prescott and Nehalem keep to this with one thread only, and if the rows are a multiple of
    8, since they compute them in fours and eights and what is left over otherwise.
    """

    multiple: int = 1
    alone: bool = False
    name: ClassVar = "padded rows"

    def product(self, x: F32, w: F32, out: F32) -> None:
        """Write x @ w to out."""
        inner = x.shape[1]
        if inner > _BLOCK and inner % _UNROLL:
            whole = inner - inner % _UNROLL - _UNROLL
            self._product(x[:, :whole], w[:whole], out)
            rest = np.empty(out.shape, np.float32)
            self._product(x[:, whole:], w[whole:], rest)
            out += rest
        else:
            self._product(x, w, out)

    def _product(self, x: F32, w: F32, out: F32) -> None:
        """The same for a K that all thread counts treat alike."""
        rows, inner = x.shape
        columns = w.shape[1]
        if rows > _MOST_ROWS and (columns < _NARROW or rows % self.multiple):
            for start in range(0, rows, _MOST_ROWS):
                part = slice(start, start + _MOST_ROWS)
                self._product(x[part], w, out[part])
            return
        if columns < _NARROW:
            if columns == 1:  # one column would take another kernel, too
                w = np.hstack((w, np.zeros_like(w)))
            enough = -(-rows // _TILE) * _TILE
            tiles = padded(x, enough).reshape(-1, _TILE, inner)
            out[...] = np.matmul(tiles, w).reshape(enough, w.shape[1])[:rows, :columns]
            return
        enough = max(rows, 2, _SMALL // (columns * inner) + 1)
        enough = -(-enough // self.multiple) * self.multiple
        if enough == rows:
            np.matmul(x, w, out=out)
        else:
            out[...] = np.matmul(padded(x, enough), w)[:rows]


@dataclass(frozen=True)
class MendedEdges:
    """Plain products in whole tiles of rows, and once more the columns at whose place rows are unlike.

    OpenBLAS's kernels for AVX2 (Haswell, Zen) compute tiles of 12 rows. Of the columns, which are its vector
    lanes, it takes blocks of up to `block`; the first and the last 8 lanes of each it sums for half the rows
    of a tile in two chains instead of one (the first half; at the end of a block of an odd number of eights
    the second). So rows are padded to whole tiles, and those columns of those rows are computed again, as the
    inner columns of a narrow product between 8 columns of zeros on each side. What remains is one chain in
    the order of K for every element: rows *and* columns may come in any company. With several threads BLAS
    would cut the columns elsewhere.
    """

    block: int
    multiple: ClassVar[int] = 12
    alone: ClassVar[bool] = True
    name: ClassVar = "mended edges"

    _HALF_FROM: ClassVar = 96  # rows from which it pays to pick out those that are unlike

    def product(self, x: F32, w: F32, out: F32) -> None:
        """Write x @ w to out."""
        if w.shape[1] == 1:  # would take another kernel
            w = np.hstack((w, np.zeros_like(w)))
        for start in range(0, len(x), _MOST_ROWS):  # far fewer than make BLAS begin a new round of tiles
            part = slice(start, start + _MOST_ROWS)
            self._product(x[part], w, out[part])

    def _product(self, x: F32, w: F32, out: F32) -> None:
        rows, columns = out.shape
        enough = -(-rows // self.multiple) * self.multiple
        if enough == rows and columns == w.shape[1]:
            y = out
        else:
            x, y = padded(x, enough), scratch("whole", enough, w.shape[1])
        np.matmul(x, w, out=y)
        self._mend(x, w, y)
        if y is not out:
            out[...] = y[:rows, :columns]

    def _mend(self, x: F32, w: F32, y: F32) -> None:
        first_half, products = edges(w.shape[1], self.block)
        if first_half and len(x) >= self._HALF_FROM:
            tile, half = self.multiple, self.multiple // 2
            unlike = x.reshape(-1, tile, x.shape[1])[:, :half]  # [M/12, 6, K]
            rows = scratch("unlike", -(-len(x) // (2 * tile)) * tile, x.shape[1])
            rows[: len(x) // 2].reshape(unlike.shape)[...] = unlike
            rows[len(x) // 2 :] = 0
            target = y.reshape(-1, tile, y.shape[1])[:, :half]  # [M/12, 6, N]
        else:
            rows, target = x, y[None]
        for width, runs in products:
            narrow = scratch("edges", len(w), width)  # [K, width]
            narrow[:, :_LANES] = 0
            narrow[:, -_LANES:] = 0
            for low, high, at in runs:
                narrow[:, at : at + high - low] = w[:, low:high]
            again = np.matmul(rows, narrow, out=scratch("again", len(rows), width))
            again = again[: target.shape[0] * target.shape[1]].reshape(*target.shape[:2], width)
            for low, high, at in runs:
                target[..., low:high] = again[..., at : at + high - low]


_LANES = 8
Runs = tuple[tuple[int, int, int], ...]


@lru_cache(256)
def edges(columns: int, block: int) -> tuple[bool, tuple[tuple[int, Runs], ...]]:
    """The columns that `MendedEdges` computes again, as narrow products of at most `block` columns.

    First comes whether only the first halves of tiles need it. Each product is (its width with 8 zero columns
    on each side, runs of columns (low, high, where in it)). OpenBLAS (driver/level3/level3.c) cuts off
    `block` columns while twice as many are left, then two halves.
    """
    first_half = True
    found: list[tuple[int, int]] = []
    start = 0
    while start < columns:
        left = columns - start
        size = block if left >= 2 * block else -(-(left // 2) // _LANES) * _LANES if left > block else left
        if size >= 2 * _LANES:
            last = start + size // _LANES * _LANES - _LANES
            first_half &= size // _LANES % 2 == 0
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], start + _LANES)
            else:
                found.append((start, start + _LANES))
            found.append((last, last + _LANES))
        start += size
    products: list[tuple[int, Runs]] = []
    runs: list[tuple[int, int, int]] = []
    at = _LANES
    for low, high in found:
        if at + (high - low) + _LANES > block:
            products.append((at + _LANES, tuple(runs)))
            runs, at = [], _LANES
        runs.append((low, high, at))
        at += high - low
    if runs:
        products.append((at + _LANES, tuple(runs)))
    return first_half, tuple(products)


def edge_block() -> int | None:
    """The columns of the blocks of this BLAS, seen from where rows of a tile are unlike; None if nowhere."""
    inner, columns = 64, 4096
    rng = np.random.default_rng(22)
    x = np.repeat(rng.standard_normal((1, inner), dtype=np.float32), MendedEdges.multiple, axis=0)  # [12, K]
    with one_thread():
        y = x @ rng.standard_normal((inner, columns), dtype=np.float32)
    unlike = np.flatnonzero((y[0] != y[-1]).reshape(-1, _LANES).any(axis=1)).tolist()  # lanes, by eights
    for low, high in pairwise(unlike):
        if low and high == low + 1:
            return high * _LANES
    return None


@dataclass(frozen=True)
class ByElement:
    """Every element as a chain of multiplications and additions in the order of K, without BLAS.

    Exact by construction: NumPy computes each element of a sum or product of arrays by itself. Some 3 to 5
    GFLOP/s, so it is the last resort.
    """

    multiple: ClassVar[int] = 1
    alone: ClassVar[bool] = True
    name: ClassVar = "element by element"

    _ELEMENTS: ClassVar = 1 << 16  # of the output at a time, to stay in the cache

    def product(self, x: F32, w: F32, out: F32) -> None:
        """Write x @ w to out."""
        step = max(1, self._ELEMENTS // w.shape[1])
        for start in range(0, len(x), step):
            rows = x[start : start + step]
            y, term = np.zeros((2, len(rows), w.shape[1]), np.float32)
            for k in range(len(w)):
                np.multiply(rows[:, k : k + 1], w[k], out=term)
                np.add(y, term, out=y)
            out[start : start + step] = y
