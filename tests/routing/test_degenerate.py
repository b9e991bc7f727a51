"""Logits and biases that are infinite, vanish or are NaN: K different experts still, and no NaN unseen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.routing import Gate, Routing, make_router
from rayemu.routing.gate import best_groups, close_groups, softmax_powers, top_k

INF, NAN = math.inf, math.nan
MEMBERS: list[tuple[str, dict[str, Any]]] = [
    ("softmax_topk", {"renormalise": True}),
    ("softmax_topk", {"renormalise": False}),
    ("softmax_group_topk", {"groups": 4, "top_groups": 2, "renormalise": True}),
    ("softmax_group_topk", {"groups": 4, "top_groups": 2}),
    ("sigmoid_group_topk", {"groups": 4, "top_groups": 2}),
    ("sigmoid_group_topk", {"renormalise": False}),
    ("cached_topk", {"bits": 40, "renormalise": False}),
    ("predictive_topk", {"renormalise": False}),
]


def _route(kind: str, params: dict[str, Any], logits: Any, bias: Any = None, k: int = 2) -> Routing:
    """Routes rows of `logits` [T, E] as they are, infinities and all."""

    class Given(Gate):
        def logits(self, x: np.ndarray) -> np.ndarray:
            return x.copy()

    x = np.atleast_2d(np.array(logits, np.float32))
    gate = Given(np.zeros((1, 1), np.float32), None if bias is None else np.array(bias, np.float32))
    return make_router(kind, x.shape[1], top_k=k, **params).route(x, gate)


@pytest.mark.parametrize(("kind", "params"), MEMBERS)
@given(st.data())
def test_k_different_experts_whatever_the_logits_are(
    kind: str, params: dict[str, Any], data: st.DataObject
) -> None:
    value = st.sampled_from([-INF, -INF, -INF, INF, NAN, -1e30, 0.0, 1.0])
    row = st.lists(value, min_size=8, max_size=8)
    logits = np.array(data.draw(st.lists(row, min_size=1, max_size=4)), np.float32)
    biased = kind.startswith("sigmoid") and data.draw(st.booleans())
    bias = data.draw(st.lists(st.sampled_from([-INF, -1.0, 0.0]), min_size=8, max_size=8)) if biased else None
    k = data.draw(st.integers(1, 4))
    experts, weights = _route(kind, params, logits, bias, k)
    for t, chosen in enumerate(experts.tolist()):
        assert len(set(chosen)) == k and all(0 <= e < 8 for e in chosen)
        if not np.isnan(logits[t]).any():
            assert np.isfinite(weights[t]).all()
        if np.isnan(logits[t]).any() and bias is None:
            assert np.isnan(weights[t]).any()
        if params.get("top_groups"):
            assert len({e // 2 for e in chosen}) <= 2


@pytest.mark.parametrize(("kind", "params"), MEMBERS)
def test_equal_infinite_logits_are_a_tie(kind: str, params: dict[str, Any]) -> None:
    for level in (-INF, INF):
        experts, weights = _route(kind, params, [level] * 8, k=3)
        assert experts.tolist() == [[0, 1, 2]]
        share = float(level > 0) if kind.startswith("sigmoid") else 1 / 8
        if params.get("renormalise", kind == "sigmoid_group_topk"):
            share = 1 / 3 if kind.startswith("softmax") or level > 0 else 0.0
        np.testing.assert_allclose(weights, [[share] * 3], rtol=1e-6)


def test_finite_logits_come_before_infinite_ones_which_weigh_nothing() -> None:
    logits = [-INF, 2.0, -INF, -INF, -INF, 1.0, -INF, -INF]
    wanted = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0, 0]
    for renormalise in (True, False):
        experts, weights = _route("softmax_topk", {"renormalise": renormalise}, logits, k=4)
        assert experts.tolist() == [[1, 5, 0, 2]]
        np.testing.assert_allclose(weights, [wanted], rtol=1e-6)


def test_experts_of_closed_groups_come_last() -> None:
    # of four groups the second and the fourth have a finite expert each, so that they are open
    logits = [-INF, -INF, -INF, 2.0, -INF, -INF, 3.0, -INF]
    for renormalise in (True, False):
        params = {"groups": 4, "top_groups": 2, "renormalise": renormalise}
        assert _route("softmax_group_topk", params, logits, k=4).experts.tolist() == [[6, 3, 2, 7]]
    # a bias of -inf closes nothing by itself: groups are tied at -inf, and the lower two are open
    bias = [-INF] * 7 + [0.0]
    params = {"groups": 4, "top_groups": 2}
    experts, weights = _route("sigmoid_group_topk", params, [0.0] * 8, bias, k=4)
    assert experts.tolist() == [[0, 1, 2, 3]]
    np.testing.assert_allclose(weights, [[0.25] * 4])


def test_a_bias_of_minus_infinity_keeps_an_expert_for_last() -> None:
    params = {"renormalise": False}
    experts, weights = _route("sigmoid_group_topk", params, [0.0] * 4, [0, -INF, -INF, -INF])
    assert experts.tolist() == [[0, 1]] and weights.tolist() == [[0.5, 0.5]]
    experts, _ = _route("sigmoid_group_topk", params, [0.0] * 4, [-INF, -INF, 0, -INF], k=3)
    assert experts.tolist() == [[2, 0, 1]]


def test_scores_that_all_vanish_give_weights_of_nothing() -> None:
    """As 0 / (0 + 1e-20) in DeepSeek's gate."""
    experts, weights = _route("sigmoid_group_topk", {"scaling": 2.5}, [-1e4] * 4)
    assert experts.tolist() == [[0, 1]] and weights.tolist() == [[0, 0]]


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_selection_bias_that_would_draw_every_token_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"selection_bias\[2\] is (nan|inf); allowed: numbers, or -inf"):
        Gate(np.zeros((4, 3), np.float32), np.array([0, -INF, bad], np.float32))


