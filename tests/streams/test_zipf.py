from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from scipy import stats

from rayemu.streams import Uniform, Zipf

DRAWS = 200_000


def counts(stream: Zipf | Uniform) -> np.ndarray:
    tokens = np.concatenate(list(islice(stream.tokens(DRAWS // 10, seed=11), 10)))
    return np.bincount(tokens, minlength=stream.vocabulary)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0, 1.1, 2.0])
def test_frequencies_follow_zipfs_law(alpha: float) -> None:
    mass = np.array([1 / (rank**alpha) for rank in range(1, 101)])
    expected = mass / mass.sum() * DRAWS
    _, p_value = stats.chisquare(counts(Zipf(vocabulary=100, alpha=alpha)), expected)
    assert p_value > 1e-3


def test_uniform_frequencies_are_equal() -> None:
    _, p_value = stats.chisquare(counts(Uniform(vocabulary=100)))
    assert p_value > 1e-3


def test_draws_are_independent_of_their_neighbours() -> None:
    tokens = next(Zipf(vocabulary=2, alpha=0).tokens(DRAWS, seed=4))
    pairs = np.bincount(2 * tokens[1:] + tokens[:-1], minlength=4)
    assert stats.chisquare(pairs).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [-0.1, 21.0, float("nan")])
def test_alpha_is_checked(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"^alpha: "):
        Zipf(alpha=alpha)
