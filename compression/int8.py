"""int8: eight-bit integers with one scale for each row, or for each group of values in a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import WireError
from .scaled import MIN_BITS, Scaled
from .segments import Buffer, extremes, view


@dataclass(frozen=True)
class Int8(Scaled):
    """Integers -127..127 with a float32 scale for each row (group=0) or each `group` values of a row.

    scale = max|x| / 127, at least 2^-126; q = round_half_even(x / scale); x' = q * scale.
    Error: at most scale * (1/2 + 2^-14), so rows (or groups) of zeros are exact. NaN and Inf are refused.
    Segments: scales float32 [n, ceil(D / group)], then q int8 [n, D].
    """

    group: int = 0

    stage_name = "int8"
    largest = np.float32(127)
    code_dtype = np.int8

    def load(
        self, segments: Sequence[Buffer], scales: int, codes: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        q = view(segments[1], np.int8, math.prod(codes), "int8 values").reshape(codes)
        if q.size and np.minimum.reduce(q, None) == -128:
            raise WireError("int8: a value of -128, which no encoder writes")
        return checked_scales(segments[0], scales, self.max_bits, "int8"), q


def checked_scales(segment: Buffer, count: int, limit: int, codec: str) -> np.ndarray:
    """The scales, float32 [count]; WireError unless all are from MIN_SCALE to the one with bits `limit`."""
    scales = view(segment, np.float32, count, f"{codec} scales")
    if count:
        least, largest = extremes(scales.view(np.int32))  # of the bits: they order positive numbers
        if least < MIN_BITS or largest > limit:
            raise WireError(f"{codec}: a scale is not finite, negative, or out of range")
    return scales
