"""Votes counted by hand and by a loop over tokens; one liar of three changes nothing and is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from rayemu import Scenario
from rayemu.routing import Context, Gate, Routing, SoftmaxTopK, make_router, vote
from rayemu.routing.row_bits import keys, row_hash
from rayemu.routing.voting import lied
from rayemu.scenario import ScenarioError

NAN = float("nan")
MIXED = [
    {"kind": "softmax_topk"},
    {"kind": "quantised_topk", "precision": "int4"},
    {"kind": "sigmoid_group_topk", "groups": 4, "top_groups": 2},
]
WAYS: list[dict[str, Any]] = [
    {},
    {"liar": 1},
    {"liar": 0, "lie": "constant"},
    {"liar": 2, "lie": "flip"},
    {"routers": MIXED},
]


def _given(*rows: tuple[list[int], list[float]]) -> Routing:
    return Routing(np.array([r[0] for r in rows], np.int32), np.array([r[1] for r in rows], np.float32))


def _gate(experts: int = 32, width: int = 24) -> Gate:
    rng = np.random.default_rng(experts)
    return Gate(rng.standard_normal((width, experts), dtype=np.float32))


def _rows(count: int, width: int = 24) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, width), dtype=np.float32)


def test_by_hand() -> None:
    first = _given(([4, 1], [0.75, 0.25]))
    second = _given(([1, 2], [0.5, 0.5]))
    third = _given(([2, 0], [0.875, 0.125]))
    # two votes each for 1 and 2, of mean weight 0.375 and 0.6875; one each for 0 and 4
    routing, outvoted = vote([first, second, third], 5)
    assert routing.experts.tolist() == [[2, 1]]  # both are first with one voter, the lower place; 2 is better
    # lower medians 0.5 and 0.25, times 1 / 0.75, the median sum by their own
    np.testing.assert_allclose(routing.weights, [[2 / 3, 1 / 3]], rtol=1e-6)
    assert outvoted.tolist() == [1, 1, 1]  # the second in the weight of expert 1: 1/2 is not 1/3


def test_ties_go_to_the_higher_mean_weight_and_then_to_the_lower_expert() -> None:
    members = [_given(([e], [w])) for e, w in ((3, 0.5), (1, 0.75), (2, 0.75))]
    routing, outvoted = vote(members, 4)
    assert routing.experts.tolist() == [[1]] and routing.weights.tolist() == [[0.75]]
    assert outvoted.tolist() == [1, 0, 1]


def test_a_member_has_one_vote_for_an_expert_and_none_for_what_is_no_expert() -> None:
    stuffed = _given(([3, 3, 3], [0.5, 0.4, 0.1]), ([9, -7, 4], [0.5, 0.4, 0.1]))
    honest = _given(([0, 1, 2], [0.5, 0.25, 0.25]), ([0, 1, 2], [0.5, 0.25, 0.25]))
    for where in range(3):
        members = [honest, honest]
        members.insert(where, stuffed)
        routing, outvoted = vote(members, 4)
        np.testing.assert_array_equal(routing.experts, honest.experts)
        np.testing.assert_array_equal(routing.weights, honest.weights)
        assert outvoted.tolist() == [2 * (member == where) for member in range(3)]


def test_places_without_a_choice_are_voted_on_as_well() -> None:
    two, one = _given(([1, 0], [0.5, 0.5])), _given(([1, -1], [1, 0]))
    routing, outvoted = vote([two, one, one], 4)
    assert routing.experts.tolist() == [[1, -1]] and routing.weights.tolist() == [[1, 0]]
    assert outvoted.tolist() == [1, 0, 0]
    routing, _ = vote([one, Routing(one.experts[:, :1], one.weights[:, :1]), two], 4)
    assert routing.experts.tolist() == [[1, -1]]
    nothing = _given(([-1, -1], [0, 0]))
    routing, outvoted = vote([nothing, one, nothing], 4)
    assert routing.experts.tolist() == [[-1, -1]] and routing.weights.tolist() == [[0, 0]]
    assert outvoted.tolist() == [0, 1, 0]


def test_more_places_than_experts() -> None:
    wide = _given(([0, 0, 1], [0.5, 0.25, 0.25]))
    honest = _given(([1, 0, -1], [0.5, 0.5, 0]))
    routing, outvoted = vote([honest, wide, honest], 2)
    assert routing.experts.tolist() == [[1, 0, -1]] and outvoted.tolist() == [0, 1, 0]


def test_false_weights_are_masked_and_named() -> None:
    honest = _given(([2, 1], [0.75, 0.25]))
    for false in (NAN, -3.0, 0.6, 1e30):
        liar = _given(([2, 1], [false, 0.25]))
        routing, outvoted = vote([liar, honest, honest], 3)
        assert routing.experts.tolist() == [[2, 1]] and routing.weights.tolist() == [[0.75, 0.25]]
        assert outvoted.tolist() == [1, 0, 0]
    near = _given(([2, 1], [0.76, 0.24]))
    assert vote([near, honest, honest], 3)[1].tolist() == [0, 0, 0]
    assert vote([near, honest, honest], 3, tolerance=0)[1].tolist() == [1, 0, 0]


def _by_loop(members: list[list[tuple[int, float]]], width: int) -> list[int]:
    """The experts of one token, in no order: votes, mean weight, number."""
    votes: dict[int, list[float]] = {}
    for member in members:
        for expert, weight in dict(reversed(member)).items():
            votes.setdefault(expert, []).append(weight)
    count = sorted(len(dict(member)) for member in members)[(len(members) - 1) // 2]
    order = sorted(votes, key=lambda e: (-len(votes[e]), -np.float64(np.mean(votes[e])), e))
    return order[: min(count, width)]


@given(st.data(), st.sampled_from([1, 3, 5]), st.integers(1, 4))
def test_equals_a_loop_over_tokens(data: st.DataObject, members: int, width: int) -> None:
    # eighths, so that means are exact enough for ties to be ties
    choice = st.tuples(st.integers(0, 5), st.sampled_from([0.125, 0.25, 0.5, 1.0]))
    row = st.lists(choice, min_size=width, max_size=width)
    ballots = data.draw(st.lists(st.lists(row, min_size=members, max_size=members), min_size=1, max_size=4))
    routings = [
        _given(*[([e for e, _ in t[m]], [w for _, w in t[m]]) for t in ballots]) for m in range(members)
    ]
    routing, _ = vote(routings, 6)
    for t, each in enumerate(ballots):
        if all(one == each[0] for one in each):  # then it is what they say
            assert routing.experts[t].tolist() == [e for e, _ in each[0]]
            continue
        chosen = routing.experts[t][routing.experts[t] >= 0]
        assert sorted(chosen) == sorted(_by_loop(each, width))
        assert (routing.weights[t][routing.experts[t] < 0] == 0).all()


@given(st.data())
def test_a_majority_that_agrees_is_what_comes_out_to_the_bit(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    honest = SoftmaxTopK(3, renormalise=bool(rng.integers(2))).route(_rows(20), _gate(8))
    members = [honest] * 3
    for place in rng.integers(0, 4, 2):
        weird = rng.choice(np.array([0.3, -1, NAN, np.inf, 1e-40], np.float32), honest.weights.shape)
        members.insert(place, Routing(rng.integers(-2, 10, honest.experts.shape, np.int32), weird))
    routing, outvoted = vote(members, 8)
    np.testing.assert_array_equal(routing.experts, honest.experts)
    np.testing.assert_array_equal(routing.weights, honest.weights)
    for member, rows in zip(members, outvoted.tolist(), strict=True):
        assert rows == (0 if member is honest else 20)


@pytest.mark.parametrize("kind", ["softmax_topk", "sigmoid_group_topk"])
@pytest.mark.parametrize("lie", ["random", "constant", "flip"])
@pytest.mark.parametrize("liar", [0, 1, 2])
def test_one_liar_of_three_changes_nothing_and_is_named(kind: str, lie: str, liar: int) -> None:
    x, gate, context = _rows(300), _gate(), Context()
    honest = make_router(kind, 32, top_k=4, scaling=2.5).route(x, gate)
    routers = [{"kind": kind, "scaling": 2.5}] * 3
    router = make_router("voting", 32, top_k=4, routers=routers, liar=liar, lie=lie)
    routing = router.route(x, gate, context)
    np.testing.assert_array_equal(routing.experts, honest.experts)
    np.testing.assert_array_equal(routing.weights, honest.weights)
    named = [context.counts[f"outvoted_{member}"] for member in range(3)]
    assert named[liar] > 290 and sum(named) == named[liar]


def test_nobody_is_outvoted_where_all_are_the_same() -> None:
    x, gate, context = _rows(50), _gate(), Context()
    routing = make_router("voting", 32, top_k=4).route(x, gate, context)
    np.testing.assert_array_equal(routing.experts, SoftmaxTopK(4).route(x, gate).experts)
    assert context.counts == {"outvoted_0": 0, "outvoted_1": 0, "outvoted_2": 0}


@pytest.mark.parametrize("params", WAYS)
def test_rows_have_the_same_bits_in_any_company(params: dict[str, Any]) -> None:
    x, gate, router = _rows(250), _gate(), make_router("voting", 32, top_k=3, **params)
    whole = router.route(x, gate)
    assert whole.experts.dtype == np.int32 and whole.weights.dtype == np.float32
    for threads, counts in ((1, (1, 2, 3, 50, 249)), (2, (1, 90))):
        with threadpool_limits(threads, user_api="blas"):
            for count in counts:
                group = np.random.default_rng(count).choice(250, count, replace=False)
                some = router.route(x[group], gate)
                np.testing.assert_array_equal(some.experts, whole.experts[group])
                np.testing.assert_array_equal(some.weights, whole.weights[group])
    empty = router.route(x[:0], gate)
    assert empty.experts.shape == empty.weights.shape == (0, 3)
    every = make_router("voting", 4, top_k=4).route(x, _gate(4))
    assert (np.sort(every.experts, axis=1) == np.arange(4)).all()


def test_a_random_lie_is_by_the_seed_the_layer_and_the_row() -> None:
    bits = keys(row_hash(_rows(6000), 1))
    told = np.tile(np.arange(3, dtype=np.int32), (6000, 1))
    told[0, 2] = -1
    lies = lied(told, "random", bits, 8)
    assert lies[0, 2] == -1 and (np.diff(np.sort(lies[1:], axis=1), axis=1) > 0).all()
    loads = np.bincount(lies[lies >= 0], minlength=8)
    assert ((loads - 2250) ** 2 / 2250).sum() < 24.3  # chi square, 7 degrees of freedom: 1 in 1000
    x, gate = _rows(50), _gate()
    seen = [
        make_router("voting", 32, top_k=2, routers=[{"kind": "softmax_topk"}], liar=0, seed=seed)
        .route(x, gate, Context(layer=layer))
        .experts
        for seed, layer in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert [np.array_equal(seen[0], other) for other in seen] == [True, True, False, False]


def test_scores_that_are_no_numbers_are_a_liar_s_business_alone() -> None:
    x, gate, context = _rows(5), _gate(8), Context()
    x[2, 0] = NAN
    routing = make_router("voting", 8, top_k=2, liar=1).route(x, gate, context)
    honest = SoftmaxTopK(2).route(x, gate)
    np.testing.assert_array_equal(routing.experts, honest.experts)
    np.testing.assert_array_equal(routing.weights, honest.weights)  # NaN where the honest ones have it


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ("liar=3", "routing.liar: 3 is not allowed; allowed: 0 to 2, a member, or none"),
        ("lie=fib", "routing.lie: 'fib' is not allowed"),
        ("routers=[]", "routing.routers: a list of 0 is not allowed; allowed: an odd number"),
        (
            "routers=[{kind: softmax}]",
            "routing.routers.0.kind: 'softmax' is not a strategy; known: softmax_topk",
        ),
        ("routers=[{}]", "routing.routers.0.kind: None is not a strategy"),
        (
            "routers=[{kind: softmax_topk, top_k: 1}]",
            "routing.routers.0.top_k: is not a parameter of softmax",
        ),
        (
            "routers=[{kind: softmax_topk, scaling: a}]",
            "routing.routers.0.scaling: 'a' is not allowed; it should",
        ),
        (
            "routers=[{kind: softmax_topk}, {kind: softmax_topk}, {kind: softmax_group_topk, groups: 3}]",
            "routing.routers.2.groups: 3 is not allowed; allowed: a divisor of 4 experts",
        ),
        (
            "routers=[{kind: voting, routers: [{kind: quantised_topk, precision: int3}]}]",
            "routing.routers.0.routers.0.precision: 'int3' is not allowed",
        ),
    ],
)
def test_what_is_wrong_inside_is_said_with_its_path(given_: str, message: str) -> None:
    model = {"d_model": 16, "d_ff": 16, "experts": 4, "top_k": 2, "layers": 1}
    scenario = Scenario.from_dict({"model": model, "routing": {"kind": "voting"}})
    with pytest.raises(ScenarioError) as refusal:
        scenario.with_overrides([f"routing.{given_}"])
    assert str(refusal.value).startswith(message)


def test_parameters_that_are_given_without_a_scenario_are_refused_as_well() -> None:
    with pytest.raises(ValueError, match=r"routing\.routers\.0\.top_k is 3; allowed: none"):
        make_router("voting", 8, top_k=2, routers=[{"kind": "softmax_topk", "top_k": 3}])
    with pytest.raises(ValueError, match=r"routing\.routers\.0\.kind is None; allowed: one of softmax_topk"):
        make_router("voting", 8, top_k=2, routers=[{}])