@pytest.mark.parametrize(("kind", "params"), MEMBERS)
def test_nan_is_chosen_and_shows_in_the_weights(kind: str, params: dict[str, Any]) -> None:
    experts, weights = _route(kind, params, [0.0, 5.0, 4.0, 0.0, 3.0, 0.0, 0.0, NAN])
    assert experts[0, 0] == 7 and np.isnan(weights[0, 0])


def test_softmax_of_rows_without_a_highest_logit() -> None:
    powers = softmax_powers(np.array([[-INF, -INF], [INF, 3.0], [0.0, -INF], [NAN, 0.0]], np.float32))
    np.testing.assert_array_equal(powers, [[1, 1], [1, 0], [1, 0], [NAN, NAN]])


@pytest.mark.filterwarnings("error")
def test_infinite_logits_are_taken_without_a_warning() -> None:
    inf = np.float32(np.inf)
    assert softmax_powers(np.array([[inf, 0, inf], [-inf, -inf, -inf]], np.float32)).tolist() == [
        [1, 0, 1],
        [1, 1, 1],
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("kind", "params"), MEMBERS)
def test_extreme_logits_are_taken_without_a_warning(kind: str, params: dict[str, Any]) -> None:
    gate = Gate(np.diag(np.array([-3e38, -200, -100, 0, 1, 100, 200, 3e38], np.float32)))
    weights = make_router(kind, 8, top_k=2, **params).route(np.ones((1, 8), np.float32), gate).weights
    assert np.isfinite(weights).all()


def test_as_many_groups_open_as_are_to_be() -> None:
    scores = np.full((2, 6), -INF, np.float32)
    worth = np.array([[-INF, -INF, -INF], [-INF, -INF, 1]], np.float32)
    closed = close_groups(scores, best_groups(worth, 2), 3)
    assert closed.tolist() == [[False, False, True], [False, True, False]]


def test_the_rest_follows_by_index() -> None:
    indices, values = top_k(np.array([[-INF, 1, -INF, 2], [NAN, -INF, NAN, -INF]], np.float32), 4)
    assert indices.tolist() == [[3, 1, 0, 2], [0, 2, 1, 3]]
    np.testing.assert_array_equal(values, [[2, 1, -INF, -INF], [NAN, NAN, -INF, -INF]])
