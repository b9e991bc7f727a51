"""The routing cache, against a dictionary that rows are looked up in one by one."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import islice

import numpy as np
import pytest

from rayemu.routing import CachedTopK, Context, Gate, Routing, SoftmaxTopK, make_router
from rayemu.streams import Text

WIDTH, EXPERTS = 24, 16


def _gate(experts: int = EXPERTS) -> Gate:
    return Gate(np.random.default_rng(1).standard_normal((WIDTH, experts), dtype=np.float32))


def _rows(count: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH), dtype=np.float32)


class _Dictionary:
    """The definition: row by row, the least recently used made room for between batches."""

    def __init__(self, router: CachedTopK, gate: Gate) -> None:
        self.router, self.gate, self.hits, self.stale = router, gate, 0, 0
        self.entries: OrderedDict[tuple[float, ...], set[int]] = OrderedDict()

    def route(self, x: np.ndarray) -> list[tuple[list[int], list[float]]]:
        found = []
        scores = self.router.scores(x, self.gate)
        logits = x.astype(np.float64) @ self.gate.weight.astype(np.float64)
        for row, signature in enumerate(map(tuple, scores[:, EXPERTS:].tolist())):
            best = sorted(range(EXPERTS), key=lambda e: (-logits[row, e], e))[: self.router.top_k]
            self.hits += signature in self.entries
            chosen = self.entries.setdefault(signature, set(best))
            self.entries.move_to_end(signature)
            self.stale += len(set(best) - chosen)
            ordered = sorted(chosen, key=lambda e: (-logits[row, e], e))
            powers = [math.exp(logits[row, e]) for e in ordered]
            found.append((ordered, [power / sum(powers) for power in powers]))
        while len(self.entries) > self.router.capacity:
            self.entries.popitem(last=False)
        return found


@pytest.mark.parametrize(("bits", "capacity"), [(3, 5), (5, 7), (26, 40), (60, 1), (1, 1000)])
def test_equals_a_dictionary_with_lru(bits: int, capacity: int) -> None:
    gate, router = _gate(), CachedTopK(top_k=3, bits=bits, capacity=capacity, audit=True)
    known, state, context = _Dictionary(router, gate), router.new_state(EXPERTS), Context()
    pool = _rows(60)
    for batch in range(8):
        x = pool[np.random.default_rng(batch).integers(0, 60, 30 if batch else 1)]
        context = Context(batch=batch, state=state, counts=context.counts)
        experts, weights = router.route(x, gate, context)
        wanted = known.route(x)
        assert experts.tolist() == [chosen for chosen, _ in wanted]
        np.testing.assert_allclose(weights, [weight for _, weight in wanted], rtol=2e-5)
        assert len(state.signature) <= capacity
    counts = context.counts
    assert counts["cache_hits"] == known.hits and counts["cache_hits"] + counts["cache_misses"] == 211
    assert counts["stale_choices"] == known.stale
    assert (counts["stale_rows"] > 0) == (known.stale > 0)


def test_signatures_are_the_sides_of_hyperplanes_and_agree_by_the_angle() -> None:
    """Charikar 2002: one bit of rows at an angle a differs with probability a / pi."""
    router = CachedTopK(top_k=1, bits=50)
    one, other = _rows(2000), _rows(2000, 3)
    near = one + np.float32(0.5) * other
    scores = router.scores(np.concatenate([one, near]), _gate())
    assert scores.shape == (4000, EXPERTS + 3) and scores.dtype == np.float32
    packed = scores[:, EXPERTS:].astype(np.int64)  # [T, 3] of 24, 24 and 2 bits
    assert packed.max() < 1 << 24 and packed[:, 2].max() < 1 << 2
    bits = np.stack([packed[:, n // 24] >> n % 24 & 1 for n in range(50)], axis=1)
    length = np.linalg.norm(one, axis=1) * np.linalg.norm(near, axis=1)
    angle = np.arccos((one * near).sum(axis=1) / length)
    assert (bits[:2000] != bits[2000:]).mean() == pytest.approx(angle.mean() / np.pi, abs=0.01)


def test_scores_of_a_row_do_not_depend_on_the_others() -> None:
    router, gate, x = CachedTopK(top_k=2, bits=30), _gate(), _rows(200)
    whole = router.scores(x, gate)
    np.testing.assert_array_equal(whole[:, :EXPERTS], gate.logits(x))
    for rows in ([7], [3, 199, 4], list(range(100, 163))):
        np.testing.assert_array_equal(router.scores(x[rows], gate), whole[rows])


@pytest.mark.parametrize("params", [{}, {"renormalise": False, "scaling": 2.0}])
def test_what_was_never_seen_is_chosen_as_softmax_topk_does_to_the_bit(params: dict) -> None:
    gate, x = _gate(), _rows(300)
    cached = CachedTopK(top_k=4, bits=60, **params).route(x, gate)
    plain = SoftmaxTopK(top_k=4, **params).route(x, gate)
    np.testing.assert_array_equal(cached.experts, plain.experts)
    np.testing.assert_array_equal(cached.weights, plain.weights)


def _logits(values: list[list[float]], router: CachedTopK, state: object = None) -> Routing:
    scores = np.column_stack([np.array(values, np.float32), np.zeros(len(values), np.float32)])
    gate = Gate(np.zeros((1, len(values[0])), np.float32))
    return router.choose(scores.astype(np.float32), gate, Context(state=state))


def test_rows_that_are_no_numbers_are_neither_hits_nor_kept() -> None:
    """A NaN would hide behind the choices of another, and would be what others are given."""
    inf, nan = math.inf, math.nan
    router = CachedTopK(top_k=1)
    rows = [[0, nan, 1], [0, 1, inf], [3, 2, 1], [1, 2, 3], [nan, 0, 0], [-inf, 0, 1]]
    experts, weights = _logits(rows, router, state := router.new_state(3))
    assert experts[:, 0].tolist() == [1, 2, 0, 0, 0, 2]
    assert np.isnan(weights[:, 0]).tolist() == [True, False, False, False, True, False]
    assert state.signature.tolist() == [0] and state.experts.tolist() == [[0]]


def test_signatures_differ_by_all_of_their_bits() -> None:
    router, context = CachedTopK(top_k=1, bits=30), Context()
    scores = np.array([[1, 0, 5, 0], [0, 1, 0, 5], [0, 1, 5, 0]], np.float32)  # two logits, 24 bits and 6
    experts, _ = router.choose(scores, Gate(np.zeros((1, 2), np.float32)), context)
    assert experts[:, 0].tolist() == [0, 1, 0] and context.counts["cache_hits"] == 1


def test_ties_and_all_experts_and_no_rows() -> None:
    router = CachedTopK(top_k=3)
    assert _logits([[0, 1, 2], [5, 9, 9]], router).experts.tolist() == [[2, 1, 0], [1, 2, 0]]
    gate, state = _gate(), router.new_state(EXPERTS)
    empty = router.route(np.zeros((0, WIDTH), np.float32), gate, Context(state=state))
    assert empty.experts.shape == empty.weights.shape == (0, 3)
    assert len(state.signature) == 0


def test_repeated_text_hits_and_random_rows_do_not() -> None:
    """Rows of one word are the same to the bit: with 48 planes the hits are the words seen before."""
    gate, router = _gate(), CachedTopK(top_k=2, bits=48, capacity=1 << 16, audit=True)
    state, context = router.new_state(EXPERTS), Context()
    stream, seen, again = Text(vocabulary=4096), set[int](), 0
    for ids in islice(stream.tokens(500, 0), 3):
        for word in ids.tolist():
            again += word in seen
            seen.add(word)
    for x in islice(stream.batches(500, WIDTH, 0), 3):
        context = Context(state=state, counts=context.counts)
        router.route(x, gate, context)
    assert context.counts["cache_hits"] == again > 750
    assert context.counts["stale_choices"] == 0
    lonely = Context(state=router.new_state(EXPERTS))
    router.route(_rows(1500), gate, lonely)
    assert lonely.counts["cache_hits"] == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"capacity": 0}, "capacity: 0 is not allowed; allowed: 1 and above"),
        ({"bits": 0}, "bits: 0 is not allowed; allowed: 1 to 60 hyperplanes"),
        ({"bits": 61}, "bits: 61 is not allowed"),
        ({"seed": -1}, "seed: -1 is not allowed; allowed: 0 and above"),
        ({"top_k": 17}, "routing.top_k is 17; allowed: 1 to 16"),
    ],
)
def test_what_cannot_be_is_refused(params: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_router("cached_topk", EXPERTS, **{"top_k": 2, **params})
