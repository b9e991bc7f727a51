"""The auxiliary loss: its gradient against finite differences, and a skewed stream that evens out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.routing import AuxLossTopK, Context, SoftmaxTopK, make_router
from rayemu.routing.aux_loss_topk import loss_gradient
from tests.routing.batch_scope import NAN, NO_GATE, check_routing, choose, context, normal, odd_logits, same


def _loss(logits: np.ndarray, shares: np.ndarray) -> float:
    """E sum_e f_e P_e in float64."""
    powers = np.exp(logits.astype(np.float64))
    mean = (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0)
    return float(len(shares) * (shares * mean).sum())


def test_the_gradient_is_that_of_finite_differences() -> None:
    logits = normal(50, 12)
    shares = np.random.default_rng(1).dirichlet(np.ones(12))
    gradient = loss_gradient(logits, shares)
    for expert in range(12):
        step = np.zeros(12)
        step[expert] = 1e-4
        slope = (_loss(logits + step, shares) - _loss(logits - step, shares)) / 2e-4
        assert math.isclose(gradient[expert], slope, rel_tol=1e-4, abs_tol=1e-6)
    assert abs(gradient.sum()) < 1e-6, "a bias that all share changes nothing"


def test_a_batch_takes_one_step() -> None:
    router = AuxLossTopK(2, rate=0.7)
    logits, start = normal(40, 6), np.linspace(-0.3, 0.3, 6)
    state = start.copy()
    routing = choose(router, logits, context(40, 6, state=state))
    biased = logits + start.astype(np.float32)
    same(routing, choose(SoftmaxTopK(2), biased))
    shares = np.bincount(routing.experts.ravel(), minlength=6) / 80
    for expert in range(6):
        step = np.zeros(6)
        step[expert] = 1e-4
        slope = (_loss(biased + step, shares) - _loss(biased - step, shares)) / 2e-4
        assert math.isclose(state[expert], start[expert] - 0.7 * slope, abs_tol=1e-5)


def test_rows_with_nan_teach_nothing() -> None:
    logits, shares = normal(6, 4), np.array([0.4, 0.3, 0.2, 0.1])
    broken = np.vstack([logits, [[0, NAN, 0, 0]]]).astype(np.float32)
    np.testing.assert_array_equal(loss_gradient(broken, shares), loss_gradient(logits, shares))
    np.testing.assert_array_equal(loss_gradient(broken[6:], shares), np.zeros(4))


@given(odd_logits(), st.integers(1, 8), st.booleans())
def test_before_it_learned_it_is_softmax_topk(logits: np.ndarray, k: int, renormalise: bool) -> None:
    plain = SoftmaxTopK(k, renormalise).choose(logits.copy(), NO_GATE, Context())
    same(choose(AuxLossTopK(k, renormalise=renormalise), logits), plain)


@given(odd_logits(), st.integers(1, 8))
def test_every_row_gets_its_choices(logits: np.ndarray, k: int) -> None:
    router = AuxLossTopK(k, 3.0)
    state = router.new_state(8)
    for _ in range(3):
        check_routing(choose(router, logits, context(len(logits), 8, state=state)), logits, k)
    assert np.isfinite(state).all()


def test_it_stops_learning_when_told_to() -> None:
    state = np.linspace(0, 1, 8)
    routing = choose(AuxLossTopK(2, learn=False), normal(9, 8), context(9, 8, state=state))
    np.testing.assert_array_equal(state, np.linspace(0, 1, 8))
    same(routing, choose(SoftmaxTopK(2), normal(9, 8) + state.astype(np.float32)))


def test_a_skewed_stream_evens_out() -> None:
    """From more than 20 times as many choices for the fullest expert as for the emptiest to less than 3."""
    skew = np.linspace(1.2, -1.2, 16, dtype=np.float32)
    router = AuxLossTopK(2, rate=1.0)
    state, ratios = router.new_state(16), []
    for batch in range(60):
        routing = choose(router, normal(1024, 16, seed=batch) + skew, context(1024, 16, state=state))
        load = np.bincount(routing.experts.ravel(), minlength=16)
        ratios.append(load.max() / max(load.min(), 1))
    assert ratios[0] > 20 and np.mean(ratios[-10:]) < 3


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_an_impossible_rate_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"routing\.rate is {bad}; allowed: "):
        make_router("aux_loss_topk", 8, top_k=2, rate=bad)
