"""What the selectors share: a threshold, and a bitmap of what is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import CodecError, WireError
from .segments import Buffer, check_finite, refuse_row, view
from .stage import PackStage, SelectStage


class Keeping(SelectStage):
    """A selector that drops values of magnitude up to `threshold`; 0 drops exact (positive) zeros only."""

    threshold: float

    def __post_init__(self) -> None:
        value: Any = self.threshold
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise CodecError(f"{self.stage_name}: threshold is {value!r}, allowed is a finite number from 0")
        object.__setattr__(self, "threshold", float(value))

    @property
    def lossless(self) -> bool:
        return self.threshold == 0.0

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

    def read_bitmap(self, segments: Sequence[Buffer], rows: int, marks: int) -> np.ndarray:
        """The first segment as a bitmap uint8 [rows, ceil(marks / 8)], lowest bit first."""
        if not segments:
            raise WireError(f"{self.stage_name}: no bitmap")
        stride = -(-marks // 8)
        bitmap = view(segments[0], np.uint8, rows * stride, f"{self.stage_name} bitmap").reshape(rows, stride)
        if marks % 8 and rows and np.bitwise_or.reduce(bitmap[:, -1]) >> (marks % 8):
            raise WireError(f"{self.stage_name}: the bitmap marks places beyond the row's width")
        return bitmap

    def read_values(
        self, segments: Sequence[Buffer], counts: np.ndarray, dtype: np.dtype, pack: PackStage
    ) -> np.ndarray:
        """The kept values [V] from the packer's segments, counts [n] of them in each row."""
        values = pack.decode_kept(segments[1:], counts, dtype)
        if values.dtype == np.float32 and not (self.lossless or pack.takes_float32):
            check_finite(values.view(np.uint32), 0x7F800000, self.stage_name)
        return values


def set_bits(bitmap: np.ndarray) -> np.ndarray:
    """Set bits in each row: uint8 [n, B] -> int64 [n]."""
    return np.add.reduce(np.bitwise_count(bitmap), axis=1, dtype=np.int64)
