"""Segments seen as arrays: the size is checked first, nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import CodecError, WireError

Buffer = Any  # bytes, bytearray, memoryview or a C-contiguous array: whatever has the buffer protocol
_SIZED = np.ndarray, memoryview
_FEW = 64  # numbers: a list of them is looked through in half the time of a reduction


def nbytes(segment: Buffer) -> int:
    """Size of one segment in bytes; WireError if it is no buffer."""
    try:
        return segment.nbytes if isinstance(segment, _SIZED) else memoryview(segment).nbytes
    except TypeError:
        raise WireError(f"a segment must be a buffer, not {type(segment).__name__}") from None


def expect(segments: Sequence[Buffer], count: int, codec: str) -> None:
    """WireError unless there are exactly `count` segments."""
    if len(segments) != count:
        raise WireError(f"{codec}: expected {count} segments, got {len(segments)}")


def view(segment: Buffer, dtype: Any, count: int, what: str) -> np.ndarray:
    """The segment as a flat array of exactly `count` items of `dtype`, sharing its memory.

    Raises WireError when the size does not match, before anything is allocated.
    """
    try:
        if count:
            flat = np.frombuffer(segment, dtype)
            if flat.size == count:
                return flat
        elif not nbytes(segment):
            return np.empty(0, dtype)
    except (TypeError, ValueError, BufferError):
        pass  # no buffer, not a contiguous one, or no whole number of items
    size, itemsize = nbytes(segment), np.dtype(dtype).itemsize
    if size == count * itemsize:
        raise WireError(f"{what}: a segment must be a contiguous buffer")
    raise WireError(f"{what}: expected {count} x {itemsize} bytes, got {size} bytes")


def extremes(numbers: np.ndarray) -> tuple[int, int]:
    """Smallest and largest of whole numbers, of which there is at least one."""
    if numbers.size <= _FEW:
        listed = numbers.ravel().tolist()
        return min(listed), max(listed)
    return int(np.minimum.reduce(numbers, axis=None)), int(np.maximum.reduce(numbers, axis=None))


def check_finite(values: np.ndarray, infinity: int, what: str) -> None:
    """WireError if floats, given as their unsigned bits, hold a NaN or an Inf; `infinity` is its bits.

    Read as signed numbers the positive offenders are the largest, read as unsigned ones the negative.
    """
    if values.size:
        signed = values.view(np.int16 if values.itemsize == 2 else np.int32)
        sign = 1 << (8 * values.itemsize - 1)
        if (
            np.maximum.reduce(signed, axis=None) >= infinity
            or np.maximum.reduce(values, axis=None) >= infinity | sign
        ):
            raise WireError(f"{what}: a value is NaN or Inf, which no encoder writes")


def refuse_row(x: np.ndarray, codec: str) -> CodecError:
    """The error that names the first row of x [n, D] with a NaN or an Inf."""
    return refused(int(np.argmin(np.isfinite(x).all(axis=1))), codec)


def refused(row: int, codec: str) -> CodecError:
    """The error for a row with a NaN or an Inf."""
    return CodecError(
        f"{codec}: row {row} holds NaN or Inf; a lossless codec such as raw would carry it", row
    )
