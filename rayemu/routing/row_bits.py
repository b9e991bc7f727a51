"""Numbers that look random and depend on nothing but a seed and a row's own bits.

A router that draws from a generator would give a row another number in other company; from these it does not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32

Bits = npt.NDArray[np.uint64]
_STEP = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio


def row_bits(rows: F32, seed: int = 0) -> Bits:
    """rows [T, D] -> 64 bits for each row [T], by a sum of its values' bits times odd numbers, mixed.

    Equal rows have equal bits; 0.0 and -0.0 are not equal here.
    """
    width = rows.shape[1]
    odd = mixed(np.arange(1, width + 1, dtype=np.uint64) * np.uint64(_STEP)) | np.uint64(1)  # [D]
    words = np.ascontiguousarray(rows).view(np.uint32)
    start = np.uint64((seed % 2**64 * 2 + 1) * _STEP % 2**64)
    return mixed((words * odd).sum(axis=1, dtype=np.uint64) + start)  # integers: no order to depend on


def mixed(bits: Bits) -> Bits:
    """Bits of which each depends on all of `bits`: the finaliser of SplitMix64.

    Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators, figure 15.
    """
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def many_of(bits: Bits, count: int) -> F32:
    """`count` numbers in [0, 1) for each of `bits` [T]: [T, count] float32, multiples of 2^-24."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
    drawn = mixed(bits[:, None] + steps) >> np.uint64(40)
    return drawn.astype(np.float32) * np.float32(2**-24)
