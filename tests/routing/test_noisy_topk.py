"""Noisy top-k: how often the lesser expert wins, by the normal distribution; without noise, softmax_topk."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rayemu.routing import Context, Gate, make_router
from rayemu.routing.noisy_topk import gaussian

X = np.random.default_rng(0).standard_normal((20_000, 8), dtype=np.float32)


def _level_gate(logits: list[float]) -> Gate:
    """A gate that gives every row `logits`."""
    return Gate(np.zeros((8, len(logits)), np.float32), None, np.array(logits, np.float32))


@pytest.mark.parametrize(("gap", "noise", "layer"), [(0.5, 1.0, 0), (0.5, 0.25, 3), (0.0, math.log(2), 1)])
def test_the_lesser_expert_wins_as_often_as_the_normal_distribution_says(
    gap: float, noise: float, layer: int
) -> None:
    """P(a + gap < b) for a, b ~ N(0, noise): Phi(-gap / (noise sqrt 2))."""
    router = make_router("noisy_topk", 2, top_k=1, noise=noise)
    experts = router.route(X, _level_gate([gap, 0.0]), Context(layer=layer)).experts
    odds = stats.norm.cdf(-gap / (noise * math.sqrt(2)))
    assert stats.binomtest(int(experts.sum()), len(X), odds).pvalue > 0.001


def test_weights_are_the_softmax_of_noisy_logits() -> None:
    """The logarithm of two weights' ratio is normal around the gap, with twice the variance."""
    router = make_router("noisy_topk", 2, top_k=2, noise=0.5, scaling=3.0)
    experts, weights = router.route(X, _level_gate([0.3, 0.0]))
    np.testing.assert_allclose(weights.sum(axis=1), 3.0, rtol=1e-6)
    assert (weights[:, 0] >= weights[:, 1]).all()
    ratio = np.log(weights[:, 0] / weights[:, 1].astype(np.float64)) * np.where(experts[:, 0], -1, 1)
    assert stats.kstest(ratio, stats.norm(0.3, 0.5 * math.sqrt(2)).cdf).pvalue > 0.001


@pytest.mark.parametrize("count", [1, 4, 7])
def test_noise_is_normal_and_of_its_own_for_each_expert(count: int) -> None:
    numbers = gaussian(np.arange(30_000, dtype=np.uint64), count, 2.0).astype(np.float64)
    assert numbers.shape == (30_000, count)
    assert stats.kstest(numbers.ravel() / 2, stats.norm.cdf).pvalue > 0.001
    assert abs(numbers).max() < 2 * 4.4
    if count > 1:
        limit = 5 / math.sqrt(len(numbers))
        assert abs(np.corrcoef(numbers.T) - np.eye(count)).max() < limit
        assert abs(np.corrcoef(numbers[1:, 0], numbers[:-1, 0])[0, 1]) < limit


@given(st.booleans(), st.integers(1, 8), st.data())
def test_without_noise_it_is_softmax_topk(renormalise: bool, k: int, data: st.DataObject) -> None:
    value = st.sampled_from([-np.inf, -0.0, 0.0, np.inf, np.nan]) | st.floats(-9, 9, width=32)
    rows = data.draw(st.lists(st.lists(value, min_size=8, max_size=8), min_size=1, max_size=3))
    logits = np.array(rows, np.float32)
    gate = _level_gate([0.0] * 8)
    scores = np.concatenate(
        (logits, make_router("noisy_topk", 8, top_k=1).scores(X[: len(logits)], gate)[:, 8:]), 1
    )
    params = {"top_k": k, "renormalise": renormalise}
    plain = make_router("softmax_topk", 8, **params).choose(logits, gate, Context())
    found = make_router("noisy_topk", 8, noise=0.0, **params).choose(scores, gate, Context())
    assert found.experts.tolist() == plain.experts.tolist()
    np.testing.assert_array_equal(found.weights, plain.weights)


def test_seeds_and_layers_have_noise_of_their_own() -> None:
    gate = _level_gate([0.0] * 4)
    chosen = [
        make_router("noisy_topk", 4, top_k=1, seed=seed).route(X, gate, Context(layer=layer)).experts
        for seed, layer in ((0, 0), (1, 0), (0, 1))
    ]
    for other in chosen[1:]:
        assert stats.binomtest(int((other == chosen[0]).sum()), len(X), 1 / 4).pvalue > 0.001


@pytest.mark.filterwarnings("error")
def test_nan_and_infinite_logits_are_taken_as_without_noise() -> None:
    nan, inf = math.nan, math.inf
    for logits, first in (([0, nan, 5, 0], 1), ([-inf, 3, -inf, -inf], 1), ([0, 9, inf, 0], 2)):
        experts, weights = make_router("noisy_topk", 4, top_k=2).route(X[:5], _level_gate(logits))
        assert (experts[:, 0] == first).all() and np.isnan(weights).any() == (nan in logits)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"noise": -0.1}, r"routing.noise is -0.1; allowed: 0 and above, finite"),
        ({"noise": math.nan}, r"routing.noise is nan"),
        ({"noise": math.inf}, r"routing.noise is inf"),
        ({"seed": -1}, r"routing.seed is -1; allowed: 0 and above"),
        ({"top_k": 9}, r"routing.top_k is 9; allowed: 1 to 8"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("noisy_topk", 8, **{"top_k": 2, **params})
