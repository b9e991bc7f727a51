"""What is drawn from a row's bits: against XXH3, SplitMix64's published numbers, and chi-square."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import xxhash
from scipy import stats

from rayemu.routing.row_bits import draw_experts, draws, keys, row_hash


def _rows(count: int, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width), dtype=np.float32)


@pytest.mark.parametrize("seed", [0, 7, 2**70 + 7])
def test_hash_is_48_bits_of_xxh3(seed: int) -> None:
    x = _rows(50)
    words = row_hash(x, seed)
    assert words.dtype == np.float32
    for row, (low, high) in zip(x, words.tolist(), strict=True):
        digest = xxhash.xxh3_64_intdigest(row.tobytes(), seed % 2**64)
        assert (int(low), int(high)) == (digest % 2**24, digest >> 40)


def test_hash_counts_values_and_not_how_they_lie() -> None:
    x = _rows(20, 8)
    words = row_hash(x, 1)
    np.testing.assert_array_equal(row_hash(np.asfortranarray(x), 1), words)
    np.testing.assert_array_equal(row_hash(np.repeat(x, 2, axis=1)[:, ::2], 1), words)
    np.testing.assert_array_equal(row_hash(x[::-3], 1), words[::-3])
    zeros = np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32)
    assert len(np.unique(row_hash(zeros, 1), axis=0)) == 1
    assert len(np.unique(row_hash(np.nextafter(x[:1], np.float32(9)), 1) == words[:1])) == 1
    assert row_hash(x[:0], 1).shape == (0, 2)


@pytest.mark.filterwarnings("error")
def test_nan_counts_by_its_bits() -> None:
    quiet, other, signalling = 0x7FC00000, 0x7FC00001, 0x7F800001
    x = np.array([[quiet], [quiet], [other], [signalling]], np.uint32).view(np.float32)
    words = row_hash(x, 0).tolist()
    assert words[0] == words[1] != words[2] and all(math.isfinite(v) for row in words for v in row)


@pytest.mark.filterwarnings("error")
def test_draws_are_those_of_splitmix64() -> None:
    """Its first outputs from the seed 0, as its authors' C code prints them."""
    wanted = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert draws(np.zeros(1, np.uint64), 3).tolist() == [wanted]
    # the salt is a step of the same generator, whose output is the key
    assert keys(np.zeros((1, 2), np.float32), 2).tolist() == [wanted[1]]


def test_experts_by_the_algorithm_one_row_at_a_time() -> None:
    numbers = keys(row_hash(_rows(40), 0))
    for experts, count in ((1, 1), (7, 7), (9, 4)):
        found = draw_experts(numbers, experts, count)
        assert found.dtype == np.int32
        for t, each in enumerate(draws(numbers, count).tolist()):
            chosen: list[int] = []
            for i, last in enumerate(range(experts - count, experts)):
                drawn = (each[i] >> 32) * (last + 1) >> 32
                chosen.append(last if drawn in chosen else drawn)
            assert found[t].tolist() == chosen


@pytest.mark.parametrize(("experts", "count"), [(6, 2), (6, 3), (5, 4)])
def test_every_set_of_experts_is_as_likely(experts: int, count: int) -> None:
    drawn = np.sort(draw_experts(keys(row_hash(_rows(30_000), 0)), experts, count), axis=1)
    sets, found = np.unique(drawn, axis=0, return_counts=True)
    assert [tuple(s) for s in sets.tolist()] == list(combinations(range(experts), count))
    assert stats.chisquare(found).pvalue > 0.001
