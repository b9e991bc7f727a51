"""Memory: what each thread reuses, and where results go, so that the hot path allocates nothing else."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVar

import numpy as np

from .errors import CodecError

# Values per block: 256 KiB of float32, so that a block and its scratch stay in the L2 cache between passes,
# while the cost of a NumPy call (about a microsecond) is still spread thin.
BLOCK_VALUES = 65536
MOST_CONTEXTS = 64
ALIGNMENT = 64

T = TypeVar("T")

# Makes an array of a shape and dtype, its content undefined: np.empty, or an Arena's `new`.
New = Callable[[Any, Any], np.ndarray]


class Arena:
    """Arrays from one given buffer, one after the other: fresh memory costs as much as filling it."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory.reshape(-1).view(np.uint8)
        self.used = -self.memory.ctypes.data % ALIGNMENT

    def new(self, shape: Any, dtype: Any) -> np.ndarray:
        """An array; CodecError when the buffer is used up."""
        size = math.prod(shape if isinstance(shape, tuple) else (shape,)) * np.dtype(dtype).itemsize
        end = self.used + size
        if end > self.memory.size:
            raise CodecError(f"out has {self.memory.size} bytes, {end} are needed")
        part = self.memory[self.used : end]
        self.used = end + -end % ALIGNMENT
        return part.view(dtype).reshape(shape)


def placed(made: np.ndarray, new: New) -> np.ndarray:
    """A result that a function made itself, copied to where results go."""
    if new is np.empty:
        return made
    there = new(made.shape, made.dtype)
    np.copyto(there, made)
    return there


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.words = np.empty((2, BLOCK_VALUES), np.uint32)
        self.contexts: dict[int, Context] = {}  # by size of rows


_SCRATCH = _Scratch()


def words(values: int) -> np.ndarray:
    """Two uint32 rows of at least `values` words, owned by the calling thread until its next call here."""
    buffer = _SCRATCH.words
    if buffer.shape[1] < values:
        buffer = _SCRATCH.words = np.empty((2, values), np.uint32)
    return buffer


def by_rows(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """work(*arguments), where NumPy's loops over rows of `size` values run on the rows themselves.

    With its default buffer (8192 values) NumPy copies a broadcast operand through that buffer whenever
    several rows fit in it, which costs more than the arithmetic. The setting belongs to the context; to enter
    one that has it takes a tenth of the time of setting it. Rows of under 128 are better off with the buffer.
    """
    if not 128 <= size < 8192:
        return work(*arguments)
    context = _SCRATCH.contexts.get(size)
    if context is None:
        if len(_SCRATCH.contexts) == MOST_CONTEXTS:
            _SCRATCH.contexts.clear()
        context = _SCRATCH.contexts[size] = Context()
        context.run(np.setbufsize, size // 16 * 16)
    return context.run(work, *arguments)
