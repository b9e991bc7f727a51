"""raw: the values as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .buffers import New
from .segments import Buffer, expect, view
from .stage import PackStage


@dataclass(frozen=True)
class Raw(PackStage):
    """The values as they are, without a copy of a contiguous input.

    One segment: the values, row after row. Decoding gives a view of the segment unless `out` is given.
    """

    stage_name = "raw"
    lossless = True
    takes_float32 = False

    def encode(self, x: np.ndarray, new: New = np.empty) -> list[Buffer]:
        return [x]

    def decode(
        self, segments: Sequence[Buffer], shape: tuple[int, int], dtype: np.dtype, out: np.ndarray | None
    ) -> np.ndarray:
        expect(segments, 1, "raw")
        x = view(segments[0], dtype, shape[0] * shape[1], "raw values").reshape(shape)
        if out is None or dtype != out.dtype:
            return x
        np.copyto(out, x)
        return out

    def encode_kept(self, values: np.ndarray, counts: np.ndarray, new: New = np.empty) -> list[Buffer]:
        return [values]

    def decode_kept(self, segments: Sequence[Buffer], counts: np.ndarray, dtype: np.dtype) -> np.ndarray:
        expect(segments, 1, "raw")
        return view(segments[0], dtype, int(counts.sum()), "raw kept values")

    def max_segment_bytes(self, shape: tuple[int, int], itemsize: int) -> list[int]:
        return [shape[0] * shape[1] * itemsize]
