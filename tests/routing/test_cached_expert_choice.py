"""Expert choice with a cache: the prompt as without, then tokens against a loop over all earlier scores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.routing import CachedExpertChoice, Context, ExpertChoice, Gate, make_router

GATE = Gate(np.zeros((1, 1), np.float32))
INF, NAN = math.inf, math.nan


def _logits(tokens: int, experts: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, experts), dtype=np.float32)


def _run(router: Any, logits: np.ndarray, cuts: list[int]) -> tuple[list[dict[int, float]], dict, Any]:
    """Batches that end at `cuts`, one after the other -> what each token got, counts, state."""
    state = router.new_state(logits.shape[1])
    counts: dict[str, float] = {}
    got: list[dict[int, float]] = []
    for start, end in zip([0, *cuts], cuts, strict=False):
        routing = router.choose(logits[start:end].copy(), GATE, Context(state=state, counts=counts))
        assert routing.experts.dtype == np.int32 and routing.weights.dtype == np.float32
        for experts, weights in zip(routing.experts.tolist(), routing.weights.tolist(), strict=True):
            real = [e for e in experts if e >= 0]
            assert (
                experts[: len(real)] == real
                and weights[: len(real)] == sorted(weights, reverse=True)[: len(real)]
            )
            assert not any(weights[len(real) :])
            got.append(dict(zip(real, weights, strict=False)))
    return got, counts, state


def _by_loops(
    logits: np.ndarray, cuts: list[int], top_k: int, factor: float, window: int
) -> list[dict[int, float]]:
    """Every batch with the `window` tokens before it, sorted for each expert, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    scores = powers / powers.sum(axis=1, keepdims=True)
    got: list[dict[int, float]] = [{} for _ in logits]
    for start, end in zip([0, *cuts], cuts, strict=False):
        pool = range(max(0, start - window), end)
        count = math.ceil(factor * len(pool) * top_k / logits.shape[1])
        for expert in range(logits.shape[1]):
            for token in sorted(pool, key=lambda t: (-scores[t, expert], t))[:count]:
                if token >= start:
                    got[token][expert] = scores[token, expert]
    return got


@pytest.mark.parametrize("cuts", [[40], [20, *range(21, 41)], [1, 2, 3, 10, 40], [0, 40, 40]])
@pytest.mark.parametrize(("top_k", "factor", "window"), [(2, 1.0, 100), (1, 1.5, 16), (4, 1.0, 1)])
def test_equals_the_loops(cuts: list[int], top_k: int, factor: float, window: int) -> None:
    logits = _logits(40, 8, 1)
    router = make_router("cached_expert_choice", 8, top_k=top_k, capacity_factor=factor, window=window)
    got, counts, state = _run(router, logits, cuts)
    wanted = _by_loops(logits, cuts, top_k, factor, window)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.keys() == theirs.keys()
        np.testing.assert_allclose([mine[e] for e in theirs], list(theirs.values()), rtol=1e-5)
    assert counts["tokens_without_expert"] == sum(not g for g in wanted)
    assert counts["cached_scores"] == sum(min(window, start) for start in [0, *cuts[:-1]])
    powers = np.exp(logits[-window:])
    np.testing.assert_allclose(state["scores"], powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("renormalise", [False, True])
def test_the_prompt_is_routed_as_without_a_cache(renormalise: bool) -> None:
    logits = _logits(64, 8, 2)
    params: dict[str, Any] = {"top_k": 2, "capacity_factor": 1.2, "renormalise": renormalise, "scaling": 2.0}
    plain = ExpertChoice(**params).choose(logits.copy(), GATE, Context())
    router = CachedExpertChoice(**params)
    for context in (Context(), Context(state=router.new_state(8))):
        cached = router.choose(logits.copy(), GATE, context)
        np.testing.assert_array_equal(cached.experts, plain.experts)
        np.testing.assert_array_equal(cached.weights, plain.weights)


def test_a_token_needs_a_better_score_than_those_before_it_by_hand() -> None:
    router, state = CachedExpertChoice(1, capacity_factor=0.5), {"scores": np.empty((0, 2), np.float32)}

    def token(*odds: float) -> list[int]:
        return (
            router.choose(np.log(np.array([odds], np.float32)), GATE, Context(state=state))
            .experts[0]
            .tolist()
        )

    assert token(6, 4) == [0, 1], "nobody else is there: all experts"
    assert token(7, 3) == [0], "7 beats 6, 3 does not beat 4; a place for up to four tokens"
    assert token(6.5, 3.5) == [-1]
    assert token(7, 3) == [-1], "a tie is the earlier one's"
    assert token(1, 9) == [1], "now two places: 4 is the second best"
    assert token(6.9, 3.1) == [-1]
    assert len(state["scores"]) == 6


def test_as_many_experts_as_wanted_in_the_long_run() -> None:
    """Each expert takes a new token with probability top_k / E when scores come from one distribution."""
    logits = _logits(1500, 16, 3)
    got, _, _ = _run(CachedExpertChoice(2, window=512), logits, [500, *range(501, 1501)])
    mean = sum(map(len, got[500:])) / 1000
    assert 1.9 < mean < 2.15


@given(
    st.data(),
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
)
def test_weights_are_sound_and_the_cache_finite_whatever_the_logits_are(
    data: st.DataObject, sizes: list[int], top_k: int, window: int, renormalise: bool
) -> None:
    value = st.sampled_from([-INF, INF, NAN, -1e30, -200.0, 0.0, 1.0])
    router = CachedExpertChoice(top_k, window=window, renormalise=renormalise)
    state = router.new_state(3)
    for size in sizes:
        rows = data.draw(st.lists(st.lists(value, min_size=3, max_size=3), min_size=size, max_size=size))
        logits = np.array(rows, np.float32).reshape(size, 3)
        cached = len(state["scores"])
        experts, weights = router.choose(logits.copy(), GATE, Context(state=state))
        limit = math.ceil((cached + size) * top_k / 3)
        loads = np.bincount(experts[experts >= 0], minlength=3)
        assert experts.shape == weights.shape == (size, experts.shape[1]) and 1 <= experts.shape[1] <= 3
        assert (loads <= limit).all() and (weights[experts < 0] == 0).all()
        fine = ~np.isnan(logits).any(axis=1)
        assert np.isfinite(weights[fine]).all() and (weights[fine] >= 0).all()
        if not fine.all():
            assert np.isnan(weights).any()
        assert np.isfinite(state["scores"]).all() and len(state["scores"]) == min(window, cached + fine.sum())


def test_a_cache_that_does_not_fit_is_refused() -> None:
    context = Context(state={"scores": np.zeros((5, 3), np.float32)})
    with pytest.raises(ValueError, match=r"the cache holds scores \[5, 3\]; allowed: \[w, 4\]"):
        CachedExpertChoice(1).choose(np.zeros((1, 4), np.float32), GATE, context)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"window": 0}, r"^routing\.window is 0; allowed: 1 or more tokens$"),
        (
            {"capacity_factor": -1},
            r"^routing\.capacity_factor is -1; allowed: a number above 0, up to 1,000,000$",
        ),
        ({"top_k": 5}, r"^routing\.top_k is 5; allowed: 1 to 4"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("cached_expert_choice", 4, **{"top_k": 2, **params})
