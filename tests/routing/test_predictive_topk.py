"""The predictive router: softmax_topk to the bit, and counts that a loop over rows makes too."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from rayemu.routing import Context, Gate, PredictiveTopK, SoftmaxTopK, make_router

WIDTH, EXPERTS = 24, 16


def _gate() -> Gate:
    return Gate(np.random.default_rng(1).standard_normal((WIDTH, EXPERTS), dtype=np.float32))


def _batches(count: int) -> list[np.ndarray]:
    """Rows of a small vocabulary in an order that repeats, mostly."""
    rng = np.random.default_rng(2)
    words = rng.standard_normal((20, WIDTH), dtype=np.float32)
    ids = np.cumsum(1 + (rng.random(count * 50) < 0.1)) % 20
    return [words[part] for part in ids.reshape(count, 50)]


@pytest.mark.parametrize("params", [{}, {"renormalise": False, "scaling": 3.0}])
def test_choices_are_those_of_softmax_topk_to_the_bit(params: dict) -> None:
    gate = _gate()
    router = PredictiveTopK(top_k=3, **params)
    state = router.new_state(EXPERTS)
    for x in _batches(4):
        found = router.route(x, gate, Context(state=state))
        plain = SoftmaxTopK(top_k=3, **params).route(x, gate)
        np.testing.assert_array_equal(found.experts, plain.experts)
        np.testing.assert_array_equal(found.weights, plain.weights)


@pytest.mark.parametrize(("prefetch", "confidence"), [(0, 0.0), (5, 0.0), (4, 0.6), (16, 1.0)])
def test_counts_equal_a_loop_over_rows(prefetch: int, confidence: float) -> None:
    gate, router = _gate(), PredictiveTopK(top_k=3, prefetch=prefetch, confidence=confidence)
    state, counts = router.new_state(EXPERTS), {}
    followed: dict[int, Counter[int]] = defaultdict(Counter)
    times: Counter[int] = Counter()
    last: list[int] = []
    hits = misses = wasted = 0
    for batch, x in enumerate(_batches(6)):
        chosen = router.route(x, gate, Context(batch=batch, state=state, counts=counts)).experts.tolist()
        learned = []
        for row in chosen:
            chance = Counter[int]()
            for before in last:
                for expert, count in followed[before].items():
                    chance[expert] += count / times[before] / len(last)
            sure = [e for e in chance if chance[e] >= confidence - 1e-6]
            guess = set(sorted(sure, key=lambda e: (-round(chance[e] * 2**20), e))[: prefetch or 3])
            hits, misses = hits + len(guess & set(row)), misses + len(set(row) - guess)
            wasted += len(guess - set(row))
            learned.append((last, row))
            last = row
        for before, after in learned:  # a batch is predicted from those before it
            times.update(before)
            for expert in before:
                followed[expert].update(after)
    assert counts == {"prefetch_hits": hits, "prefetch_misses": misses, "prefetch_wasted": wasted}
    assert hits + misses == 900


def test_nothing_is_counted_of_no_rows() -> None:
    router, counts = PredictiveTopK(top_k=2), {}
    state = router.new_state(EXPERTS)
    empty = router.route(np.zeros((0, WIDTH), np.float32), _gate(), Context(state=state, counts=counts))
    assert empty.experts.shape == (0, 2) and counts == {} and state.last.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"prefetch": -1}, r"prefetch: -1 is not allowed; allowed: 0 \(top_k\) and above"),
        ({"prefetch": 17}, "routing.prefetch is 17; allowed: 0 to 16, the experts"),
        ({"confidence": 1.5}, "confidence: 1.5 is not allowed; allowed: 0 to 1"),
        ({"top_k": 0}, "routing.top_k is 0"),
    ],
)
def test_what_cannot_be_is_refused(params: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("predictive_topk", EXPERTS, **{"top_k": 2, **params})
