"""Matrix products whose rows do not depend on their neighbours, to the bit.

A row must come out of an expert with the same bits whether it arrives alone, in a micro-batch or in the whole
batch; otherwise no distributed run could equal the reference. BLAS promises nothing of the kind, so
`exact_matmul` keeps it on paths where it holds, and `row_invariant` measures whether it does here.

What was found for OpenBLAS (0.3.27 to 0.3.34, SkylakeX and Sandybridge kernels, 1 to 4 threads):
- one row goes to another kernel (gemv), and a product with M*N*K <= 10^6 may go to a small-matrix kernel:
  both round differently. Zero rows are appended until neither is taken.
- with few columns (N < 64) the bits of a row can depend on M and on the threads: such products are cut in
  tiles of a fixed number of rows, which are all computed alike.
- one thread and several threads cut a long K into different blocks unless K is a multiple of the kernel's
  unrolling: what exceeds a multiple is multiplied apart and added.
- transposed weights round differently for small M: weights are C-contiguous [K, N].
The Haswell and Zen kernels treat rows of a block unequally whatever the padding; there `row_invariant()` is
False and OPENBLAS_CORETYPE=Sandybridge in the environment, before NumPy is imported, makes it True.

Shapes: x [M, K] rows, w [K, N], y [M, N].
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

_SMALL = 1_000_000  # M*N*K up to which OpenBLAS may choose its small-matrix kernels
_NARROW = 64  # columns below which rows are computed in tiles
_TILE = 16  # rows of a tile
_BLOCK = 256  # K that no kernel cuts into blocks
_UNROLL = 32  # K whose halves are whole unrolled steps of every kernel


def exact_matmul(x: F32, w: F32, out: F32 | None = None) -> F32:
    """x @ w with each row's bits independent of the other rows; x [M, K] float32, w [K, N] C-contiguous.

    Rows of `x` and `out` may be strided as long as each row is contiguous. Returns `out` if given.
    """
    inner = x.shape[1]
    if inner > _BLOCK and inner % _UNROLL:
        whole = inner - inner % _UNROLL - _UNROLL
        y = _product(x[:, :whole], w[:whole], out)
        y += _product(x[:, whole:], w[whole:], None)
        return y
    return _product(x, w, out)


def _product(x: F32, w: F32, out: F32 | None) -> F32:
    """x @ w for a K that all thread counts treat alike."""
    rows, inner = x.shape
    columns = w.shape[1]
    if columns < _NARROW:
        padded = -(-rows // _TILE) * _TILE
        if columns == 1:  # one column would take another kernel, too
            w = np.hstack((w, np.zeros_like(w)))
        tiles = _zero_padded(x, padded).reshape(-1, _TILE, inner)
        y = np.matmul(tiles, w).reshape(padded, w.shape[1])[:rows]  # [M, N]
        if columns == 1:
            y = np.ascontiguousarray(y[:, :1])
    else:
        needed = max(2, _SMALL // (columns * inner) + 1)
        if rows >= needed:
            return np.matmul(x, w, out=out)
        if not rows:
            return np.empty((0, columns), np.float32) if out is None else out
        y = np.matmul(_zero_padded(x, needed), w)[:rows]  # [M, N]
    if out is None:
        return y
    out[...] = y
    return out


def _zero_padded(x: F32, rows: int) -> F32:
    """x itself when it has `rows` contiguous rows, else a copy with zero rows appended."""
    if len(x) == rows and x.flags.c_contiguous:
        return x
    padded = np.zeros((rows, x.shape[1]), np.float32)
    padded[: len(x)] = x
    return padded


def row_invariant() -> bool:
    """Whether `exact_matmul` gives a row the same bits in any company on this machine; takes < 100 ms.

    Products of several widths, made with this process's BLAS threads, are compared with those of the same
    rows alone, in groups and all together, made with one thread.
    """
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(20)
    products = []
    for inner, columns in ((16, 32), (64, 8), (100, 77), (256, 1024), (1000, 10), (200, 768), (550, 200)):
        x = rng.standard_normal((201, inner), dtype=np.float32)  # [M, K]
        w = rng.standard_normal((inner, columns), dtype=np.float32)  # [K, N]
        products.append((x, w, exact_matmul(x, w)))
    with threadpool_limits(1, user_api="blas"):
        return all(_same_in_parts(*product) for product in products)


def _same_in_parts(x: F32, w: F32, whole: F32) -> bool:
    """Whether parts of x [M, K], down to single rows, give the bits of `whole` = x @ w."""
    order = np.random.default_rng(21).permutation(len(x))
    bounds = (0, 1, 3, 6, 11, 18, 30, 46, 110, len(x))
    groups = [np.arange(len(x)), *(order[a:b] for a, b in pairwise(bounds))]
    return all(np.array_equal(exact_matmul(x[group], w), whole[group]) for group in groups)


def blas_info() -> list[dict[str, Any]]:
    """The BLAS libraries in this process: name, version, kernel architecture and threads."""
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    libraries = [entry for entry in threadpool_info() if entry.get("user_api") == "blas"]
    keys = ("internal_api", "version", "architecture", "num_threads", "filepath")
    return [{key: entry.get(key) for key in keys} for entry in libraries]
