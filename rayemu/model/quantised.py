"""Weights of fewer than 16 bits, as published checkpoints hold them, back to float32.

FP8: e4m3 codes with a float32 scale per block of 128 x 128 (DeepSeek-AI 2024 (V3), section 3.3.2). Only the
weights count here: what those models do to activations before an 8-bit product is not emulated.

MXFP4: e2m1 codes, two in a byte, with a power of two per 32 of them (OCP Microscaling Formats (MX) 1.0,
section 5).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
MX_BLOCK = 32  # values that share a scale
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_E2M1_PAIRS = np.stack(  # [256, 2]: the values of a byte, that of its low half first
    [np.concatenate([_E2M1, -_E2M1])[half] for half in (np.arange(256) & 15, np.arange(256) >> 4)], axis=1
)
# [256]; 255 is NaN
_E8M0 = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32(np.nan)).astype(np.float32)


def scaled_blocks(values: F32, scales: F32, block: tuple[int, int]) -> None:
    """values *= scale, in place: values [..., M, N], scales [..., ceil(M / rows), ceil(N / columns)].

    `block` is (rows, columns).
    """
    rows, columns = block
    with np.errstate(over="ignore", invalid="ignore"):  # whoever reads them looks for what is not finite
        for number in range(scales.shape[-2]):
            part = values[..., number * rows : (number + 1) * rows, :]
            part *= np.repeat(scales[..., number, :], columns, axis=-1)[..., None, : values.shape[-1]]


def mxfp4(blocks: npt.NDArray[np.uint8], scales: npt.NDArray[np.uint8]) -> F32:
    """Values [..., 32 * B] of blocks [..., B, 16] and scales [..., B]; a scale s is 2^(s - 127), 255 NaN."""
    values = _E2M1_PAIRS[blocks].reshape(*scales.shape, MX_BLOCK)
    values *= _E8M0[scales][..., None]
    return values.reshape(*scales.shape[:-1], -1)
