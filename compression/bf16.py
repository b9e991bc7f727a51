"""bf16: the upper half of a float32, rounded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import buffers
from .buffers import New
from .segments import check_finite, refuse_row, refused
from .stage import ArrayStage

INF = 0x7F80  # bfloat16 bits of infinity; anything above, sign apart, is NaN
LIMIT = 0x7F7F8000  # float32 bits of the smallest value that would round to infinity
SIGN = 0x80000000
HALF, ONE, CARRY = np.uint32(16), np.uint32(1), np.uint32(0x7FFF)


@dataclass(frozen=True)
class Bf16(ArrayStage):
    """bfloat16: 8 significant bits, the range of float32; held as its uint16 bits.

    Error: at most |x| * 2^-8, or 2^-134 for denormals, rounding to nearest even. Values that would round to
    infinity become the largest bfloat16, which is within the same bound. NaN and Inf are refused.
    """

    stage_name = "bf16"
    lossless = False
    dtype = np.dtype(np.uint16)

    def check(self, y: np.ndarray) -> None:
        magnitude = y & np.uint16(0x7FFF)
        if y.size and np.maximum.reduce(magnitude, axis=None) >= INF:
            raise refused(int(np.argmax((magnitude >= INF).any(axis=1))), "bf16")

    def encode(self, x: np.ndarray, new: New = np.empty) -> np.ndarray:
        bits = x.view(np.uint32)
        y = new(x.shape, np.uint16)
        flat, flat_y = bits.reshape(-1), y.reshape(-1)
        for start in range(0, flat.size, buffers.BLOCK_VALUES):
            block = flat[start : start + buffers.BLOCK_VALUES]
            work, low = buffers.words(block.size)[:, : block.size]
            # Read as signed numbers the largest positive value is on top, read as unsigned ones the negative.
            if np.maximum.reduce(block.view(np.int32)) >= LIMIT or np.maximum.reduce(block) >= SIGN | LIMIT:
                block = _saturated(block, low, work, x)
            # Adding 0x7fff plus the bit that will be last carries into the upper half exactly when the value
            # rounds up: round to nearest, ties to even.
            np.right_shift(block, HALF, out=work)
            np.bitwise_and(work, ONE, out=work)
            np.add(work, CARRY, out=work)
            np.add(work, block, out=work)
            np.right_shift(work, HALF, out=work)
            np.copyto(flat_y[start : start + block.size], work, casting="unsafe")
        return y

    def decode(self, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if y.dtype == np.float32:
            if out is None or y is out:
                return y
            np.copyto(out, y)
            return out
        x = np.empty(y.shape, np.float32) if out is None else out
        widen(y, x)
        return x


def _saturated(block: np.ndarray, out: np.ndarray, work: np.ndarray, x: np.ndarray) -> np.ndarray:
    """float32 bits cut to the largest bfloat16, in `out`; refuses rows x if one is not finite."""
    np.bitwise_and(block, 0x7FFFFFFF, out=out)
    if np.maximum.reduce(out) >= INF << 16:
        raise refuse_row(x, "bf16")
    np.minimum(out, 0x7F7F0000, out=out)
    np.bitwise_and(block, SIGN, out=work)
    return np.bitwise_or(out, work, out=out)


def widen(y: np.ndarray, out: np.ndarray) -> None:
    """bfloat16 bits, uint16 -> float32, same shape; `out` may have strided rows."""
    bits = out.view(np.uint32)
    rows = max(1, buffers.BLOCK_VALUES // max(1, y.shape[-1]))
    for start in range(0, len(y), rows):
        block, source = bits[start : start + rows], y[start : start + rows]
        check_finite(source, INF, "bf16")
        np.copyto(block, source)
        np.left_shift(block, HALF, out=block)
