"""Matrix products whose rows do not depend on their neighbours, to the bit, on whatever BLAS there is.

Which of the ways of `ways.py` holds depends on the BLAS, its kernels and its threads. It is found out at the
first product of a process: the quickest way that passes a few products in company and alone, and at last one
that needs no BLAS. Modules take the driver's way (`use`), and compare what comes out (`model/agreement.py`).

Shapes: x [M, K] rows, w [K, N], y [M, N].
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from rayemu.numerics.blas import one_thread
from rayemu.numerics.denormals import keep_denormals
from rayemu.numerics.scratch import F32, forget_scratch
from rayemu.numerics.ways import ByElement, MendedEdges, PaddedRows, Way, edge_block

_LEAST_ROWS = 96  # that a thread of ours is given
_LEAST_COLUMNS = 64  # of a part of a product: narrower ones are made otherwise

_way: Way | None = None
_choosing = threading.Lock()


def exact_matmul(x: F32, w: F32, out: F32 | None = None) -> F32:
    """x @ w with each row's bits independent of the other rows; x [M, K] float32, w [K, N] C-contiguous.

    Rows of `x` and `out` may be strided as long as each row is contiguous. Returns `out` if given. Rows that
    are a multiple of `row_multiple()` save a copy. Raises TypeError for other types, which would round twice.
    """
    if out is None:
        out = np.empty((len(x), w.shape[1]), np.float32)
    for array in (x, w, out):
        if array.dtype != np.float32 or (array.strides[-1] != 4 and array.size > len(array)):
            found = f"{array.dtype} with strides {array.strides}"
            raise TypeError(f"an array of {found}; wanted: float32, each row contiguous")
    if len(w):
        if len(x) and w.shape[1]:
            _multiply(_way or way(), x, w, out)
    else:
        out[...] = 0
    return out


def exact_columns(x: F32, w: F32, columns: npt.NDArray[np.integer]) -> F32:
    """Columns [n] of `exact_matmul(x, w)` with the bits that they have there, as [M, n] C-contiguous.

    How BLAS sums an element can depend on its neighbours in a row of the result, and not only on those above
    and below it: a part is made to pass for the whole by columns of zeros, up to `_LEAST_COLUMNS` at least
    and in eights. Where that saves nothing, or is found not to hold here, the whole product is made.
    """
    wide = max(_LEAST_COLUMNS, -(-len(columns) // 8) * 8)
    if w.shape[1] % 8 or wide >= w.shape[1] or not keeps_columns(way()):
        return np.ascontiguousarray(exact_matmul(x, w)[:, columns])
    part = np.zeros((len(w), wide), np.float32)
    part[:, : len(columns)] = w[:, columns]
    return np.ascontiguousarray(exact_matmul(x, part)[:, : len(columns)])


@cache
def keeps_columns(tried: Way) -> bool:
    """Whether a way gives a column the same bits in the company that `exact_columns` gives it.

    It was so on every kernel of OpenBLAS that was tried (Haswell, Zen, SkylakeX, Sandybridge, Nehalem,
    Prescott). Tried on a few products at the first call in some 20 ms.
    """
    for inner, columns in ((32, 72), (300, 128), (256, 200), (1024, 328)):
        rng = np.random.default_rng([21, inner, columns])
        x = rng.standard_normal((37, inner), dtype=np.float32)
        w = rng.standard_normal((inner, columns), dtype=np.float32)
        whole = _made(tried, x, w)
        order = rng.permutation(columns)
        for few in (np.arange(5), order[:64], np.sort(order[:40])):
            part = np.zeros((inner, _LEAST_COLUMNS), np.float32)
            part[:, : len(few)] = w[:, few]
            if not np.array_equal(_made(tried, x, part)[:, : len(few)], whole[:, few]):
                return False
    return True


def _multiply(chosen: Way, x: F32, w: F32, out: F32) -> None:
    """Write x @ w to out by one way; what BLAS may not do with several threads is shared out among ours."""
    if not chosen.alone:
        chosen.product(x, w, out)
        return
    with one_thread() as threads:
        parts = min(threads, len(x) // _LEAST_ROWS)
        if parts < 2:
            chosen.product(x, w, out)
            return
        step = -(-len(x) // (parts * chosen.multiple)) * chosen.multiple
        cuts = [slice(low, low + step) for low in range(0, len(x), step)]
        pending: list[Future[None]] = []
        try:
            for cut in cuts[1:]:
                pending.append(_pool().submit(_part, chosen, x[cut], w, out[cut]))
            chosen.product(x[cuts[0]], w, out[cuts[0]])
            for each in pending:
                each.result()
        except BaseException:  # Ctrl-C, say: what helpers still write to must not be used for anything else
            for each in pending:
                each.cancel()
            forget_scratch()
            raise


def _part(chosen: Way, x: F32, w: F32, out: F32) -> None:
    with one_thread():  # of OpenMP each thread has its own
        chosen.product(x, w, out)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="rayemu-products", initializer=keep_denormals)


def _after_fork() -> None:
    """A child has none of the threads of the pool, nor of those that hold the lock."""
    global _choosing
    _choosing = threading.Lock()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def row_multiple() -> int:
    """Rows that are a multiple of it are multiplied where they lie; others are copied and padded."""
    return (_way or way()).multiple


def way() -> Way:
    """The way in which this process makes its products, found out at the first call in some 50 to 120 ms."""
    global _way
    with _choosing:
        if _way is None:
            _way = next(each for each in _ways() if isinstance(each, ByElement) or keeps_rows(each))
        return _way


def use(chosen: Way) -> None:
    """Make this process's products in a way that another process has found to hold."""
    global _way
    _way = chosen


