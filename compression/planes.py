"""planes: the bytes of the values, sorted by their place in the value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import buffers
from .buffers import New
from .segments import Buffer, expect, view
from .stage import PackStage


@dataclass(frozen=True)
class Planes(PackStage):
    """One segment for each byte of a value, the lowest first; for a byte stage to follow.

    The sign moves to the lowest bit, so that the last plane of float32 and bfloat16 is the exponent: the part
    of activations that compresses. Lossless, NaN included.
    """

    stage_name = "planes"
    lossless = True
    takes_float32 = False

    def encode(self, x: np.ndarray, new: New = np.empty) -> list[Buffer]:
        return list(_split(np.ascontiguousarray(x).reshape(-1), new))

    def decode(
        self, segments: Sequence[Buffer], shape: tuple[int, int], dtype: np.dtype, out: np.ndarray | None
    ) -> np.ndarray:
        x = np.empty(shape, dtype) if out is None or out.dtype != dtype else out
        flat = x.reshape(-1) if x.flags.c_contiguous else np.empty(x.size, dtype)
        _join(segments, flat)
        if not x.flags.c_contiguous:
            x[...] = flat.reshape(shape)
        return x

    def encode_kept(self, values: np.ndarray, counts: np.ndarray, new: New = np.empty) -> list[Buffer]:
        return list(_split(values, new))

    def decode_kept(self, segments: Sequence[Buffer], counts: np.ndarray, dtype: np.dtype) -> np.ndarray:
        values = np.empty(int(counts.sum()), dtype)
        _join(segments, values)
        return values

    def max_segment_bytes(self, shape: tuple[int, int], itemsize: int) -> list[int]:
        return [shape[0] * shape[1]] * itemsize


def _split(values: np.ndarray, new: New) -> np.ndarray:
    """Values [V] of 2 or 4 bytes -> planes uint8 [bytes, V]."""
    size = values.itemsize
    bits = values.view(np.uint16 if size == 2 else np.uint32)
    planes = new((size, len(bits)), np.uint8)
    for start in range(0, len(bits), buffers.BLOCK_VALUES):
        block = bits[start : start + buffers.BLOCK_VALUES]
        turned, byte = (words.view(bits.dtype)[: len(block)] for words in buffers.words(len(block)))
        np.left_shift(block, block.dtype.type(1), out=turned)
        np.right_shift(block, block.dtype.type(8 * size - 1), out=byte)
        np.bitwise_or(turned, byte, out=turned)
        for plane in planes:
            np.copyto(plane[start : start + len(block)], turned, casting="unsafe")
            np.right_shift(turned, block.dtype.type(8), out=turned)
    return planes


def _join(segments: Sequence[Buffer], values: np.ndarray) -> None:
    """Planes, one segment each -> values [V], written to."""
    size = values.itemsize
    expect(segments, size, "planes")
    planes = [view(segment, np.uint8, len(values), "planes") for segment in segments]
    bits = values.view(np.uint16 if size == 2 else np.uint32)
    for start in range(0, len(bits), buffers.BLOCK_VALUES):
        block = bits[start : start + buffers.BLOCK_VALUES]
        word = buffers.words(len(block))[0].view(bits.dtype)[: len(block)]
        np.copyto(block, planes[-1][start : start + len(block)])
        for plane in reversed(planes[:-1]):
            np.left_shift(block, block.dtype.type(8), out=block)
            np.bitwise_or(block, plane[start : start + len(block)], out=block)
        np.left_shift(block, block.dtype.type(8 * size - 1), out=word)
        np.right_shift(block, block.dtype.type(1), out=block)
        np.bitwise_or(block, word, out=block)
