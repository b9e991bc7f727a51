"""fp8: eight-bit floats (e4m3) with one scale for each group of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import buffers
from .errors import WireError
from .int8 import checked_scales
from .scaled import Scaled
from .segments import Buffer, view

# Multiplied by 2^-120 a value's float32 exponent is that of e4m3, denormals included: the code is then the
# upper bits, rounded.
_DOWN, _UP = np.float32(2.0**-120), np.float32(2.0**120)
_MANTISSA = np.uint32(20)  # float32 mantissa bits beyond the three that stay
_NORMAL = np.float32(2.0**-6).view(np.uint32)  # the smallest normal e4m3
_ROUND = np.uint32((1 << 19) - 1)


@dataclass(frozen=True)
class Fp8(Scaled):
    """OCP e4m3 floats with a float32 scale for each `group` values of a row (0: the row).

    1 sign, 4 exponent and 3 mantissa bits, largest 448, no infinity (OCP OFP8 specification).
    scale = max|x| / 448, at least 2^-126; x / scale rounds to the nearest code, ties to even.
    Error: at most max(|x| * 2^-4, scale * 2^-10) * (1 + 2^-14); zeros keep their sign. NaN and Inf are
    refused.
    Segments: scales float32 [n, ceil(D / group)], then codes uint8 [n, D].
    """

    group: int = 128

    stage_name = "fp8"
    largest = np.float32(448)
    code_dtype = np.uint8

    def load(
        self, segments: Sequence[Buffer], scales: int, codes: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        found = view(segments[1], np.uint8, math.prod(codes), "fp8 values")
        signed = found.view(np.int8)
        if found.size and (np.maximum.reduce(signed) == 127 or np.maximum.reduce(found) == 255):
            raise WireError("fp8: a value is NaN, which no encoder writes")
        return checked_scales(segments[0], scales, self.max_bits, "fp8"), found.reshape(codes)

    def to_codes(self, scaled: np.ndarray, codes: np.ndarray) -> None:
        bits = scaled.view(np.uint32)
        work = buffers.words(bits.size)[1][: bits.size].reshape(bits.shape)
        np.bitwise_and(bits, np.uint32(0x7FFFFFFF), out=work)
        if np.minimum.reduce(work, axis=None) < _NORMAL:
            # What will be denormal is rounded here: float32 denormals would round it twice.
            tiny = np.flatnonzero(work < _NORMAL)
            flat = scaled.reshape(-1)
            flat[tiny] = np.rint(flat[tiny] * np.float32(512)) * np.float32(1 / 512)
        np.multiply(scaled, _DOWN, out=scaled)
        np.right_shift(bits, _MANTISSA, out=work)
        np.bitwise_and(work, np.uint32(1), out=work)
        np.add(work, _ROUND, out=work)
        np.add(work, bits, out=work)  # carries where the value rounds up, to nearest, ties to even
        np.right_shift(work, _MANTISSA, out=work)
        np.bitwise_and(work, np.uint32(0x7F), out=work)
        np.right_shift(bits, np.uint32(24), out=bits)
        np.bitwise_and(bits, np.uint32(0x80), out=bits)
        np.bitwise_or(work, bits, out=work)
        np.copyto(codes, work, casting="unsafe")

    def from_codes(self, codes: np.ndarray, scaled: np.ndarray) -> None:
        bits = scaled.view(np.int32)
        np.copyto(bits, codes.view(np.int8))  # the sign fills the upper bits
        np.left_shift(bits, 20, out=bits)
        np.bitwise_and(bits, np.int32(-0x78100000), out=bits)
        np.multiply(scaled, _UP, out=scaled)
