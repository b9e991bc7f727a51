"""Weights of fewer than 16 bits, as published checkpoints hold them, back to float32.

FP8: e4m3 codes with a float32 scale per block of 128 x 128 (DeepSeek-AI 2024 (V3), section 3.3.2). Only the
weights count here: what those models do to activations before an 8-bit product is not emulated.
"""

from __future__ import annotations

import numpy as np

from rayemu.numerics import F32


def _e4m3() -> F32:
    """Value of each e4m3 code: 1 sign, 4 exponent bits (bias 7), 3 mantissa bits; 0x7f is NaN, no infinity.

    OCP OFP8 specification, table 1.
    """
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = np.ldexp(8.0 + mantissa, exponent - 10)
    magnitude = np.where(exponent > 0, normal, np.ldexp(mantissa.astype(float), -9))
    magnitude[(codes & 127) == 127] = np.nan
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


E4M3 = _e4m3()  # [256]


def scaled_blocks(values: F32, scales: F32, block: tuple[int, int]) -> None:
    """values *= scale, in place: values [..., M, N], scales [..., ceil(M / rows), ceil(N / columns)].

    `block` is (rows, columns).
    """
    rows, columns = block
    with np.errstate(over="ignore", invalid="ignore"):  # whoever reads them looks for what is not finite
        for number in range(scales.shape[-2]):
            part = values[..., number * rows : (number + 1) * rows, :]
            part *= np.repeat(scales[..., number, :], columns, axis=-1)[..., None, : values.shape[-1]]
