"""Top-p: against the definition in float64, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.routing import Context, Gate, make_router

NO_GATE = Gate(np.zeros((1, 1), np.float32))


def _row(shares: list[float]) -> np.ndarray:
    """Logits of a row whose probabilities are `shares`."""
    return np.log(np.array([shares], np.float32))


@pytest.mark.parametrize(
    ("p", "least", "most", "chosen"),
    [
        (0.3, 1, 4, [2, -1, -1, -1]),
        (0.5, 1, 4, [2, 0, -1, -1]),  # 0.4 is not yet 0.5
        (0.75, 1, 4, [2, 0, 3, -1]),  # 0.7 is not yet 0.75
        (0.95, 1, 4, [2, 0, 3, 1]),
        (0.3, 3, 4, [2, 0, 3, -1]),
        (0.95, 1, 2, [2, 0]),
    ],
)
@pytest.mark.parametrize("renormalise", [False, True])
def test_by_hand(p: float, least: int, most: int, chosen: list[int], renormalise: bool) -> None:
    shares = [0.3, 0.1, 0.4, 0.2]
    router = make_router("top_p", 4, top_k=most, p=p, least=least, renormalise=renormalise, scaling=2.0)
    experts, weights = router.choose(_row(shares), NO_GATE, Context())
    assert experts.tolist() == [chosen] and router.most(4) == most
    kept = sum(shares[e] for e in chosen if e >= 0) if renormalise else 1.0
    wanted = [2 * shares[e] / kept if e >= 0 else 0.0 for e in chosen]
    np.testing.assert_allclose(weights, [wanted], rtol=1e-6)


@given(st.integers(1, 20), st.floats(0.01, 1.0), st.floats(0.1, 6.0), st.integers(0, 2**31), st.data())
def test_the_fewest_experts_that_reach_p(
    experts: int, p: float, spread: float, seed: int, data: st.DataObject
) -> None:
    most = data.draw(st.integers(1, experts))
    least = data.draw(st.integers(1, most))
    logits = (spread * np.random.default_rng(seed).standard_normal((30, experts))).astype(np.float32)
    router = make_router("top_p", experts, top_k=most, p=p, least=least)
    chosen, weights = router.choose(logits.copy(), NO_GATE, Context())
    odds = np.exp(logits.astype(np.float64))
    odds /= odds.sum(axis=1, keepdims=True)
    for t in range(30):
        order = np.argsort(-logits[t], kind="stable")
        count = int((chosen[t] >= 0).sum())
        assert chosen[t].tolist() == [*order[:count], *[-1] * (most - count)]
        assert least <= count <= most
        reached = np.cumsum(odds[t][order])
        assert count in (least, 1) or reached[count - 2] < p + 1e-6, "one fewer would have done"
        assert count == most or reached[count - 1] > p - 1e-6, "too few"
        np.testing.assert_allclose(weights[t, :count], odds[t][order[:count]], rtol=1e-4, atol=1e-30)
        assert not weights[t, count:].any()


def test_ties_take_as_many_as_it_needs() -> None:
    for p, count in ((0.25, 1), (0.5, 2), (0.51, 3), (1.0, 4)):
        experts, weights = make_router("top_p", 4, top_k=4, p=p).choose(
            np.zeros((2, 4), np.float32), NO_GATE, Context()
        )
        assert experts.tolist() == [[*range(count), *[-1] * (4 - count)]] * 2
        assert weights.tolist() == [[0.25] * count + [0.0] * (4 - count)] * 2


def test_shares_are_summed_without_their_rounding_adding_up() -> None:
    """Eight times 1/12 in float32 is less than 8/12; the shares themselves are not too small."""
    for wanted in range(1, 13):
        router = make_router("top_p", 12, top_k=12, p=wanted / 12)
        experts = router.choose(np.zeros((1, 12), np.float32), NO_GATE, Context()).experts
        assert (experts >= 0).sum() == wanted


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("renormalise", [False, True])
def test_infinite_and_missing_logits(renormalise: bool) -> None:
    inf, nan = math.inf, math.nan
    router = make_router("top_p", 4, top_k=3, p=0.6, renormalise=renormalise)
    rows = np.array([[-inf, 3, -inf, 1], [inf, 0, inf, 0], [-inf] * 4, [0, nan, 9, 0]], np.float32)
    experts, weights = router.choose(rows, NO_GATE, Context())
    assert experts.tolist() == [[1, -1, -1], [0, 2, -1], [0, 1, 2], [1, -1, -1]]
    assert np.isfinite(weights[:3]).all() and (weights[:3] >= 0).all()
    assert np.isnan(weights[3, 0]) and not weights[3, 1:].any()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"p": 0.0}, r"routing.p is 0.0; allowed: above 0, up to 1"),
        ({"p": 1.1}, r"routing.p is 1.1"),
        ({"p": math.nan}, r"routing.p is nan"),
        ({"least": 0}, r"routing.least is 0; allowed: 1 to top_k = 3"),
        ({"least": 4}, r"routing.least is 4"),
        ({"top_k": 9}, r"routing.top_k is 9; allowed: 1 to 8"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("top_p", 8, **{"top_k": 3, **params})
