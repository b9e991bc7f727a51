"""Top-k by groups is top-k, whatever the groups, ties and NaN."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayemu.routing import Context, Gate, Offer, make_router, merge_top_k, offer_top_k

NO_GATE = Gate(np.zeros((1, 1), np.float32))
VALUES = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1.0, 2.0, np.inf, np.nan])


def _logits(data: st.DataObject, experts: int) -> np.ndarray:
    row = st.lists(VALUES | st.floats(-9, 9, width=32), min_size=experts, max_size=experts)
    return np.array(data.draw(st.lists(row, min_size=1, max_size=4)), np.float32)


def _in_order(row: np.ndarray, ids: list[int]) -> list[int]:
    """NaN first, then by descending score, then by number: Python's own sort."""
    return sorted(ids, key=lambda e: (not np.isnan(row[e]), 0 if np.isnan(row[e]) else -row[e], e))


@given(st.sampled_from([1, 2, 6, 12, 16]), st.booleans(), st.sampled_from([1.0, 2.5]), st.data())
def test_equals_softmax_topk_for_every_grouping(
    experts: int, renormalise: bool, scaling: float, data: st.DataObject
) -> None:
    logits = _logits(data, experts)
    k = data.draw(st.integers(1, experts))
    params = {"top_k": k, "renormalise": renormalise, "scaling": scaling}
    plain = make_router("softmax_topk", experts, **params).choose(logits.copy(), NO_GATE, Context())
    for groups in (g for g in range(1, experts + 1) if experts % g == 0):
        router = make_router("grouped_topk", experts, groups=groups, **params)
        found = router.choose(logits.copy(), NO_GATE, Context())
        assert found.experts.dtype == np.int32
        assert found.experts.tolist() == plain.experts.tolist()
        np.testing.assert_array_equal(found.weights.view(np.uint32), plain.weights.view(np.uint32))


@given(st.integers(1, 14), st.integers(1, 5), st.data())
def test_offers_of_any_parts_in_any_order_merge_to_the_best(
    experts: int, parts: int, data: st.DataObject
) -> None:
    """As modules hold them: unequal, interleaved, some with none."""
    logits = _logits(data, experts)
    part_of = np.array(data.draw(st.lists(st.integers(0, parts - 1), min_size=experts, max_size=experts)))
    k = data.draw(st.integers(1, experts))
    offers = []
    for part in data.draw(st.permutations(range(parts))):
        held = np.flatnonzero(part_of == part)
        offers.append(offer_top_k(np.ascontiguousarray(logits[:, held]), held, k))
    chosen, scores = merge_top_k(offers, k)
    for t, row in enumerate(logits):
        wanted = _in_order(row, list(range(experts)))[:k]
        assert chosen[t].tolist() == wanted
        np.testing.assert_array_equal(scores[t], row[wanted])


def test_by_hand() -> None:
    left = offer_top_k(np.array([[1, 5, 5]], np.float32), np.array([0, 2, 4]), 2)
    right = offer_top_k(np.array([[5, 2]], np.float32), np.array([1, 3]), 2)
    assert left.experts.tolist() == [[2, 4]] and right.experts.tolist() == [[1, 3]]
    for offers in ([left, right], [right, left]):
        chosen, scores = merge_top_k(offers, 3)
        assert chosen.tolist() == [[1, 2, 4]] and scores.tolist() == [[5, 5, 5]]


def test_no_tokens() -> None:
    none = np.empty((0, 2), np.float32)
    offers = [offer_top_k(none, np.array([0, 1]), 1), offer_top_k(none, np.array([2, 3]), 1)]
    assert merge_top_k(offers, 2).experts.shape == (0, 2)
    assert make_router("grouped_topk", 4, top_k=2, groups=2).route(none, Gate(np.ones((2, 4), np.float32)))[
        0
    ].shape == (0, 2)


def test_what_cannot_be_merged_is_refused() -> None:
    one = Offer(np.array([[3, 1]], np.int32), np.array([[2, 1]], np.float32))
    with pytest.raises(ValueError, match=r"offers have \[2\] experts; needed: 3 in all"):
        merge_top_k([one], 3)
    with pytest.raises(ValueError, match=r"expert 1 is offered twice; allowed: by one part"):
        merge_top_k([one, Offer(np.array([[1]], np.int32), np.array([[1]], np.float32))], 2)
    border = Offer(np.array([[3, 5]], np.int32), np.array([[1, 1]], np.float32))
    with pytest.raises(ValueError, match=r"expert 3 is offered twice"):
        merge_top_k([one, border], 2)
    with pytest.raises(ValueError, match=r"experts are \[2, 1\]; allowed: .* ascending"):
        offer_top_k(np.zeros((1, 2), np.float32), np.array([2, 1]), 1)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"top_k": 2, "groups": 3}, r"routing.groups is 3; allowed: a divisor of 8"),
        ({"top_k": 2, "groups": 0}, r"routing.groups is 0"),
        ({"top_k": 9, "groups": 4}, r"routing.top_k is 9; allowed: 1 to 8"),
    ],
)
def test_impossible_parameters_are_refused(params: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("grouped_topk", 8, **params)
    make_router("grouped_topk", 8, top_k=8, groups=4)
