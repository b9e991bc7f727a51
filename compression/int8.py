"""int8: eight-bit integers with one scale for each row, or for each group of values in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import scratch
from .errors import CodecError, WireError
from .segments import Buffer, expect, refuse_row, refused, view
from .stage import PackStage

# Scales are kept where neither 1/scale nor 127*scale can leave the float32 range.
MIN_SCALE = np.float32(2.0**-126)
MAX_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))


@dataclass(frozen=True)
class Int8(PackStage):
    """Integers -127..127 with a float32 scale for each row (group=0) or each `group` values of a row.

    scale = max|x| / 127, at least 2^-126; q = round_half_even(x / scale); x' = q * scale.
    Error: at most scale * (1/2 + 2^-14), so rows (or groups) of zeros are exact. NaN and Inf are refused.
    Segments: scales float32 [n, ceil(D / group)], then q int8 [n, D]. After a selector, groups run over the
    kept values of a row, and a row with nothing kept has no scale.
    """

    group: int = 0

    stage_name = "int8"
    lossless = False
    takes_float32 = True

    def __post_init__(self) -> None:
        if type(self.group) is not int or not (self.group == 0 or 16 <= self.group <= 65536):
            raise CodecError(f"int8: group is {self.group!r}, allowed is 0 (whole row) or 16 to 65536 values")

    def encode(self, x: np.ndarray) -> list[Buffer]:
        n, width = x.shape
        q = np.empty((n, width), np.int8)
        scales = np.empty((n, self._groups(width)), np.float32)
        for x_part, q_part, scales_part in self._parts(x, q, scales):
            if not _quantise(x_part, q_part, scales_part):
                raise refuse_row(x, str(self))
        return [scales, q]

    def decode(
        self, segments: Sequence[Buffer], shape: tuple[int, int], dtype: np.dtype, out: np.ndarray | None
    ) -> np.ndarray:
        expect(segments, 2, "int8")
        n, width = shape
        groups = self._groups(width)
        scales = _checked_scales(segments[0], n * groups).reshape(n, groups)
        q = _checked_values(segments[1], n * width).reshape(n, width)
        x = np.empty(shape, np.float32) if out is None else out
        for x_part, q_part, scales_part in self._parts(x, q, scales):
            _expand(q_part, scales_part, x_part)
        return x

    def encode_kept(self, values: np.ndarray, counts: np.ndarray) -> list[Buffer]:
        lengths = self._lengths(counts)
        scales = np.empty(len(lengths), np.float32)
        q = np.empty(len(values), np.int8)
        if len(values):
            starts = np.cumsum(lengths)
            starts -= lengths
            work = np.abs(values, out=np.empty(len(values), np.float32))
            np.maximum.reduceat(work, starts, out=scales)
            top = np.maximum.reduce(scales)
            if not top < np.inf:
                row = int(np.searchsorted(np.cumsum(counts), np.argmin(np.isfinite(values)), side="right"))
                raise refused(row, str(self))
            _to_scales(scales)
            np.multiply(values, np.repeat(np.float32(1) / scales, lengths), out=work)
            np.rint(work, out=work)
            np.copyto(q, work, casting="unsafe")
        return [scales, q]

    def decode_kept(self, segments: Sequence[Buffer], counts: np.ndarray, dtype: np.dtype) -> np.ndarray:
        expect(segments, 2, "int8")
        lengths = self._lengths(counts)
        scales = _checked_scales(segments[0], len(lengths))
        q = _checked_values(segments[1], int(counts.sum()))
        values = np.repeat(scales, lengths)
        np.multiply(values, q, out=values)
        return values

    def max_segment_bytes(self, shape: tuple[int, int], itemsize: int) -> list[int]:
        n, width = shape
        return [4 * n * self._groups(width), n * width]

    def _groups(self, width: int) -> int:
        return -(-width // self.group) if self.group else min(1, width)

    def _parts(
        self, x: np.ndarray, q: np.ndarray, scales: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """x, q [n, D], scales [n, G] -> views x, q [n, g, size], scales [n, g] of groups of equal size.

        One part, or two if `group` does not divide the width. Splitting the last axis never copies.
        """
        n, width = x.shape
        if not x.size:
            return []
        group = self.group or width
        whole = width // group
        cut = whole * group
        parts = []
        if whole:
            block = (n, whole, group)
            parts.append((x[:, :cut].reshape(block), q[:, :cut].reshape(block), scales[:, :whole]))
        if cut < width:
            parts.append((x[:, None, cut:], q[:, None, cut:], scales[:, whole:]))
        return parts

    def _lengths(self, counts: np.ndarray) -> np.ndarray:
        """Kept values in each row [n] -> kept values in each group [G], none of them zero."""
        if not self.group:
            return counts[counts > 0]
        groups = -(-counts // self.group)
        lengths = np.full(int(groups.sum()), self.group, np.int64)
        ends = np.cumsum(groups)
        some = counts > 0
        lengths[ends[some] - 1] = counts[some] - self.group * (groups[some] - 1)
        return lengths


def _to_scales(peaks: np.ndarray) -> None:
    """max|x| -> scale, in place."""
    np.divide(peaks, np.float32(127), out=peaks)
    np.maximum(peaks, MIN_SCALE, out=peaks)
    np.minimum(peaks, MAX_SCALE, out=peaks)


def _quantise(x: np.ndarray, q: np.ndarray, scales: np.ndarray) -> bool:
    """x [n, G, S] -> q [n, G, S], scales [n, G]; False on NaN or Inf."""
    n, groups, size = x.shape
    rows = max(1, scratch.BLOCK_VALUES // (groups * size))
    buffer = scratch.words(min(n, rows) * groups * size)[0].view(np.float32)
    with scratch.unbuffered(size, x.size):
        for start in range(0, n, rows):
            block = x[start : start + rows]
            work = buffer[: block.size].reshape(block.shape)
            scale = scales[start : start + rows]
            np.abs(block, out=work)
            # Magnitudes order as their bits do, and the integer maximum is the quicker one.
            np.maximum.reduce(work.view(np.int32), axis=2, out=scale.view(np.int32))
            if np.maximum.reduce(scale.view(np.int32), axis=None) >= 0x7F800000:
                return False
            _to_scales(scale)
            np.multiply(block, np.reciprocal(scale)[:, :, None], out=work)
            np.rint(work, out=work)
            np.copyto(q[start : start + rows], work, casting="unsafe")
    return True


def _expand(q: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """q [n, G, S] times scales [n, G] -> out [n, G, S]."""
    _, groups, size = q.shape
    rows = max(1, scratch.BLOCK_VALUES // (groups * size))
    with scratch.unbuffered(size, q.size):
        for start in range(0, len(q), rows):
            block = out[start : start + rows]
            np.copyto(block, q[start : start + rows])
            np.multiply(block, scales[start : start + rows, :, None], out=block)


def _checked_scales(segment: Buffer, count: int) -> np.ndarray:
    scales = view(segment, np.float32, count, "int8 scales")
    if count and not (np.minimum.reduce(scales) >= MIN_SCALE and np.maximum.reduce(scales) <= MAX_SCALE):
        raise WireError("int8: a scale is not finite, negative, or out of range")
    return scales


def _checked_values(segment: Buffer, count: int) -> np.ndarray:
    q = view(segment, np.int8, count, "int8 values")
    if count and np.minimum.reduce(q) == -128:
        raise WireError("int8: a value of -128, which no encoder writes")
    return q
