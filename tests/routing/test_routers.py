"""Every router: hand-made gates, a loop over tokens in float64, and rows that ignore each other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from rayemu.routing import (
    ROUTERS,
    Gate,
    Routing,
    SigmoidGroupTopK,
    SoftmaxGroupTopK,
    SoftmaxTopK,
    make_router,
)
from rayemu.routing.gate import top_k

MEMBERS: list[tuple[str, dict[str, Any]]] = [
    ("softmax_topk", {"top_k": 2}),
    ("softmax_topk", {"top_k": 8, "renormalise": False, "scaling": 3.0}),
    ("softmax_group_topk", {"top_k": 4, "groups": 8, "top_groups": 3, "scaling": 16.0}),
    ("softmax_group_topk", {"top_k": 5, "groups": 4, "top_groups": 2, "renormalise": True}),
    ("sigmoid_group_topk", {"top_k": 4, "groups": 8, "top_groups": 4, "scaling": 2.5}),
    ("sigmoid_group_topk", {"top_k": 3, "renormalise": False}),
    ("cached_topk", {"top_k": 3, "bits": 60, "scaling": 2.0}),  # rows that differ are never alike
    ("predictive_topk", {"top_k": 4, "renormalise": False}),
]


def _gate(width: int, experts: int, biased: bool) -> Gate:
    rng = np.random.default_rng([width, experts])
    weight = rng.standard_normal((width, experts), dtype=np.float32)
    return Gate(weight, rng.uniform(-0.6, 0.3, experts).astype(np.float32) if biased else None)


def _logit_gate(logits: list[float], bias: list[float] | None = None) -> tuple[np.ndarray, Gate]:
    """A one-wide token and a gate that gives it `logits`."""
    gate = Gate(np.array([logits], np.float32), None if bias is None else np.array(bias, np.float32))
    return np.ones((1, 1), np.float32), gate


def test_sigmoid_scores_that_round_to_one_are_told_apart_by_their_logits() -> None:
    x, gate = _logit_gate([20.0, 40.0, 1.0, 30.0])
    experts, weights = SigmoidGroupTopK(top_k=2, renormalise=False).route(x, gate)
    assert experts.tolist() == [[1, 3]] and weights.tolist() == [[1.0, 1.0]]
    biased = _logit_gate([20.0, 40.0, 1.0, 30.0], [0.1, 0.0, 0.0, 0.0])[1]
    assert SigmoidGroupTopK(top_k=2).route(x, biased).experts.tolist() == [[0, 1]]


def test_a_gate_s_bias_counts_in_choices_and_weights() -> None:
    x, gate = _logit_gate([1.0, 2.0, 3.0])
    gate = Gate(gate.weight, None, np.array([4.0, 0.0, 0.0], np.float32))
    experts, weights = SoftmaxTopK(top_k=2).route(x, gate)
    assert experts.tolist() == [[0, 2]]
    odds = math.exp(5) / (math.exp(5) + math.exp(3))
    np.testing.assert_allclose(weights, [[odds, 1 - odds]], rtol=1e-6)


def _brute_force(router: Any, logits: np.ndarray, bias: np.ndarray | None) -> tuple[list[int], list[float]]:
    """One token's choices and weights, straight from the definitions, in float64."""
    count = len(logits)
    if isinstance(router, SigmoidGroupTopK):
        weights = [1 / (1 + math.exp(-v)) for v in logits]
        scores = [w + (0 if bias is None else float(bias[e])) for e, w in enumerate(weights)]
        best_of = 2
    else:
        total = sum(math.exp(v) for v in logits)
        weights = [math.exp(v) / total for v in logits]
        scores, best_of = list(weights), 1
    groups = getattr(router, "groups", 1)
    if groups > 1:
        size = count // groups
        worth = [sum(sorted(scores[g * size : (g + 1) * size])[-best_of:]) for g in range(groups)]
        opened = sorted(range(groups), key=lambda g: (-worth[g], g))[: router.top_groups]
        scores = [s if e // size in opened else -math.inf for e, s in enumerate(scores)]
    chosen = sorted(range(count), key=lambda e: (-scores[e], e))[: router.top_k]
    picked = [weights[e] for e in chosen]
    if router.renormalise:
        picked = [w / sum(picked) for w in picked]
    return chosen, [w * router.scaling for w in picked]


@pytest.mark.parametrize(("kind", "params"), MEMBERS)
@pytest.mark.parametrize("biased", [False, True])
def test_equals_the_definition(kind: str, params: dict[str, Any], biased: bool) -> None:
    router, gate = make_router(kind, 32, **params), _gate(24, 32, biased)
    x = np.random.default_rng(3).standard_normal((60, 24), dtype=np.float32)
    experts, weights = router.route(x, gate)
    assert experts.dtype == np.int32 and weights.dtype == np.float32
    assert experts.shape == weights.shape == (60, params["top_k"])
    logits = x.astype(np.float64) @ gate.weight.astype(np.float64)
    for t in range(60):
        chosen, wanted = _brute_force(router, logits[t], gate.selection_bias)
        assert experts[t].tolist() == chosen
        np.testing.assert_allclose(weights[t], wanted, rtol=2e-5)


@pytest.mark.parametrize(("kind", "params"), MEMBERS)
@pytest.mark.parametrize("width", [24, 700])
def test_rows_keep_their_bits_in_any_company(kind: str, params: dict[str, Any], width: int) -> None:
    x = np.random.default_rng(4).standard_normal((250, width), dtype=np.float32)
    for experts in (32, 96):
        router, gate = make_router(kind, experts, **params), _gate(width, experts, True)
        whole = router.route(x, gate)
        for threads, counts in ((1, (1, 2, 3, 16, 50, 249)), (2, (1, 90))):
            with threadpool_limits(threads, user_api="blas"):
                for count in counts:
                    group = np.random.default_rng(count).choice(250, count, replace=False)
                    some = router.route(x[group], gate)
                    np.testing.assert_array_equal(some.experts, whole.experts[group])
                    np.testing.assert_array_equal(some.weights, whole.weights[group])


@pytest.mark.parametrize(("kind", "params"), MEMBERS)
def test_no_tokens_no_choices_and_gate_untouched(kind: str, params: dict[str, Any]) -> None:
    router, gate = make_router(kind, 32, **params), _gate(24, 32, True)
    before = gate.weight.copy()
    empty = router.route(np.empty((0, 24), np.float32), gate)
    assert empty.experts.shape == empty.weights.shape == (0, params["top_k"])
    router.route(np.ones((5, 24), np.float32), gate)
    np.testing.assert_array_equal(gate.weight, before)


@pytest.mark.parametrize(("kind", "params"), MEMBERS)
def test_ties_go_to_the_lower_expert(kind: str, params: dict[str, Any]) -> None:
    gate = Gate(np.zeros((3, 32), np.float32))
    routing = make_router(kind, 32, **params).route(np.ones((4, 3), np.float32), gate)
    np.testing.assert_array_equal(routing.experts, [list(range(params["top_k"]))] * 4)


def _check(routing: Routing, experts: list[int], weights: list[float]) -> None:
    assert routing.experts[0].tolist() == experts
    np.testing.assert_allclose(routing.weights[0], weights, rtol=1e-6)


def test_softmax_by_hand() -> None:
    # probabilities 1/10, 4/10, 2/10, 3/10
    x, gate = _logit_gate([math.log(v) for v in (1, 4, 2, 3)])
    _check(SoftmaxTopK(2).route(x, gate), [1, 3], [4 / 7, 3 / 7])
    _check(SoftmaxTopK(2, renormalise=False).route(x, gate), [1, 3], [0.4, 0.3])
    _check(SoftmaxTopK(1).route(x, gate), [1], [1])
    _check(SoftmaxTopK(1, renormalise=False, scaling=10).route(x, gate), [1], [4])


def test_softmax_groups_by_hand() -> None:
    # groups {5, 1}, {4, 4}, {1, 1} of 16: the two best experts' groups are open, the third is not
    x, gate = _logit_gate([math.log(v) for v in (5, 1, 4, 4, 1, 1)])
    _check(SoftmaxGroupTopK(2, groups=3, top_groups=1).route(x, gate), [0, 1], [5 / 16, 1 / 16])
    router = SoftmaxGroupTopK(3, groups=3, top_groups=2, renormalise=True, scaling=13)
    _check(router.route(x, gate), [0, 2, 3], [5, 4, 4])


def test_sigmoid_groups_by_hand() -> None:
    # scores 0.8, 0.2 | 0.5, 0.5 | 0.6, 0.1: the second group wins with its sum once biased
    logits = [math.log(s / (1 - s)) for s in (0.8, 0.2, 0.5, 0.5, 0.6, 0.1)]
    x, gate = _logit_gate(logits, bias=[0, 0, 0.1, 0, 0, 0])
    _check(SigmoidGroupTopK(2, groups=3, top_groups=1, scaling=2).route(x, gate), [2, 3], [1, 1])
    x, gate = _logit_gate(logits)
    _check(SigmoidGroupTopK(1, groups=3, top_groups=1).route(x, gate), [0], [1])
    _check(SigmoidGroupTopK(2, renormalise=False).route(x, gate), [0, 4], [0.8, 0.6])


def test_bias_chooses_but_does_not_weigh_and_may_be_negative() -> None:
    logits = [math.log(s / (1 - s)) for s in (0.9, 0.4, 0.3, 0.2)]
    x, gate = _logit_gate(logits, bias=[-2, -0.9, -0.7, -3])
    # biased -1.1, -0.5, -0.4, -2.8: closed groups must not win with a masked zero
    router = SigmoidGroupTopK(2, groups=2, top_groups=1, renormalise=False)
    _check(router.route(x, gate), [1, 0], [0.4, 0.9])
    _check(SigmoidGroupTopK(2, renormalise=False).route(x, gate), [2, 1], [0.3, 0.4])


def test_extreme_logits_stay_finite() -> None:
    x, gate = _logit_gate([-300.0, 300.0, 0.0, -1e30])
    for kind in sorted({kind for kind, _ in MEMBERS}):
        for renormalise in (False, True):
            routing = make_router(kind, 4, top_k=2, renormalise=renormalise).route(x, gate)
            assert routing.experts[0].tolist() == [1, 2]
            assert np.isfinite(routing.weights).all()


@given(st.integers(1, 6), st.integers(1, 12), st.data())
def test_top_k_is_a_stable_descending_sort(rows: int, width: int, data: st.DataObject) -> None:
    values = st.integers(-3, 3)  # many ties
    scores = np.array(data.draw(st.lists(st.lists(values, min_size=width, max_size=width), min_size=rows)))
    scores = scores.astype(np.float32)
    count = data.draw(st.integers(1, width))
    wanted = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    best = np.take_along_axis(scores, wanted, axis=1)
    indices, found = top_k(scores, count)
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_array_equal(found, best)


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("magic", {"top_k": 1}, r"routing.kind is 'magic'; allowed: one of softmax_topk"),
        (
            "softmax_topk",
            {"top_k": 1, "groups": 2},
            r"routing.groups is no parameter of softmax_topk",
        ),
        ("softmax_topk", {"top_k": 9}, r"routing.top_k is 9; allowed: 1 to 8"),
        ("softmax_topk", {"top_k": 0}, r"routing.top_k is 0"),
        ("softmax_group_topk", {"top_k": 2, "groups": 3}, r"routing.groups is 3; allowed: a divisor of 8"),
        (
            "softmax_group_topk",
            {"top_k": 2, "groups": 4, "top_groups": 5},
            r"top_groups is 5; .*groups = 4",
        ),
        ("sigmoid_group_topk", {"top_k": 5, "groups": 4, "top_groups": 2}, r"top_k is 5; allowed: 1 to 4"),
        ("sigmoid_group_topk", {"top_k": 1, "groups": 8, "top_groups": 2}, r"groups is 8; .* >= 2 in each"),
    ],
)
def test_impossible_parameters_are_refused(kind: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router(kind, 8, **params)


def test_unknown_names_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError) as refusal:
        make_router("best", 8, top_k=2)
    assert str(refusal.value) == f"routing.kind is 'best'; allowed: one of {', '.join(ROUTERS)}"
    assert "softmax_topk, softmax_group_topk, sigmoid_group_topk" in str(refusal.value)
    with pytest.raises(ValueError) as refusal:
        make_router("softmax_topk", 8, top_k=2, groups=2)
    assert str(refusal.value).startswith("routing.groups is no parameter of softmax_topk; allowed: top_k, ")


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("softmax_topk", {"scaling": -1e39}, r"^routing\.scaling is -1e\+39; allowed: what a float32 holds"),
        ("noisy_topk", {"noise": 1e39}, r"^routing\.noise is 1e\+39; allowed: what a float32 holds"),
        (
            "capacity_topk",
            {"capacity_factor": 1e30},
            r"^routing\.capacity_factor is 1e\+30; allowed: .* up to",
        ),
        ("sinkhorn", {"iterations": 10**9}, r"^routing\.iterations is 1000000000; allowed: 1 to 10,000"),
    ],
)
def test_numbers_that_would_overflow_or_never_end_are_refused(
    kind: str, params: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_router(kind, 8, top_k=2, **params)


def test_groups_of_one_expert_will_do_where_all_groups_are_open() -> None:
    make_router("sigmoid_group_topk", 8, top_k=2, groups=8, top_groups=8)
    with pytest.raises(ValueError, match=r"routing\.groups is 8; allowed: a divisor of 8 experts with >= 2"):
        make_router("sigmoid_group_topk", 8, top_k=2, groups=8, top_groups=4)


def test_every_router_says_what_it_is_for() -> None:
    elsewhere = ROUTERS.keys() - {kind for kind, _ in MEMBERS}
    assert all((Path(__file__).parent / f"test_{kind}.py").exists() for kind in elsewhere)
    assert all((strategy.__doc__ or "").splitlines()[0].endswith(".") for strategy in ROUTERS.values())
