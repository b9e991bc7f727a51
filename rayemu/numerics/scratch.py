"""Memory of a thread that is used again: fresh pages cost as much as the arithmetic."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

_LEAST_ELEMENTS = 1 << 24  # 64 MiB
_local = threading.local()


def scratch(name: str, rows: int, columns: int) -> F32:
    """A float32 buffer [rows, columns] of this thread; its content is whatever was left there.

    Only the part that was ever used takes memory, so it has its full size from the beginning: fresh pages at
    each growth cost more than the rest of a pass.
    """
    needed = rows * columns
    buffer = getattr(_local, name, None)
    if buffer is None or buffer.size < needed:
        buffer = np.empty(max(needed, _LEAST_ELEMENTS), np.float32)
        setattr(_local, name, buffer)
    return buffer[:needed].reshape(rows, columns)


def forget_scratch() -> None:
    """Let go of this thread's buffers: others may still write to them."""
    _local.__dict__.clear()


def padded(x: F32, rows: int, name: str = "padded") -> F32:
    """x [n, K] with zero rows appended [rows, K], contiguous; x itself where nothing has to be done."""
    if len(x) == rows and x.flags.c_contiguous:
        return x
    whole = scratch(name, rows, x.shape[1])
    whole[: len(x)] = x
    whole[len(x) :] = 0
    return whole
