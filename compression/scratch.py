"""Per-thread working memory, so that the hot path allocates nothing but its results."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

# Values per block: 256 KiB of float32, so that a block and its scratch stay in the L2 cache between passes,
# while the cost of a NumPy call (about a microsecond) is still spread thin.
BLOCK_VALUES = 65536


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.words = np.empty((2, BLOCK_VALUES), np.uint32)


_SCRATCH = _Scratch()


def words(values: int) -> np.ndarray:
    """Two uint32 rows of at least `values` words, owned by the calling thread until its next call here."""
    buffer = _SCRATCH.words
    if buffer.shape[1] < values:
        buffer = _SCRATCH.words = np.empty((2, values), np.uint32)
    return buffer


def unbuffered(size: int, values: int) -> Any:
    """Context in which NumPy's element-wise loops over rows of `size` values run on the rows themselves.

    With its default buffer (8192 values) NumPy copies a broadcast operand through that buffer whenever
    several rows fit in it, which costs more than the arithmetic. The setting belongs to the calling thread;
    changing it takes a few microseconds, so calls on few `values` or on short rows leave it alone.
    """
    return _buffer_of(size) if values >= BLOCK_VALUES // 2 and 512 <= size < 8192 else _AS_IT_IS


_AS_IT_IS = nullcontext()


@contextmanager
def _buffer_of(size: int) -> Iterator[None]:
    before = np.setbufsize(max(16, size // 16 * 16))
    try:
        yield
    finally:
        np.setbufsize(before)
