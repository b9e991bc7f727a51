"""Groups first, then experts: against a loop over tokens, and the flat router where both must agree."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.routing import Context, Gate, make_router, routing_operations

NO_GATE = Gate(np.zeros((1, 1), np.float32))


def _gate(experts: int, width: int = 24) -> Gate:
    return Gate(np.random.default_rng(experts).standard_normal((width, experts), dtype=np.float32))


@pytest.mark.parametrize(
    ("groups", "top_groups", "k"), [(4, 1, 3), (4, 2, 5), (8, 3, 2), (16, 2, 4), (1, 1, 6)]
)
@pytest.mark.parametrize("renormalise", [True, False])
def test_equals_the_definition(groups: int, top_groups: int, k: int, renormalise: bool) -> None:
    """With a group gate of its own: the mean column, multiplied with the row in float64."""
    gate, size = _gate(32), 32 // groups
    x = np.random.default_rng(1).standard_normal((50, 24), dtype=np.float32)
    params: dict[str, Any] = {"groups": groups, "top_groups": top_groups, "renormalise": renormalise}
    found = make_router("hierarchical_topk", 32, top_k=k, scaling=2.0, **params).route(x, gate)
    weight = gate.weight.astype(np.float64)
    group_gate = np.stack([weight[:, g * size : (g + 1) * size].mean(axis=1) for g in range(groups)], axis=1)
    for t, row in enumerate(x.astype(np.float64)):
        worth, logits = row @ group_gate, row @ weight
        opened = sorted(range(groups), key=lambda g: (-worth[g], g))[:top_groups]
        chosen = sorted((e for e in range(32) if e // size in opened), key=lambda e: -logits[e])[:k]
        assert found.experts[t].tolist() == chosen
        total = sum(math.exp(logits[e]) for e in (chosen if renormalise else range(32)))
        wanted = [2.0 * math.exp(logits[e]) / total for e in chosen]
        np.testing.assert_allclose(found.weights[t], wanted, rtol=2e-5)


def test_by_hand() -> None:
    # means 3, 2 and 2.5: the best expert of all is in the group that stays closed
    x, gate = np.ones((1, 1), np.float32), Gate(np.array([[3, 3, 4, 0, 2, 3]], np.float32))
    router = make_router("hierarchical_topk", 6, top_k=3, groups=3, top_groups=2)
    assert router.route(x, gate).experts.tolist() == [[0, 1, 5]]


@given(st.sampled_from([(12, 4), (12, 3), (8, 8), (16, 2)]), st.booleans(), st.data())
def test_agrees_with_the_flat_router_where_all_groups_are_open(
    shape: tuple[int, int], renormalise: bool, data: st.DataObject
) -> None:
    experts, groups = shape
    value = st.sampled_from([-np.inf, 0.0, 1.0, np.inf, np.nan]) | st.floats(-9, 9, width=32)
    row = st.lists(value, min_size=experts, max_size=experts)
    logits = np.array(data.draw(st.lists(row, min_size=1, max_size=3)), np.float32)
    params: dict[str, Any] = {"top_k": data.draw(st.integers(1, experts)), "renormalise": renormalise}
    flat = make_router("softmax_topk", experts, **params).choose(logits.copy(), NO_GATE, Context())
    two = make_router("hierarchical_topk", experts, groups=groups, top_groups=groups, **params)
    found = two.choose(logits.copy(), NO_GATE, Context())
    assert found.experts.tolist() == flat.experts.tolist()
    np.testing.assert_array_equal(found.weights, flat.weights)


@pytest.mark.parametrize(("experts", "groups", "top_groups"), [(128, 16, 2), (64, 8, 1), (32, 8, 4)])
@pytest.mark.parametrize("renormalise", [True, False])
def test_agrees_with_the_flat_router_at_equal_weights(
    experts: int, groups: int, top_groups: int, renormalise: bool
) -> None:
    """Columns of a group are equal, so its mean is as good as its best expert."""
    size = experts // groups
    gate = Gate(np.repeat(_gate(groups).weight, size, axis=1))
    x = np.random.default_rng(2).standard_normal((200, 24), dtype=np.float32)
    for k in (1, 2, size, size * top_groups):
        flat = make_router("softmax_topk", experts, top_k=k, renormalise=renormalise).route(x, gate)
        params: dict[str, Any] = {"groups": groups, "top_groups": top_groups, "renormalise": renormalise}
        found = make_router("hierarchical_topk", experts, top_k=k, **params).route(x, gate)
        np.testing.assert_array_equal(found.experts, flat.experts)
        np.testing.assert_array_equal(found.weights, flat.weights)


@given(st.data())
def test_choices_are_of_open_groups_whatever_the_logits_are(data: st.DataObject) -> None:
    value = st.sampled_from([-np.inf, -np.inf, np.inf, np.nan, -1e30, 0.0, 3e38])
    logits = np.array([data.draw(st.lists(value, min_size=12, max_size=12))], np.float32)
    k = data.draw(st.integers(1, 6))
    router = make_router("hierarchical_topk", 12, top_k=k, groups=4, top_groups=2)
    experts, weights = router.choose(logits.copy(), NO_GATE, Context())
    assert len(set(experts[0].tolist())) == k and len({e // 3 for e in experts[0].tolist()}) <= 2
    if np.isnan(logits).any():
        assert np.isnan(weights).any()
    else:
        assert np.isfinite(weights).all() and (weights >= 0).all()


def test_operations_are_those_of_the_texts() -> None:
    """11.1.5: 128 x 16 + 8 x 2 against "16,384", 87.4 %; 11.3.6: 8 + 2 x 4 of 32 units, 50 %."""
    sixteen = routing_operations(128, 16, 1, 2)
    assert (sixteen.ops, sixteen.text_flat_ops, sixteen.flat_ops) == (2064, 16384, 256)
    assert round(100 * (1 - sixteen.ops / sixteen.text_flat_ops), 1) == 87.4
    assert (sixteen.scores, sixteen.flat_scores) == (24, 128)
    assert routing_operations(128, 16, 2, 2).scores == 32
    assert routing_operations(32, 8, 2, 2).scores == 16 == 0.5 * routing_operations(32, 8, 2, 2).flat_scores


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_k": 2, "groups": 3}, r"routing.groups is 3; allowed: a divisor of 8"),
        ({"top_k": 2, "groups": 4, "top_groups": 5}, r"routing.top_groups is 5; allowed: 1 to groups = 4"),
        ({"top_k": 5, "groups": 4, "top_groups": 2}, r"routing.top_k is 5; allowed: 1 to 4"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("hierarchical_topk", 8, **params)
    with pytest.raises(ValueError, match=message):
        routing_operations(8, params["groups"], params.get("top_groups", 1), params["top_k"])
