"""BASE against every balanced assignment, against a linear program, and its balance to one token."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from rayemu.routing import BaseAssignment, Context, Gate, make_router
from rayemu.routing.base import _assigned

GATE = Gate(np.zeros((1, 1), np.float32))
INF, NAN = math.inf, math.nan


def _even(loads: np.ndarray) -> bool:
    return bool(loads.max() - loads.min() <= 1)


def _loads(experts: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(experts.ravel(), minlength=count)


def _best_round(logits: np.ndarray, held: list[set[int]], loads: np.ndarray) -> float:
    """The highest sum of one more expert for each token that keeps all loads within one of each other."""
    tokens, experts = logits.shape
    best = -math.inf
    for trial in itertools.product(range(experts), repeat=tokens):
        if not any(e in mine for e, mine in zip(trial, held, strict=True)) and _even(
            loads + np.bincount(trial, minlength=experts)
        ):
            best = max(best, sum(float(logits[t, e]) for t, e in enumerate(trial)))
    return best


@pytest.mark.parametrize(("tokens", "experts"), [(6, 3), (5, 3), (3, 4), (1, 4), (7, 2), (4, 4)])
def test_no_balanced_assignment_is_better(tokens: int, experts: int) -> None:
    for seed in range(3):
        logits = np.random.default_rng([seed, tokens]).standard_normal((tokens, experts), dtype=np.float32)
        logits[:, 0] += 2
        chosen, _ = BaseAssignment(1).choose(logits.copy(), GATE, Context())
        assert _even(_loads(chosen, experts))
        best = _best_round(logits, [set() for _ in logits], np.zeros(experts, np.int64))
        assert np.take_along_axis(logits, chosen, axis=1).sum() == pytest.approx(best, abs=1e-5)


def test_every_round_is_the_best_one() -> None:
    """The first round is that of one choice, the second the best one after it."""
    for seed in range(5):
        logits = np.random.default_rng(seed).standard_normal((5, 4), dtype=np.float32)
        first = BaseAssignment(1).choose(logits.copy(), GATE, Context()).experts
        both = BaseAssignment(2).choose(logits.copy(), GATE, Context()).experts
        held = [{int(e)} for e in first[:, 0]]
        assert all(mine < set(two) for mine, two in zip(held, both.tolist(), strict=True))
        second = (
            np.take_along_axis(logits, both, axis=1).sum() - np.take_along_axis(logits, first, axis=1).sum()
        )
        best = _best_round(logits, held, _loads(first, 4))
        assert second == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("tokens", [64, 75])
def test_equals_the_linear_program(tokens: int) -> None:
    """One choice: the vertex of the transport polytope; four in rounds are within 2 % of four at once."""
    experts = 8
    logits = np.random.default_rng(tokens).standard_normal((tokens, experts), dtype=np.float32)
    logits[:, 1] += 1
    rows = scipy.sparse.kron(scipy.sparse.eye(tokens), np.ones((1, experts)))
    columns = scipy.sparse.kron(np.ones((1, tokens)), scipy.sparse.eye(experts))
    for top_k, share in ((1, 1.0), (4, 0.98)):
        least, most = tokens * top_k // experts, -(-tokens * top_k // experts)
        optimum = linprog(
            -logits.ravel().astype(np.float64),
            A_eq=rows,
            b_eq=np.full(tokens, top_k),
            A_ub=scipy.sparse.vstack([columns, -columns]),
            b_ub=np.repeat([most, -least], experts),
            bounds=(0, 1),
        )
        chosen = BaseAssignment(top_k).choose(logits.copy(), GATE, Context()).experts
        total = np.take_along_axis(logits, chosen, axis=1).sum()
        assert share * -optimum.fun - 1e-4 <= total <= -optimum.fun + 1e-4
        assert _even(_loads(chosen, experts))


def test_by_hand() -> None:
    odds = np.array([[8, 1, 1], [6, 3, 1], [5, 2, 3]], np.float32)  # all want 0; tokens 1 and 2 lose least
    experts, weights = BaseAssignment(1, renormalise=False, scaling=2).choose(np.log(odds), GATE, Context())
    assert experts.tolist() == [[0], [1], [2]]
    np.testing.assert_allclose(weights, [[1.6], [0.6], [0.6]], rtol=1e-6)
    experts, weights = BaseAssignment(2).choose(np.log(odds), GATE, Context())
    # the second round is 2, 0, 1 with 1 * 6 * 2, not 1, 2, 0 with 1 * 1 * 5
    assert experts.tolist() == [[0, 2], [0, 1], [2, 1]]
    np.testing.assert_allclose(weights, [[8 / 9, 1 / 9], [6 / 9, 3 / 9], [0.6, 0.4]], rtol=1e-6)


@given(st.data(), st.integers(0, 9), st.integers(1, 5), st.booleans())
def test_balance_to_one_token_whatever_the_logits_are(
    data: st.DataObject, tokens: int, top_k: int, renormalise: bool
) -> None:
    experts = data.draw(st.integers(top_k, 7))
    value = st.sampled_from([-INF, INF, NAN, -1e30, -200.0, 0.0, 1.0])
    row = st.lists(value, min_size=experts, max_size=experts)
    logits = np.array(data.draw(st.lists(row, min_size=tokens, max_size=tokens)), np.float32)
    logits = logits.reshape(tokens, experts)
    chosen, weights = BaseAssignment(top_k, renormalise).choose(logits.copy(), GATE, Context())
    assert chosen.dtype == np.int32 and weights.dtype == np.float32
    assert chosen.shape == weights.shape == (tokens, top_k)
    assert _even(_loads(chosen, experts))
    for token, mine in enumerate(chosen.tolist()):
        assert len(set(mine)) == top_k and min(mine) >= 0
        if not np.isnan(logits[token]).any():
            assert np.isfinite(weights[token]).all() and (weights[token] >= 0).all()
        elif top_k == experts:
            assert np.isnan(weights[token]).any()


@given(st.integers(1, 12), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_balance_holds_after_every_round(tokens: int, experts: int, seed: int) -> None:
    logits = np.random.default_rng(seed).standard_normal((tokens, experts), dtype=np.float32)
    logits += np.linspace(0, 9, experts, dtype=np.float32)
    for top_k in range(1, experts + 1):
        assert _even(_loads(BaseAssignment(top_k).choose(logits.copy(), GATE, Context()).experts, experts))


def test_bounds_give_way_where_nothing_is_within_them() -> None:
    values = np.array([[0.0, -INF], [1.0, -INF]])  # both may go to the first alone, which has one place
    assert _assigned(values, np.array([1, 1]), np.array([1, 1])).tolist() == [0, 0]


def test_all_ties_are_balanced_too() -> None:
    chosen, weights = BaseAssignment(2).choose(np.zeros((6, 4), np.float32), GATE, Context())
    assert _loads(chosen, 4).tolist() == [3, 3, 3, 3]
    np.testing.assert_array_equal(weights, 0.5)


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^routing\.top_k is 5; allowed: 1 to 4"):
        make_router("base", 4, top_k=5)
