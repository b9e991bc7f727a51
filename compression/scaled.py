"""What the packers with scales share: values divided by a scale of their row, or of a group of it, and coded.

A group's scale is chosen so that its largest magnitude becomes the largest number that the code can hold.
Encoding goes from a group's peak (largest magnitude) to its scale, and from values to scaled values to codes;
decoding comes back from codes to scaled values to values.

n rows, D values in each, G groups in each, S values in a group; V values of all rows that a selector kept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from . import buffers
from .buffers import New
from .errors import CodecError
from .segments import Buffer, expect, extremes, refuse_row, refused
from .stage import PackStage

WHOLE_ROW = 0  # in the place of a group's size


def bits_of(number: float | np.floating[Any]) -> int:
    """The bits of a float32, as a whole number: they order positive numbers, infinity and NaN."""
    return int(np.float32(number).view(np.int32))


MIN_SCALE = np.float32(2.0**-126)  # 1/scale must not leave the float32 range
MIN_BITS = bits_of(MIN_SCALE)
_INFINITY = bits_of(np.inf)
_LEAST_USUAL, _LARGEST_USUAL = bits_of(2.0**-116), bits_of(2.0**127)  # peaks whose scales are in range


class _NotFinite(Exception):
    """A value is NaN or Inf; whoever has all rows says in which."""


class Scaled(PackStage):
    """A packer with a scale for each row (group WHOLE_ROW) or each `group` values of a row.

    Segments: scales [n, ceil(D / group)], then codes [n, D]. After a selector, groups run over the kept
    values of a row, and a row with nothing kept has no scale. NaN and Inf are refused.
    """

    group: int
    lossless = False
    takes_float32 = True
    largest: ClassVar[np.float32]  # magnitude after scaling
    max_scale: ClassVar[np.float32]  # `largest` times this is finite
    max_bits: ClassVar[int]  # of `max_scale`
    keeps_scales: ClassVar[bool] = True  # whether `store` keeps all scales from MIN_SCALE to `max_scale`
    code_dtype: ClassVar[Any]  # of one byte

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.max_scale = np.nextafter(np.finfo(np.float32).max / cls.largest, np.float32(0))
        cls.max_bits = bits_of(cls.max_scale)

    def __post_init__(self) -> None:
        if type(self.group) is not int or not (self.group == WHOLE_ROW or 16 <= self.group <= 65536):
            raise CodecError(
                f"{self.stage_name}: group is {self.group!r}, allowed is 0 (whole row) or 16 to 65536 values"
            )

    # -- what a packer says of its codes ----------------------------------------------------------------
    def store(self, scales: np.ndarray, codes: np.ndarray, new: New) -> list[Buffer]:
        """Scales float32 and codes (both flat or [n, ..]) -> the two segments; here, as they are."""
        return [scales, codes]

    @abstractmethod
    def load(
        self, segments: Sequence[Buffer], scales: int, codes: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The two segments -> scales float32, flat, and codes; WireError for what no encoder writes."""

    def row_by_row(self, codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Kept codes [V], counts [n] of them in each row -> what `store` takes, each row's bytes its own."""
        return codes

    def load_kept(
        self, segments: Sequence[Buffer], scales: int, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same as `load`, for the kept codes [V] of all rows."""
        return self.load(segments, scales, (int(counts.sum()),))

    def round_scales(self, scales: np.ndarray) -> None:
        """Make positive scales, in place, ones that `store` can keep to the bit."""
        np.maximum(scales, MIN_SCALE, out=scales)
        np.minimum(scales, self.max_scale, out=scales)

    def to_codes(self, scaled: np.ndarray, codes: np.ndarray) -> None:
        """Scaled values float32 (contiguous, free to be overwritten) -> codes, same shape; here, integers."""
        np.rint(scaled, scaled)
        codes[...] = scaled

    def from_codes(self, codes: np.ndarray, scaled: np.ndarray) -> None:
        """The inverse."""
        scaled[...] = codes

    def new_codes(self, shape: tuple[int, ...], new: New) -> np.ndarray:
        """Memory for codes of this shape."""
        return new(shape, self.code_dtype)

    def new_scales(self, shape: tuple[int, ...], new: New) -> np.ndarray:
        """Memory for scales of this shape."""
        return new(shape, np.float32)

    def stored_bytes(self, shape: tuple[int, int], groups: int) -> list[int]:
        """Largest sizes of the two segments for rows of this shape with `groups` scales each."""
        return [4 * shape[0] * groups, shape[0] * shape[1]]

    # -- whole rows -------------------------------------------------------------------------------------
    def encode(self, x: np.ndarray, new: New = np.empty) -> list[Buffer]:
        n, width = x.shape
        codes = self.new_codes((n, width), new)
        scales = self.new_scales((n, self._groups(width)), new)
        try:
            self._by_groups(self._quantise, x, codes, scales)
        except _NotFinite:
            raise refuse_row(x, str(self)) from None
        return self.store(scales, codes, new)

    def decode(
        self, segments: Sequence[Buffer], shape: tuple[int, int], dtype: np.dtype, out: np.ndarray | None
    ) -> np.ndarray:
        expect(segments, 2, self.stage_name)
        n, width = shape
        groups = self._groups(width)
        scales, codes = self.load(segments, n * groups, shape)
        x = np.empty(shape, np.float32) if out is None else out
        self._by_groups(self._expand, x, codes, scales.reshape(n, groups))
        return x

    def max_segment_bytes(self, shape: tuple[int, int], itemsize: int) -> list[int]:
        return self.stored_bytes(shape, self._groups(shape[1]))

    def _groups(self, width: int) -> int:
        """Number of groups G in a row of D values."""
        return min(1, width) if self.group == WHOLE_ROW else -(-width // self.group)

    def _by_groups(
        self,
        work: Callable[[np.ndarray, np.ndarray, np.ndarray], None],
        x: np.ndarray,
        codes: np.ndarray,
        scales: np.ndarray,
    ) -> None:
        """Work on x, codes [n, D], scales [n, G] as [n, G, S], [n, G, S], [n, G].

        It works twice if a row's last group is shorter. Splitting the last axis never copies.
        """
        if not x.size:
            return
        n, width = x.shape
        group = width if self.group == WHOLE_ROW else self.group
        whole, rest = divmod(width, group)
        cut = whole * group
        if rest:
            self._by_groups(work, x[:, :cut], codes[:, :cut], scales[:, :whole])
            buffers.by_rows(rest, work, x[:, None, cut:], codes[:, None, cut:], scales[:, whole:])
        else:
            block = (n, whole, group)
            buffers.by_rows(group, work, x.reshape(block), codes.reshape(block), scales)

    def _quantise(self, x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> None:
        """x [n, G, S] -> codes [n, G, S], scales [n, G]. Raises _NotFinite."""
        if x.size > buffers.BLOCK_VALUES and len(x) > 1:
            for block in _blocks(x, codes, scales):
                self._quantise(*block)
            return
        flat = buffers.words(x.size)[0, : x.size].view(np.float32)
        work = flat.reshape(x.shape)
        np.abs(x, work)
        # A single row may be larger than a block: its starts are not worth remembering.
        starts = _starts(flat.size, x.shape[2]) if len(x) > 1 else np.arange(0, flat.size, x.shape[2])
        self._to_scales(flat, starts, scales)
        np.multiply(x, np.reciprocal(scales)[:, :, None], work)
        self.to_codes(work, codes)

    def _expand(self, x: np.ndarray, codes: np.ndarray, scales: np.ndarray) -> None:
        """codes [n, G, S] times scales [n, G] -> x [n, G, S]."""
        if x.size > buffers.BLOCK_VALUES and len(x) > 1:
            for block in _blocks(x, codes, scales):
                self._expand(*block)
            return
        self.from_codes(codes, x)
        np.multiply(x, scales[:, :, None], x)

    def _to_scales(self, magnitudes: np.ndarray, starts: np.ndarray, scales: np.ndarray) -> None:
        """Magnitudes, flat, of groups that begin at `starts` -> their scales. Raises _NotFinite."""
        # They order as their bits do, and `reduceat` takes half the time of `reduce` along an axis.
        peaks = np.maximum.reduceat(magnitudes.view(np.int32), starts)
        least, largest = extremes(peaks)
        if largest >= _INFINITY:
            raise _NotFinite
        np.divide(peaks.view(np.float32).reshape(scales.shape), self.largest, out=scales)
        if not (self.keeps_scales and _LEAST_USUAL <= least and largest <= _LARGEST_USUAL):
            self.round_scales(scales)

    # -- values that a selector kept --------------------------------------------------------------------
    def encode_kept(self, values: np.ndarray, counts: np.ndarray, new: New = np.empty) -> list[Buffer]:
        lengths = self._lengths(counts)
        scales = self.new_scales((len(lengths),), new)
        codes = self.new_codes((len(values),), new)
        if len(values):
            starts = np.cumsum(lengths)
            starts -= lengths
            work = np.abs(values, out=np.empty(len(values), np.float32))
            try:
                self._to_scales(work, starts, scales)
            except _NotFinite:
                row = int(np.searchsorted(np.cumsum(counts), np.argmin(np.isfinite(values)), side="right"))
                raise refused(row, str(self)) from None
            np.multiply(values, np.repeat(np.float32(1) / scales, lengths), out=work)
            for start in range(0, len(work), buffers.BLOCK_VALUES):
                block = slice(start, start + buffers.BLOCK_VALUES)
                self.to_codes(work[block], codes[block])
        return self.store(scales, self.row_by_row(codes, counts), new)

    def decode_kept(self, segments: Sequence[Buffer], counts: np.ndarray, dtype: np.dtype) -> np.ndarray:
        expect(segments, 2, self.stage_name)
        lengths = self._lengths(counts)
        scales, codes = self.load_kept(segments, len(lengths), counts)
        values = np.empty(len(codes), np.float32)
        for start in range(0, len(values), buffers.BLOCK_VALUES):
            block = slice(start, start + buffers.BLOCK_VALUES)
            self.from_codes(codes[block], values[block])
        np.multiply(values, np.repeat(scales, lengths), out=values)
        return values

    def _lengths(self, counts: np.ndarray) -> np.ndarray:
        """Kept values in each row [n] -> kept values in each group [G], none of them zero."""
        if self.group == WHOLE_ROW:
            return counts[counts > 0]
        groups = -(-counts // self.group)
        lengths = np.full(int(groups.sum()), self.group, np.int64)
        ends = np.cumsum(groups)
        some = counts > 0
        lengths[ends[some] - 1] = counts[some] - self.group * (groups[some] - 1)
        return lengths


def _blocks(
    x: np.ndarray, codes: np.ndarray, scales: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The same rows of each array [n, ..], as many at a time as fit the scratch."""
    n = len(x)
    step = max(1, buffers.BLOCK_VALUES * n // x.size)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        yield x[rows], codes[rows], scales[rows]


@lru_cache(maxsize=64)
def _starts(values: int, size: int) -> np.ndarray:
    """Where groups of `size` values begin."""
    return np.arange(0, values, size)
