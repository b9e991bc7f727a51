"""sparse: a bitmap of the values worth keeping, and those values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from . import buffers
from .buffers import New
from .keeping import Keeping, set_bits
from .raw import Raw
from .segments import Buffer
from .stage import PackStage


@dataclass(frozen=True)
class Sparse(Keeping):
    """Drops the values of magnitude up to `threshold`; a bitmap says where the kept ones go.

    With threshold 0 only the exact (positive) zeros go, so that the stage is lossless, NaN and negative zero
    included. Above 0: error at most `threshold`, NaN and Inf are refused.
    Segments: bitmap uint8 [n, ceil(D / 8)], lowest bit first, then those of the packer for the kept values.
    """

    threshold: float = 0.0

    stage_name = "sparse"

    def encode(self, x: np.ndarray, pack: PackStage, new: New = np.empty) -> list[Buffer]:
        keep = self.keep(x)  # [n, D]
        bitmap = buffers.placed(np.packbits(keep, axis=1, bitorder="little"), new)
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
        bitmap = self.read_bitmap(segments, n, width)
        counts = set_bits(bitmap)
        values = self.read_values(segments, counts, dtype, pack)
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


def _blocks(counts: np.ndarray, width: int) -> Iterator[tuple[slice, int]]:
    """Slices of rows that fit the cache, with the number of values kept in them."""
    step = max(1, buffers.BLOCK_VALUES // max(1, width))
    for start in range(0, len(counts), step):
        rows = slice(start, start + step)
        yield rows, int(counts[rows].sum())
