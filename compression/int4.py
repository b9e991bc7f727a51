"""int4: four-bit integers with one scale for each group of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import buffers
from .buffers import New
from .errors import WireError
from .scaled import Scaled
from .segments import Buffer, view

_MIN, _MAX = 0x0080, 0x7E12  # bfloat16 bits of 2^-126 and of the largest scale whose sevenfold is finite
_LOW, _HIGH = np.uint16(0x0F), np.uint16(0xF0)
_FOUR = np.uint16(4)


@dataclass(frozen=True)
class Int4(Scaled):
    """Integers -7..7, two to a byte, with a bfloat16 scale for each `group` values of a row (0: the row).

    scale = max|x| / 7, rounded up to a bfloat16, at least 2^-126; q = round_half_even(x / scale).
    Error: at most scale * (1/2 + 2^-18), so groups of zeros are exact. NaN and Inf are refused.
    Segments: bits of the scales uint16 [n, ceil(D / group)], then pairs of q uint8 [n, ceil(D / 2)], the
    earlier value in the lower half; a row's last byte is padded with 0, also after a selector.
    """

    group: int = 32

    stage_name = "int4"
    largest = np.float32(7)
    code_dtype = np.int8
    keeps_scales = False

    def store(self, scales: np.ndarray, codes: np.ndarray, new: New) -> list[Buffer]:
        upper = new(scales.shape, np.uint16)
        np.copyto(upper, scales.view(np.uint32) >> np.uint32(16), casting="unsafe")
        return [upper, _to_pairs(codes, new)]

    def load(
        self, segments: Sequence[Buffer], scales: int, codes: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        upper = view(segments[0], np.uint16, scales, "int4 scales")
        if scales and not (np.minimum.reduce(upper) >= _MIN and np.maximum.reduce(upper) <= _MAX):
            raise WireError("int4: a scale is not finite, negative, or out of range")
        widened = upper.astype(np.uint32)
        np.left_shift(widened, np.uint32(16), out=widened)
        return widened.view(np.float32), _from_pairs(segments[1], codes)

    def row_by_row(self, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        odd = counts % 2 == 1
        return np.insert(codes, np.cumsum(counts)[odd], 0)

    def load_kept(
        self, segments: Sequence[Buffer], scales: int, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        odd = counts % 2 == 1
        padding = np.cumsum(counts)[odd] + np.arange(np.count_nonzero(odd))
        upper, codes = self.load(segments, scales, (int(counts.sum()) + len(padding),))
        if codes[padding].any():
            raise WireError("int4: a row's padding is not 0")
        return upper, np.delete(codes, padding)

    def round_scales(self, scales: np.ndarray) -> None:
        bits = scales.view(np.uint32)
        np.add(bits, np.uint32(0xFFFF), out=bits)
        np.bitwise_and(bits, np.uint32(0xFFFF0000), out=bits)
        np.maximum(bits, np.uint32(_MIN << 16), out=bits)
        np.minimum(bits, np.uint32(_MAX << 16), out=bits)

    def new_codes(self, shape: tuple[int, ...], new: New) -> np.ndarray:
        """Codes whose rows have room for a whole number of pairs, padded with 0; they are not the result."""
        *rows, width = shape
        padded = np.empty((*rows, width + width % 2), np.int8)
        padded[..., width:] = 0
        return padded[..., :width]

    def new_scales(self, shape: tuple[int, ...], new: New) -> np.ndarray:
        return np.empty(shape, np.float32)  # not the result either

    def stored_bytes(self, shape: tuple[int, int], groups: int) -> list[int]:
        n, width = shape
        return [2 * n * groups, n * -(-width // 2)]


def _to_pairs(codes: np.ndarray, new: New) -> np.ndarray:
    """int8 [.., D], as `new_codes` made them -> uint8 [.., ceil(D / 2)]."""
    whole = codes if codes.base is None else codes.base  # with the padding
    both = whole.reshape(-1).view(np.uint16)
    pairs = new((both.size,), np.uint8)
    for start in range(0, both.size, buffers.BLOCK_VALUES):
        block = both[start : start + buffers.BLOCK_VALUES]
        low, high = buffers.words(block.size)[:, : block.size].view(np.uint16)[:, : block.size]
        np.bitwise_and(block, _LOW, out=low)
        np.right_shift(block, _FOUR, out=high)
        np.bitwise_and(high, _HIGH, out=high)
        np.bitwise_or(low, high, out=low)
        np.copyto(pairs[start : start + block.size], low, casting="unsafe")
    return pairs.reshape(*whole.shape[:-1], whole.shape[-1] // 2)


def _from_pairs(segment: Buffer, shape: tuple[int, ...]) -> np.ndarray:
    *rows, width = shape
    stride = -(-width // 2)
    pairs = view(segment, np.uint8, math.prod(rows) * stride, "int4 values")
    codes = np.empty(2 * pairs.size, np.int8)
    both = codes.view(np.uint16)
    for start in range(0, pairs.size, buffers.BLOCK_VALUES):
        block = both[start : start + buffers.BLOCK_VALUES]
        high = buffers.words(block.size)[0].view(np.uint16)[: block.size]
        np.copyto(block, pairs[start : start + block.size])
        np.left_shift(block, _FOUR, out=high)
        np.bitwise_or(block, high, out=block)
        np.bitwise_and(block, np.uint16(0x0F0F), out=block)
        values = codes[2 * start : 2 * (start + block.size)]  # 0..15 to -8..7
        np.bitwise_xor(values, np.int8(8), out=values)
        np.subtract(values, np.int8(8), out=values)
    if codes.size and np.minimum.reduce(codes) == -8:
        raise WireError("int4: a value of -8, which no encoder writes")
    codes = codes.reshape(*rows, 2 * stride)
    if width % 2 and codes[..., width:].any():
        raise WireError("int4: a row's padding is not 0")
    return codes[..., :width]
