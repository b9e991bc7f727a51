"""Capacity: who keeps a place, where the others go, what is dropped and padded; by hand and by loops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.routing import CapacityTopK, Context, Gate, Router, SoftmaxTopK, make_router

GATE = Gate(np.zeros((1, 1), np.float32))
INF, NAN = math.inf, math.nan


def _choose(router: Router, logits: Any, context: Context | None = None) -> tuple[list, np.ndarray]:
    experts, weights = router.choose(np.array(logits, np.float32), GATE, context or Context())
    assert experts.dtype == np.int32 and weights.dtype == np.float32
    assert experts.shape == weights.shape == (len(logits), router.top_k)
    return experts.tolist(), weights


# Four tokens whose best expert is 0, with 5, 7, 6 and 5.2 tenths: its capacity of 2 keeps tokens 1 and 2.
ODDS = [[5, 4, 1], [7, 2, 1], [6, 1, 3], [5.2, 1.8, 3]]


def test_the_least_probable_are_dropped_by_hand() -> None:
    context = Context()
    router = CapacityTopK(1, capacity_factor=1.5, renormalise=False)
    experts, weights = _choose(router, np.log(ODDS), context)
    assert experts == [[-1], [0], [0], [-1]]
    np.testing.assert_allclose(weights, [[0], [0.7], [0.6], [0]], rtol=1e-6)
    assert context.counts == {
        "overflowed_choices": 2,
        "dropped_choices": 2,
        "tokens_without_expert": 2,
        "padded_rows": 3 * 2 - 2,
    }


def test_the_latest_are_dropped_by_hand() -> None:
    router = CapacityTopK(1, capacity_factor=1.5, by="position")
    experts, weights = _choose(router, np.log(ODDS))
    assert experts == [[0], [0], [-1], [-1]] and weights.tolist() == [[1], [1], [0], [0]]


def test_overflow_goes_to_the_next_best_by_hand() -> None:
    context = Context()
    router = CapacityTopK(1, capacity_factor=1.5, overflow="next", renormalise=False)
    experts, weights = _choose(router, np.log(ODDS), context)
    assert experts == [[1], [0], [0], [2]]
    np.testing.assert_allclose(weights, [[0.4], [0.7], [0.6], [0.3]], rtol=1e-6)
    assert context.counts["overflowed_choices"] == 2 and context.counts["dropped_choices"] == 0
    # two choices each, places for 8 / 3 -> 3: token 0 loses 0 of its {0, 1}, and takes 2 instead
    experts, _ = _choose(CapacityTopK(2, 1.0, overflow="next"), np.log(ODDS))
    assert experts == [[1, 2], [0, 1], [0, 2], [0, 2]]


def test_a_token_keeps_its_other_choices_and_their_weights_by_hand() -> None:
    odds = [[6, 3, 1], [7, 1, 2], [5, 3, 2]]  # capacity 1 * 3 * 2 / 3 = 2: expert 0 drops token 2
    experts, weights = _choose(CapacityTopK(2, 1.0), np.log(odds))
    assert experts == [[0, 1], [0, 2], [1, -1]]
    np.testing.assert_allclose(weights, [[2 / 3, 1 / 3], [7 / 9, 2 / 9], [1, 0]], rtol=1e-6)
    _, weights = _choose(CapacityTopK(2, 1.0, renormalise=False, scaling=2), np.log(odds))
    np.testing.assert_allclose(weights, [[1.2, 0.6], [1.4, 0.4], [0.6, 0]], rtol=1e-6)


@pytest.mark.parametrize("level", [-1.0, -50.0, -1e30, -INF])
def test_a_low_score_does_not_lose_to_an_empty_place(level: float) -> None:
    logits = np.array([[-1, -2, level], [-2, -1, level], [level, -1, -2]])
    for by, overflow in itertools.product(("probability", "position"), ("drop", "next")):
        context = Context()
        router = CapacityTopK(2, 1.0, overflow, by)  # two places for each expert, six choices
        experts, _ = _choose(router, logits, context)
        assert context.counts["padded_rows"] == context.counts["dropped_choices"]
        context = Context()
        experts, _ = _choose(CapacityTopK(3, 1.0, overflow, by), logits, context)
        assert context.counts["dropped_choices"] == 0 and all(sorted(e) == [0, 1, 2] for e in experts)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("factor", [4.0, "dropless", INF])
def test_capacity_above_the_tokens_drops_nothing(factor: Any, renormalise: bool) -> None:
    """Every expert has room for every token: softmax top-k, to the bit."""
    logits = np.random.default_rng(1).standard_normal((40, 16), dtype=np.float32)
    logits[:, 3] += 5
    plain = SoftmaxTopK(4, renormalise, 1.5).choose(logits.copy(), GATE, Context())
    for by, overflow in itertools.product(("probability", "position"), ("drop", "next")):
        context = Context()
        router = make_router(
            "capacity_topk",
            16,
            top_k=4,
            capacity_factor=factor,
            overflow=overflow,
            by=by,
            renormalise=renormalise,
            scaling=1.5,
        )
        experts, weights = _choose(router, logits, context)
        assert experts == plain.experts.tolist()
        np.testing.assert_array_equal(weights, plain.weights)
        if factor == 4.0:
            assert context.counts["dropped_choices"] == 0
            assert context.counts["padded_rows"] == 16 * 40 - 40 * 4


def _by_loops(
    logits: np.ndarray, top_k: int, places: int, overflow: str, by: str
) -> tuple[list[dict[int, float]], int]:
    """Token -> {expert: probability}, and how many choices overflowed, with plain loops in float64."""
    tokens, experts = logits.shape
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    odds = powers / powers.sum(axis=1, keepdims=True)
    ranked = [sorted(range(experts), key=lambda e: (-odds[t, e], e)) for t in range(tokens)]
    places_of: list[list[int]] = [[] for _ in range(experts)]

    def admit(wishes: list[tuple[int, int]]) -> int:
        refused = 0
        for expert in range(experts):
            who = [t for t, e in wishes if e == expert]
            who.sort(key=lambda t: (-odds[t, expert], t) if by == "probability" else (t,))
            room = places - len(places_of[expert])
            places_of[expert] += who[:room]
            refused += len(who[room:])
        return refused

    overflowed = admit([(t, e) for t in range(tokens) for e in ranked[t][:top_k]])
    while overflow == "next":
        wishes = []
        for t in range(tokens):
            mine = [e for e in range(experts) if t in places_of[e]]
            left = [e for e in ranked[t] if e not in mine and len(places_of[e]) < places]
            if len(mine) < top_k and left:
                wishes.append((t, left[0]))
        if not wishes:
            break
        admit(wishes)
    return [{e: odds[t, e] for e in range(experts) if t in places_of[e]} for t in range(tokens)], overflowed


@pytest.mark.parametrize("by", ["probability", "position"])
@pytest.mark.parametrize("overflow", ["drop", "next"])
@pytest.mark.parametrize(
    ("top_k", "factor", "places"), [(1, 1.0, 7), (2, 1.25, 16), (3, 0.7, 14), (8, 0.9, 46)]
)
@pytest.mark.parametrize("renormalise", [True, False])
def test_equals_the_loops(
    by: Any, overflow: Any, top_k: int, factor: float, places: int, renormalise: bool
) -> None:
    logits = np.random.default_rng(top_k).standard_normal((51, 8), dtype=np.float32)
    logits[:, 2] += 2
    wanted, overflowed = _by_loops(logits, top_k, places, overflow, by)
    context = Context()
    router = CapacityTopK(top_k, factor, overflow, by, renormalise)
    experts, weights = _choose(router, logits, context)
    for token, got in enumerate(wanted):
        chosen = sorted(got, key=lambda e: (-got[e], e))
        rest = top_k - len(got)
        assert experts[token] == chosen + [-1] * rest
        total = sum(got.values()) if renormalise and got else 1.0
        np.testing.assert_allclose(weights[token], [got[e] / total for e in chosen] + [0] * rest, rtol=1e-5)
    kept = sum(map(len, wanted))
    assert context.counts == {
        "overflowed_choices": overflowed,
        "dropped_choices": 51 * top_k - kept,
        "tokens_without_expert": sum(not got for got in wanted),
        "padded_rows": 8 * places - kept,
    }


@given(
    st.data(),
    st.integers(0, 6),
    st.integers(1, 4),
    st.sampled_from([0.01, 0.5, 1.0, 1.3, 4.0]),
    st.sampled_from(["drop", "next"]),
    st.sampled_from(["probability", "position"]),
    st.booleans(),
)
def test_no_expert_has_too_many_whatever_the_logits_are(
    data: st.DataObject, tokens: int, top_k: int, factor: float, overflow: Any, by: Any, renormalise: bool
) -> None:
    value = st.sampled_from([-INF, INF, NAN, -1e30, -200.0, 0.0, 1.0])
    row = st.lists(value, min_size=4, max_size=4)
    logits = np.array(data.draw(st.lists(row, min_size=tokens, max_size=tokens)), np.float32).reshape(
        tokens, 4
    )
    context = Context()
    experts, weights = _choose(CapacityTopK(top_k, factor, overflow, by, renormalise), logits, context)
    places = math.ceil(factor * tokens * top_k / 4)
    loads = np.bincount([e for chosen in experts for e in chosen if e >= 0], minlength=4)
    assert (loads <= places).all()
    for token, chosen in enumerate(experts):
        real = [e for e in chosen if e >= 0]
        assert len(set(real)) == len(real) and chosen == real + [-1] * (top_k - len(real))
        assert (weights[token, len(real) :] == 0).all()
        if not np.isnan(logits[token]).any():
            assert np.isfinite(weights[token]).all() and (weights[token] >= 0).all()
        if overflow == "next" and len(real) < top_k:  # it has every expert that has room
            assert all(e in real for e in range(4) if loads[e] < places)
    if np.isnan(logits).any() and by == "probability":  # it keeps its place, so that it shows
        assert np.isnan(weights).any()


def test_the_factor_follows_what_overflows() -> None:
    """Up by a tenth while more than 2 % overflow, down by one while less than 1 % do; between, it stays."""
    rng = np.random.default_rng(5)
    router = CapacityTopK(2, 1.0, target_overflow=0.02, step=0.1)
    state = router.new_state(8)
    assert state == {"capacity_factor": 1.0}
    factors = [1.0]
    for batch in range(60):
        logits = rng.standard_normal((64, 8), dtype=np.float32)
        logits[:, 0] += 3 if batch < 30 else 0  # a hot expert for a while
        places = math.ceil(factors[-1] * 64 * 2 / 8 - 1e-9)
        _, overflowed = _by_loops(logits, 2, places, "drop", "probability")
        context = Context(state=state)
        _choose(router, logits, context)
        assert context.counts["overflowed_choices"] == overflowed
        share = overflowed / 128
        factor = factors[-1] * 1.1 if share > 0.02 else factors[-1] / 1.1 if share < 0.01 else factors[-1]
        factors.append(min(4.0, max(1.0, factor)))
        assert state["capacity_factor"] == pytest.approx(factors[-1])
    assert max(factors[:31]) > 3 and factors[-1] < 2, "it rises for the hot expert, and falls after it"


def test_the_factor_stays_between_its_limits() -> None:
    for start, logits, limit in ((1.0, [[9.0, 0, 0, 0]] * 32, 4.0), (3.0, np.eye(4).tolist() * 8, 1.0)):
        router = CapacityTopK(1, start, target_overflow=0.5, step=1.0)
        state = router.new_state(4)
        for _ in range(5):
            _choose(router, logits, Context(state=state))
        # up while more than half overflow: at 2 places of 4 exactly half do
        assert state["capacity_factor"] == (2.0 if limit == 4.0 else limit)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"capacity_factor": 0},
            r"^routing\.capacity_factor is 0; allowed: a number above 0, up to 1,000,000 or dropless$",
        ),
        ({"capacity_factor": -1.5}, r"^routing\.capacity_factor is -1\.5; allowed: a number above 0"),
        ({"capacity_factor": NAN}, r"^routing\.capacity_factor is nan; allowed"),
        ({"capacity_factor": "none"}, r"^routing\.capacity_factor is 'none'; allowed: .* or dropless$"),
        ({"overflow": "lose"}, r"^routing\.overflow is 'lose'; allowed: one of drop, next$"),
        ({"by": "age"}, r"^routing\.by is 'age'; allowed: one of probability, position$"),
        ({"target_overflow": 0.0}, r"^routing\.target_overflow is 0\.0; allowed: above 0, below 1$"),
        (
            {"target_overflow": 0.1, "capacity_factor": "dropless"},
            r"^routing\.target_overflow is 0\.1; allowed: none with capacity_factor dropless$",
        ),
        ({"step": 0.0}, r"^routing\.step is 0\.0; allowed: above 0, up to 1$"),
        ({"top_k": 5}, r"^routing\.top_k is 5; allowed: 1 to 4"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("capacity_topk", 4, **{"top_k": 2, **params})
