"""sparse: a bitmap of the values worth keeping, and those values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import scratch
from .errors import CodecError, WireError
from .raw import Raw
from .scratch import New
from .segments import Buffer, check_finite, refuse_row, view
from .stage import PackStage, SelectStage


@dataclass(frozen=True)
class Sparse(SelectStage):
    """Drops the values of magnitude up to `threshold`; a bitmap says where the kept ones go.

    With threshold 0 only the exact (positive) zeros go, so that the stage is lossless, NaN and negative zero
    included. Above 0: error at most `threshold`, NaN and Inf are refused.
    Segments: bitmap uint8 [n, ceil(D / 8)], lowest bit first, then those of the packer for the kept values.
    """

    threshold: float = 0.0

    stage_name = "sparse"

    def __post_init__(self) -> None:
        value: Any = self.threshold
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise CodecError(f"sparse: threshold is {value!r}, allowed is a finite number from 0")
        object.__setattr__(self, "threshold", float(value))

    @property
    def lossless(self) -> bool:
        return self.threshold == 0.0

    def encode(self, x: np.ndarray, pack: PackStage, new: New = np.empty) -> list[Buffer]:
        keep = self.keep(x)  # [n, D]
        bitmap = scratch.placed(np.packbits(keep, axis=1, bitorder="little"), new)
        counts = set_bits(bitmap)
        values = (new if isinstance(pack, Raw) else np.empty)((int(counts.sum()),), x.dtype)
        start = 0
        for rows, kept in _blocks(counts, x.shape[1]):
            places = np.flatnonzero(keep[rows])
            np.take(x[rows].reshape(-1), places, out=values[start : start + kept], mode="clip")
            start += kept
        return [bitmap, *pack.encode_kept(values, counts, new)]

    def decode(
        self,
        segments: Sequence[Buffer],
        shape: tuple[int, int],
        dtype: np.dtype,
        pack: PackStage,
        out: np.ndarray | None,
    ) -> np.ndarray:
        n, width = shape
        if not segments:
            raise WireError("sparse: no bitmap")
        stride = -(-width // 8)
        bitmap = view(segments[0], np.uint8, n * stride, "sparse bitmap").reshape(n, stride)
        if width % 8 and n and np.bitwise_or.reduce(bitmap[:, -1]) >> (width % 8):
            raise WireError("sparse: the bitmap marks values beyond the row's width")
        counts = set_bits(bitmap)
        values = pack.decode_kept(segments[1:], counts, dtype)
        if values.dtype == np.float32 and not (self.lossless or pack.takes_float32):
            check_finite(values.view(np.uint32), 0x7F800000, "sparse")
        x = np.empty(shape, values.dtype) if out is None or out.dtype != values.dtype else out
        start = 0
        for rows, kept in _blocks(counts, width):
            keep = np.unpackbits(bitmap[rows], axis=1, count=width, bitorder="little").view(bool)
            block, source = x[rows], values[start : start + kept]
            block.fill(0)
            if block.flags.c_contiguous:
                block.reshape(-1)[np.flatnonzero(keep)] = source
            else:
                block[keep] = source
            start += kept
        return x

    def max_segment_bytes(self, shape: tuple[int, int]) -> list[int]:
        return [shape[0] * -(-shape[1] // 8)]

    def keep(self, x: np.ndarray) -> np.ndarray:
        """Which values of x [n, D] (float32, float16 or bfloat16 bits) are worth keeping, bool [n, D]."""
        if self.threshold == 0.0:
            return x.view(np.uint32 if x.dtype.itemsize == 4 else np.uint16) != 0
        if x.dtype == np.uint16:
            # Magnitudes order as their bits do; the threshold loses bits that no bfloat16 has.
            return (x & 0x7FFF) > (int(self._limit(np.dtype(np.float32)).view(np.uint32)) >> 16)
        magnitude = np.abs(x)
        if x.size and not np.maximum.reduce(magnitude, axis=None) < np.inf:
            raise refuse_row(x, str(self))
        return magnitude > self._limit(x.dtype)

    def _limit(self, dtype: np.dtype) -> Any:
        """The largest number of `dtype` that is not above the threshold."""
        limit = dtype.type(min(self.threshold, float(np.finfo(dtype).max)))
        return np.nextafter(limit, dtype.type(0)) if float(limit) > self.threshold else limit


def _blocks(counts: np.ndarray, width: int) -> Iterator[tuple[slice, int]]:
    """Slices of rows that fit the cache, with the number of values kept in them."""
    step = max(1, scratch.BLOCK_VALUES // max(1, width))
    for start in range(0, len(counts), step):
        rows = slice(start, start + step)
        yield rows, int(counts[rows].sum())


def set_bits(bitmap: np.ndarray) -> np.ndarray:
    """Set bits in each row: uint8 [n, B] -> int64 [n]."""
    return np.add.reduce(np.bitwise_count(bitmap), axis=1, dtype=np.int64)
