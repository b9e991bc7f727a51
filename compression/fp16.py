"""fp16: IEEE half precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .buffers import New
from .errors import CodecError
from .segments import check_finite, refuse_row
from .stage import ArrayStage

MAX = 65504.0


@dataclass(frozen=True)
class Fp16(ArrayStage):
    """IEEE half precision: 11 significant bits, magnitudes up to 65504.

    Error: at most max(|x| * 2^-11, 2^-25), rounding to nearest even. NaN, Inf, and values that would round
    beyond 65504 are refused.
    """

    stage_name = "fp16"
    lossless = False
    dtype = np.dtype(np.float16)

    def check(self, y: np.ndarray) -> None:
        if y.size and np.maximum.reduce(y.view(np.uint16) & 0x7FFF, axis=None) >= 0x7C00:
            raise refuse_row(y, "fp16")

    def encode(self, x: np.ndarray, new: New = np.empty) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore"):
            y = new(x.shape, np.float16)
            np.copyto(y, x, casting="same_kind")
        if y.size and np.maximum.reduce(y.view(np.uint16) & 0x7FFF, axis=None) >= 0x7C00:
            if not np.isfinite(x).all():
                raise refuse_row(x, "fp16")
            row = int(np.argmax(np.isinf(y).any(axis=1)))
            raise CodecError(f"fp16: row {row} holds a value beyond {MAX:g} (use bf16 or int8)", row)
        return y

    def decode(self, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if y.dtype == np.float16:
            check_finite(y.view(np.uint16), 0x7C00, "fp16")
        if out is None:
            return y.astype(np.float32, copy=False)
        if y is not out:
            np.copyto(out, y)
        return out
