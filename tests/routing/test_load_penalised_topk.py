"""Loads as penalties: a loop over chunks in float64, and a skewed stream that evens out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.routing import Context, LoadPenalisedTopK, SoftmaxTopK, make_router
from tests.routing.batch_scope import NO_GATE, check_routing, choose, context, normal, odd_logits, same


@pytest.mark.parametrize("chunk", [0, 1, 7])
def test_equals_the_definition(chunk: int) -> None:
    router = LoadPenalisedTopK(2, factor=0.8, decay=0.5, chunk=chunk)
    state = router.new_state(6)
    history = np.zeros(6)
    for batch in range(3):
        logits = normal(20, 6, seed=batch)
        routing = choose(router, logits, context(20, 6, state=state))
        history = history * 0.5
        for start in range(0, 20, chunk or 20):
            load = history / history.sum() * 6 if history.sum() else history
            for t in range(start, min(start + (chunk or 20), 20)):
                worth = logits[t].astype(np.float64) - 0.8 * load
                chosen = np.argsort(-worth)[:2]
                assert routing.experts[t].tolist() == chosen.tolist()
                power = np.exp(logits[t, chosen].astype(np.float64))
                np.testing.assert_allclose(routing.weights[t], power / power.sum(), rtol=1e-5)
            part = routing.experts[start : start + (chunk or 20)]
            history = history + np.bincount(part.ravel(), minlength=6)
        np.testing.assert_allclose(state, history)


@given(odd_logits(), st.integers(1, 8), st.booleans(), st.integers(0, 3))
def test_without_a_factor_it_is_softmax_topk(
    logits: np.ndarray, k: int, renormalise: bool, chunk: int
) -> None:
    plain = SoftmaxTopK(k, renormalise).choose(logits.copy(), NO_GATE, Context())
    router = LoadPenalisedTopK(k, 0.0, chunk=chunk, renormalise=renormalise)
    state = router.new_state(8)
    for _ in range(2):
        same(choose(router, logits, context(len(logits), 8, state=state)), plain)


@given(odd_logits(), st.integers(1, 8), st.sampled_from([0.1, 5.0]), st.integers(0, 2))
def test_every_row_gets_its_choices(logits: np.ndarray, k: int, factor: float, chunk: int) -> None:
    router = LoadPenalisedTopK(k, factor, chunk=chunk)
    state = router.new_state(8)
    for _ in range(2):
        check_routing(choose(router, logits, context(len(logits), 8, state=state)), logits, k)
    assert np.isfinite(state).all() and math.isclose(state.sum(), len(logits) * k * 1.9)


def test_without_a_state_every_batch_is_the_first() -> None:
    logits = normal(10, 8)
    same(choose(LoadPenalisedTopK(2, 3.0), logits), choose(SoftmaxTopK(2), logits))


def test_a_history_of_other_experts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 0: the router's state is of shape \(4,\); expected \(8,\)"):
        choose(LoadPenalisedTopK(2), normal(3, 8), context(3, 8, state=np.zeros(4)))


def test_a_skewed_stream_evens_out() -> None:
    skew = np.linspace(1.5, -1.5, 16, dtype=np.float32)
    found = {}
    for factor, chunk in ((0.0, 0), (0.5, 0), (2.0, 16)):
        router = LoadPenalisedTopK(2, factor, chunk=chunk)
        state = router.new_state(16)
        for batch in range(30):
            where = context(256, 16, state=state)
            choose(router, normal(256, 16, seed=batch) + skew, where)
        found[factor] = where.counts["choices_of_fullest_expert"] / where.counts["choices_of_mean_expert"]
    assert found[0.0] > 3.5 and found[0.5] < 3.0 and found[2.0] < 2.0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"factor": -1}, r"routing\.factor is -1; allowed: a number >= 0"),
        ({"factor": math.inf}, r"routing\.factor is inf"),
        ({"decay": 1.5}, r"routing\.decay is 1\.5; allowed: 0 to 1"),
        ({"chunk": -2}, r"routing\.chunk is -2; allowed: rows >= 1, or 0"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("load_penalised_topk", 8, top_k=2, **params)