def _ways() -> Iterator[Way]:
    """From the quickest to the one that always holds."""
    yield PaddedRows()
    yield PaddedRows(multiple=8, alone=True)
    block = edge_block()
    if block is not None:
        yield MendedEdges(block)
    yield ByElement()


# [K, N]: narrow, ragged, wide, long K, more than a block of columns
_SHAPES = ((16, 32), (64, 8), (33, 77), (300, 65), (256, 1024), (1000, 10), (200, 768), (550, 200))


def keeps_rows(tried: Way) -> bool:
    """Whether a way gives a row the same bits in any company in this process.

    Products of several widths, made with this process's BLAS threads, are compared with those of the same
    rows alone, in groups and all together, made with one thread.
    """
    for inner, columns in _SHAPES:
        rng = np.random.default_rng([20, inner, columns])
        rows = 201 if inner * columns > 1e5 else 421  # more than small products are padded to
        x = rng.standard_normal((rows, inner), dtype=np.float32)  # [M, K]
        w = rng.standard_normal((inner, columns), dtype=np.float32)  # [K, N]
        whole = _made(tried, x, w)
        order = rng.permutation(len(x))
        bounds = (0, 1, 3, 6, 11, 18, 30, 46, 110, len(x))
        with one_thread():
            groups = [np.arange(len(x)), *(order[a:b] for a, b in pairwise(bounds))]
            if not all(np.array_equal(_made(tried, x[group], w), whole[group]) for group in groups):
                return False
    return True


def _made(tried: Way, x: F32, w: F32) -> F32:
    y = np.empty((len(x), w.shape[1]), np.float32)
    _multiply(tried, x, w, y)
    return y


def cost(inner: int = 1024, columns: int = 1024, rows: int = 512) -> float:
    """Time of an exact product relative to a plain one of the same shape: the best of five each, by turns."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, inner), dtype=np.float32)
    w = rng.standard_normal((inner, columns), dtype=np.float32)
    y = np.empty((rows, columns), np.float32)
    exact, plain = [], []
    for _ in range(6):  # the first one touches the memory
        began = time.perf_counter()
        exact_matmul(x, w, y)
        then = time.perf_counter()
        np.matmul(x, w, out=y)
        exact.append(then - began)
        plain.append(time.perf_counter() - then)
    return min(exact[1:]) / min(plain[1:])
