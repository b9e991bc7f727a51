"""Randomness of a row: a hash of its bits, so that it is the same in any company and at any place.

Shapes: T tokens, D model width, E experts, K choices.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from rayemu.numerics import F32

U64 = npt.NDArray[np.uint64]

WORDS = 2  # columns of scores that a hash takes
_WORD = 24  # bits of each: whole numbers below 2^24 are float32 values, and no NaN or denormal among them
_STEP = np.uint64(0x9E3779B97F4A7C15)


def row_hash(x: F32, seed: int) -> F32:
    """48 bits of the XXH3 hash of each row [T, D], as two whole numbers below 2^24: [T, 2] float32.

    -0.0 counts as 0.0, which it equals. NaN counts by its bits: rows with unlike NaN are unlike rows.
    """
    with np.errstate(invalid="ignore"):  # of signalling NaN
        rows = np.add(x, np.float32(0), order="C")  # without -0.0
    seed %= 1 << 64
    hashes = np.fromiter((xxh3_64_intdigest(row, seed) for row in rows), np.uint64, len(rows))
    words = np.empty((len(rows), WORDS), np.float32)
    words[:, 0] = hashes & np.uint64((1 << _WORD) - 1)
    words[:, 1] = hashes >> np.uint64(64 - _WORD)
    return words


def keys(words: F32, salt: int = 0) -> U64:
    """What `row_hash` gave, [T, 2], as numbers [T]; another `salt` makes others of them."""
    low, high = words.astype(np.uint64).T
    return _mixed((low | high << np.uint64(_WORD)) + np.uint64(salt * int(_STEP) % (1 << 64)))


def draws(keys: U64, count: int) -> U64:
    """`count` random 64-bit numbers for each key: [T] -> [T, count]."""
    return _mixed(keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _STEP)


def draw_experts(keys: U64, experts: int, count: int) -> npt.NDArray[np.int32]:
    """`count` different experts of `experts` for each key [T], each set as likely as any other: [T, count].

    R. Floyd's algorithm (Bentley and Floyd 1987, "A sample of brilliance"): the i-th draw is among the first
    experts - count + i, and what is already chosen makes room for the last of these.
    """
    numbers = draws(keys, count) >> np.uint64(32)  # [T, K]
    chosen = np.empty(numbers.shape, np.int32)
    for i in range(count):
        last = experts - count + i
        drawn = (numbers[:, i] * np.uint64(last + 1) >> np.uint64(32)).astype(np.int32)  # [T] of 0 to last
        taken = (chosen[:, :i] == drawn[:, None]).any(axis=1)
        chosen[:, i] = np.where(taken, last, drawn)
    return chosen


def _mixed(numbers: U64) -> U64:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014), in place."""
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers
