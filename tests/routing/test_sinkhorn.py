"""Sinkhorn against the same in logarithms, the plan's shares, and how near its top-k comes to balance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from rayemu.routing import Context, Gate, Sinkhorn, SoftmaxTopK, make_router
from rayemu.routing.sinkhorn import balancing_bias

GATE = Gate(np.zeros((1, 1), np.float32))
INF, NAN = math.inf, math.nan


def _skewed(tokens: int, experts: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    skew = rng.standard_normal(experts).astype(np.float32)
    return rng.standard_normal((tokens, experts), dtype=np.float32) + skew


def _plan(logits: np.ndarray, iterations: int, temperature: float) -> np.ndarray:
    """Sinkhorn's plan [T, E] by scales in logarithms; every row 1, every column T / E."""
    cost = logits.astype(np.float64) / temperature
    tokens, experts = cost.shape
    column = np.zeros(experts)
    for _ in range(iterations):
        row = -logsumexp(cost + column, axis=1)
        column = math.log(tokens / experts) - logsumexp(cost + row[:, None], axis=0)
    return np.exp(cost + column + row[:, None])


@pytest.mark.parametrize("temperature", [1.0, 0.25, 0.05])
@pytest.mark.parametrize("iterations", [1, 3, 200])
def test_the_bias_is_that_of_the_plan(iterations: int, temperature: float) -> None:
    logits = _skewed(60, 8, 1)
    plan = _plan(logits, iterations, temperature)
    rows = logits.astype(np.float64) + balancing_bias(logits, iterations, temperature)
    ours = np.exp(rows / temperature)
    share = plan.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours / ours.sum(axis=1, keepdims=True) * share, plan, rtol=1e-4, atol=1e-9)
    for top_k in (1, 3):
        experts, _ = Sinkhorn(top_k, iterations, temperature).choose(logits.copy(), GATE, Context())
        assert experts.tolist() == (-plan).argsort(axis=1, kind="stable")[:, :top_k].tolist()


def test_the_plan_gives_every_expert_the_same_share() -> None:
    logits = _skewed(70, 8, 2)
    powers = np.exp(logits + balancing_bias(logits, iterations=200, temperature=1.0))
    plan = powers / powers.sum(axis=1, keepdims=True)  # each row 1
    np.testing.assert_allclose(plan.sum(axis=0), 70 / 8, rtol=1e-5)


@pytest.mark.parametrize("top_k", [1, 4])
def test_the_choices_are_more_even_than_the_gate_s_own(top_k: int) -> None:
    logits = _skewed(512, 16, 3)

    def busiest(router: Any) -> float:
        experts = router.choose(logits.copy(), GATE, Context()).experts
        return np.bincount(experts.ravel(), minlength=16).max() / (512 * top_k / 16)

    assert busiest(SoftmaxTopK(top_k)) > 2 and busiest(Sinkhorn(top_k)) < 1.25


def test_weights_are_the_gate_s_and_not_the_plan_s() -> None:
    # both tokens would go to expert 0; the second has less to lose
    logits = np.log(np.array([[8, 1, 1], [6, 3, 1], [3, 3, 4]], np.float32))
    experts, weights = Sinkhorn(1, renormalise=False, scaling=2).choose(logits.copy(), GATE, Context())
    assert experts.tolist() == [[0], [1], [2]]
    np.testing.assert_allclose(weights, [[1.6], [0.6], [0.8]], rtol=1e-6)
    experts, weights = Sinkhorn(2).choose(logits.copy(), GATE, Context())
    odds = np.take_along_axis(np.exp(logits), experts, axis=1)
    np.testing.assert_allclose(weights, odds / odds.sum(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_ties_go_to_the_lower_expert(tokens: int) -> None:
    logits = np.zeros((tokens, 7), np.float32)
    experts, weights = Sinkhorn(3).choose(logits, GATE, Context())
    assert experts.tolist() == [[0, 1, 2]] * tokens and weights.shape == (tokens, 3)


@pytest.mark.filterwarnings("error")
@given(st.data(), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1e-30, 0.25, 1.0]), st.booleans())
def test_k_different_experts_whatever_the_logits_are(
    data: st.DataObject, tokens: int, top_k: int, temperature: float, renormalise: bool
) -> None:
    value = st.sampled_from([-INF, INF, NAN, -1e30, -200.0, 0.0, 1.0])
    row = st.lists(value, min_size=4, max_size=4)
    logits = np.array(data.draw(st.lists(row, min_size=tokens, max_size=tokens)), np.float32)
    router = Sinkhorn(top_k, 4, temperature, renormalise)
    experts, weights = router.choose(logits.copy(), GATE, Context())
    for token, chosen in enumerate(experts.tolist()):
        assert len(set(chosen)) == top_k and all(0 <= e < 4 for e in chosen)
        if np.isnan(logits[token]).any():
            assert np.isnan(weights[token]).any()
        else:
            assert np.isfinite(weights[token]).all() and (weights[token] >= 0).all()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"iterations": 0}, r"^routing\.iterations is 0; allowed: 1 to 10,000$"),
        ({"temperature": 0.0}, r"^routing\.temperature is 0\.0; allowed: a number above 0$"),
        ({"temperature": NAN}, r"^routing\.temperature is nan; allowed: a number above 0$"),
        ({"top_k": 5}, r"^routing\.top_k is 5; allowed: 1 to 4"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("sinkhorn", 4, **{"top_k": 2, **params})
