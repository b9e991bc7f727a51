"""Bias updates without an auxiliary loss: the algorithm in a loop, and a skewed stream that evens out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.routing import BiasBalancedTopK, Context, Gate, SigmoidGroupTopK, SoftmaxTopK, make_router
from tests.routing.batch_scope import NO_GATE, check_routing, choose, context, normal, odd_logits, same


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
@pytest.mark.parametrize("selection", [False, True])
def test_equals_algorithm_1(score: str, selection: bool) -> None:
    router = BiasBalancedTopK(2, rate=0.03, score=score, scaling=2.0)
    own = np.linspace(-0.1, 0.1, 6, dtype=np.float32) if selection else np.zeros(6, np.float32)
    gate = Gate(np.zeros((1, 6), np.float32), own if selection else None)
    state, bias = router.new_state(6), np.zeros(6)
    for batch in range(4):
        logits = normal(31, 6, seed=batch)
        routing = router.choose(logits.copy(), gate, context(31, 6, state=state))
        load = [0] * 6
        for t, row in enumerate(logits.astype(np.float64)):
            s = 1 / (1 + np.exp(-row)) if score == "sigmoid" else np.exp(row) / np.exp(row).sum()
            chosen = np.argsort(-(s + bias + own))[:2]
            assert routing.experts[t].tolist() == chosen.tolist()
            np.testing.assert_allclose(routing.weights[t], 2 * s[chosen] / s[chosen].sum(), rtol=1e-5)
            for e in chosen:
                load[e] += 1
        for e in range(6):
            error = 62 / 6 - load[e]
            bias[e] += 0.03 * (1 if error > 0 else -1 if error < 0 else 0)
        np.testing.assert_allclose(state, bias, atol=1e-12)


@given(odd_logits(), st.integers(1, 8), st.booleans())
def test_without_a_bias_it_is_the_plain_router(logits: np.ndarray, k: int, renormalise: bool) -> None:
    for score, plain in (
        ("softmax", SoftmaxTopK(k, renormalise)),
        ("sigmoid", SigmoidGroupTopK(k, renormalise=renormalise)),
    ):
        router = BiasBalancedTopK(k, score=score, renormalise=renormalise)
        same(choose(router, logits), plain.choose(logits.copy(), NO_GATE, Context()))


@given(odd_logits(), st.integers(1, 8), st.sampled_from(["sigmoid", "softmax"]))
def test_every_row_gets_its_choices(logits: np.ndarray, k: int, score: str) -> None:
    router = BiasBalancedTopK(k, 0.5, score)
    state = router.new_state(8)
    for _ in range(3):
        check_routing(choose(router, logits, context(len(logits), 8, state=state)), logits, k)
    assert np.isfinite(state).all()


def test_it_stops_learning_when_told_to() -> None:
    state = BiasBalancedTopK(2).new_state(8)
    state[:] = np.linspace(0, 1, 8)
    before = state.copy()
    routing = choose(BiasBalancedTopK(2, learn=False), normal(9, 8), context(9, 8, state=state))
    np.testing.assert_array_equal(state, before)
    assert (routing.experts != choose(BiasBalancedTopK(2), normal(9, 8)).experts).any(), "it is used still"


@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_a_skewed_stream_evens_out(score: str) -> None:
    """From more than 20 times as many choices for the first expert as for the last to less than twice."""
    skew = np.linspace(1.2, -1.2, 16, dtype=np.float32)
    router = BiasBalancedTopK(2, rate=0.02 if score == "sigmoid" else 0.005, score=score)
    state, ratios = router.new_state(16), []
    for batch in range(60):
        routing = choose(router, normal(1024, 16, seed=batch) + skew, context(1024, 16, state=state))
        load = np.bincount(routing.experts.ravel(), minlength=16)
        ratios.append(load.max() / max(load.min(), 1))
    assert ratios[0] > 20 and np.mean(ratios[-10:]) < 2


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"routing\.rate is -1; allowed: a number >= 0"):
        make_router("bias_balanced_topk", 8, top_k=2, rate=-1)
    with pytest.raises(ValueError, match=r"routing\.rate is nan"):
        make_router("bias_balanced_topk", 8, top_k=2, rate=math.nan)
    with pytest.raises(ValueError, match=r"routing\.score is 'tanh'; allowed: one of sigmoid, softmax"):
        make_router("bias_balanced_topk", 8, top_k=2, score="tanh")
