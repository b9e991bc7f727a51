"""Expert choice against a loop over experts in float64, and what a token may get: none, one, several, all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.routing import Context, ExpertChoice, Gate, make_router
from rayemu.routing.capacity import capacity

GATE = Gate(np.zeros((1, 1), np.float32))
INF, NAN = math.inf, math.nan


def _choose(router: Any, logits: Any, context: Context | None = None) -> tuple[np.ndarray, np.ndarray]:
    scores = np.array(logits, np.float32)
    return router.choose(scores, GATE, context or Context())


def _by_definition(logits: np.ndarray, count: int) -> list[dict[int, float]]:
    """What each token gets: expert -> softmax score, by sorting every expert's tokens."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores = powers / powers.sum(axis=1, keepdims=True)
    got: list[dict[int, float]] = [{} for _ in logits]
    for expert in range(logits.shape[1]):
        for token in sorted(range(len(logits)), key=lambda t: (-scores[t, expert], t))[:count]:
            got[token][expert] = scores[token, expert]
    return got


@pytest.mark.parametrize(
    ("top_k", "factor", "count"),
    [(2, 1.0, 13), (1, 1.0, 7), (3, 0.5, 10), (2, 1.1, 14), (8, 1.0, 50), (4, 9.0, 50)],
)
@pytest.mark.parametrize("renormalise", [False, True])
def test_every_expert_takes_its_best_tokens(top_k: int, factor: float, count: int, renormalise: bool) -> None:
    logits = np.random.default_rng(top_k).standard_normal((50, 8), dtype=np.float32)
    router = make_router("expert_choice", 8, top_k=top_k, capacity_factor=factor, renormalise=renormalise)
    context = Context()
    experts, weights = _choose(router, logits, context)
    wanted = _by_definition(logits, count)
    assert experts.dtype == np.int32 and weights.dtype == np.float32
    assert experts.shape == weights.shape == (50, max(map(len, wanted)))
    assert context.counts == {"tokens_without_expert": sum(not got for got in wanted)}
    for token, got in enumerate(wanted):
        best_first = sorted(got, key=lambda e: (-got[e], e))
        rest = experts.shape[1] - len(got)
        assert experts[token].tolist() == best_first + [-1] * rest
        total = sum(got.values()) if renormalise and got else 1.0
        np.testing.assert_allclose(
            weights[token], [got[e] / total for e in best_first] + [0] * rest, rtol=1e-5
        )


def test_no_expert_one_or_several_by_hand() -> None:
    # probabilities of three tokens; c = ceil(3 * 1 / 3) = 1 for each expert
    odds = [[8, 1, 1], [4, 3, 3], [1, 4.5, 4.5]]
    context = Context()
    experts, weights = _choose(ExpertChoice(1), np.log(odds), context)
    assert experts.tolist() == [[0, -1], [-1, -1], [1, 2]]
    np.testing.assert_allclose(weights, [[0.8, 0], [0, 0], [0.45, 0.45]], rtol=1e-6)
    assert context.counts == {"tokens_without_expert": 1}
    _, weights = _choose(ExpertChoice(1, renormalise=True, scaling=3), np.log(odds))
    np.testing.assert_allclose(weights, [[3, 0], [0, 0], [1.5, 1.5]], rtol=1e-6)


def test_one_token_gets_all_experts_and_no_token_is_no_trouble() -> None:
    experts, weights = _choose(ExpertChoice(1), np.log([[1, 4, 2, 3]]))
    assert experts.tolist() == [[1, 3, 2, 0]]
    np.testing.assert_allclose(weights, [[0.4, 0.3, 0.2, 0.1]], rtol=1e-6)
    experts, weights = _choose(ExpertChoice(1), np.empty((0, 4)))
    assert experts.shape == weights.shape == (0, 1)


def test_ties_go_to_the_earlier_token() -> None:
    experts, _ = _choose(ExpertChoice(1), np.zeros((4, 2)))
    assert experts.tolist() == [[0, 1], [0, 1], [-1, -1], [-1, -1]]
    logits = [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    assert _choose(ExpertChoice(1), logits)[0].tolist() == [[1, -1], [0, 1], [0, -1], [-1, -1]]


@given(
    st.data(), st.integers(1, 5), st.sampled_from([1, 2, 4]), st.sampled_from([0.5, 1.0, 1.3]), st.booleans()
)
def test_loads_are_even_whatever_the_logits_are(
    data: st.DataObject, tokens: int, top_k: int, factor: float, renormalise: bool
) -> None:
    value = st.sampled_from([-INF, INF, NAN, -1e30, -200.0, 0.0, 1.0])
    row = st.lists(value, min_size=4, max_size=4)
    logits = np.array(data.draw(st.lists(row, min_size=tokens, max_size=tokens)), np.float32)
    router = ExpertChoice(top_k, factor, renormalise)
    experts, weights = _choose(router, logits)
    loads = np.bincount(experts[experts >= 0], minlength=4)
    assert (loads == min(tokens, math.ceil(factor * tokens * top_k / 4))).all()
    assert experts.shape[1] <= router.most(4) and (experts[:, -1] >= 0).any()
    assert (weights[experts < 0] == 0).all()
    for token, chosen in enumerate(experts.tolist()):
        real = [e for e in chosen if e >= 0]
        assert len(set(real)) == len(real) and chosen[: len(real)] == real
        if not np.isnan(logits[token]).any():
            assert np.isfinite(weights[token]).all() and (weights[token] >= 0).all()
    if np.isnan(logits).any():  # taken first, so that it shows
        assert np.isnan(weights).any()


def test_a_capacity_is_rounded_up_from_the_factor_as_it_is_written() -> None:
    assert 1.1 * 100 / 10 > 11, "in binary"
    assert capacity(1.1, tokens=100, top_k=1, experts=10) == 11
    assert [capacity(1.0, tokens, 2, 8) for tokens in (0, 1, 4, 5)] == [0, 1, 1, 2]


@pytest.mark.parametrize("factor", [0, -1.0, NAN, INF, "1", True])
def test_a_factor_that_leaves_no_room_is_refused(factor: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^routing\.capacity_factor is .*; allowed: a number above 0, up to 1,000,000$"
    ):
        make_router("expert_choice", 4, top_k=1, capacity_factor=factor)
    with pytest.raises(ValueError, match=r"routing\.top_k is 5; allowed: 1 to 4"):
        make_router("expert_choice", 4, top_k=5)
