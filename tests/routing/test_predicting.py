"""Predictors of experts, against counting by hand, and chains whose chances are known."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from rayemu.routing.predicting import Foreseen, Patterns, Predictor, Transitions, compared, foreseen, predict

Step = frozenset[int]
Guess = Callable[[Sequence[Step]], dict[int, float]]


def _choices(tokens: int, layers: int, experts: int, top_k: int, seed: int) -> np.ndarray:
    """Choices [T, L, K] in which tokens come again: a walk over few of them; some have one choice only."""
    rng = np.random.default_rng(seed)
    kinds = np.stack(
        [[rng.permutation(experts)[:top_k] for _ in range(layers)] for _ in range(7)]
    )  # [V, L, K]
    kinds[3, :, -1] = -1
    walk = np.cumsum(rng.integers(0, 3, tokens)) % len(kinds)
    return kinds[walk].astype(np.int64)


class _ByHand:
    """The definition of both predictors, in dictionaries."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.times: Counter[object] = Counter()
        self.followed: dict[object, Counter[int]] = defaultdict(Counter)

    def keys(self, history: Sequence[Step]) -> list[list[object]]:
        """What is looked up: the first list of which something is known, its mean."""
        if not self.length:
            return [list(history[-1])]
        return [[tuple(history[-n:])] for n in range(min(self.length, len(history)), 0, -1)]

    def learn(self, history: Sequence[Step], after: Step) -> None:
        for keys in self.keys(history):
            for key in keys:
                self.times[key] += 1
                self.followed[key].update(after)

    def guess(self, history: Sequence[Step]) -> dict[int, float]:
        for keys in self.keys(history):
            if any(self.times[key] for key in keys):
                found: Counter[int] = Counter()
                for key in keys:
                    for expert, count in self.followed[key].items():
                        found[expert] += count / self.times[key] / len(keys)
                return dict(found)
        return {}


def _counted(choices: np.ndarray, along: str, length: int, count: int, confidence: float) -> Foreseen:
    tokens, layers, _ = choices.shape
    step = [[frozenset(e for e in row if e >= 0) for row in token] for token in choices.tolist()]
    used = fetched = hits = 0
    for layer in range(layers):
        known = _ByHand(length)
        for token in range(tokens):
            if along == "layers":
                history = [step[token][before] for before in range(layer)]
            else:
                history = [step[before][layer] for before in range(token)]
            if not history:
                continue
            history, actual = history[-3:], step[token][layer]
            chances = {e: c for e, c in known.guess(history).items() if c > 0 and c >= confidence - 1e-6}
            best = sorted(chances, key=lambda e: (-round(chances[e] * 2**20), e))[:count]
            used, fetched, hits = used + len(actual), fetched + len(best), hits + len(actual & set(best))
            known.learn(history, actual)
    return Foreseen(used, fetched, hits)


@pytest.mark.parametrize("along", ["tokens", "layers"])
@pytest.mark.parametrize("length", [0, 1, 3])
@pytest.mark.parametrize(("count", "confidence"), [(3, 0.0), (2, 0.8), (9, 0.5)])
def test_equals_counting_by_hand(along: str, length: int, count: int, confidence: float) -> None:
    choices = _choices(150, 4, 9, 3, seed=length)

    def make() -> Predictor:
        return Patterns(9, length) if length else Transitions(9)

    found = foreseen(make, choices, count, confidence, along)
    assert found == _counted(choices, along, length, count, confidence)
    assert 0 < found.hits <= min(found.used, found.fetched)


def test_a_chain_is_foretold_as_often_as_its_best_chances_say() -> None:
    """Expert e is followed by e + 1 with chance 0.75, else by e + 2: so often is the best guess right."""
    steps = 1 + (np.random.default_rng(5).random(4000) > 0.75)
    choices = (np.cumsum(steps) % 6)[:, None, None]  # [T, 1, 1]
    found = foreseen(lambda: Transitions(6), choices, 1)
    assert found.recall == pytest.approx(0.75, abs=0.02) == pytest.approx(found.precision, abs=0.02)
    assert foreseen(lambda: Transitions(6), choices, 2).recall > 0.99
    sure = foreseen(lambda: Transitions(6), choices, 1, confidence=0.9)
    assert sure.fetched < 100, "only while little is known is anything surer than it can be"


def test_a_period_needs_patterns_and_not_transitions() -> None:
    """0 1 0 2 0 1 0 2: after 0 comes either, but what was before 0 tells which."""
    choices = np.tile([0, 1, 0, 2], 100)[:, None, None]
    assert foreseen(lambda: Patterns(3, 2), choices, 1).recall > 0.98
    assert foreseen(lambda: Transitions(3), choices, 1).recall < 0.8
    sure = foreseen(lambda: Transitions(3), choices, 1, confidence=0.8)
    assert sure.precision > 0.9 and sure.recall < 0.6


def test_the_order_of_choices_is_no_part_of_a_pattern() -> None:
    model = Patterns(5, 1)
    model.learn(np.array([[[1, 4]]]), np.array([[2, -1]]))
    assert predict(model, np.array([[[4, 1]], [[1, 3]]]), 2).experts.tolist() == [[2, -1], [-1, -1]]


def test_a_pattern_counts_from_its_least_time_on() -> None:
    model = Patterns(5, 2, least=2)
    history = np.array([[[0], [1]]])
    model.learn(history, np.array([[2]]))
    assert predict(model, history, 1).experts.tolist() == [[-1]]
    model.learn(np.array([[[3], [1]]]), np.array([[4]]))  # twice after 1, in a longer pattern once each
    guessed = predict(model, history, 2)
    assert guessed.experts.tolist() == [[2, 4]] and guessed.confidence.tolist() == [[0.5, 0.5]]


def test_transitions_by_hand_and_nothing_known() -> None:
    model = Transitions(4)
    assert predict(model, np.array([[[0, 1]]]), 2).experts.tolist() == [[-1, -1]]
    model.learn(np.array([[[0, 1]], [[0, -1]]]), np.array([[2, 3], [3, -1]]))
    np.testing.assert_allclose(model.chances(np.array([[[0, 1]], [[1, -1]], [[-1, -1]]])), [
        [0, 0, 0.75, 1], [0, 0, 1, 1], [0, 0, 0, 0],
    ])  # fmt: skip
    experts, confidence = predict(model, np.array([[[0, 1]]]), 3, confidence=0.8)
    assert experts.tolist() == [[3, -1, -1]] and confidence.tolist() == [[1, 0, 0]]


def test_no_choice_is_neither_used_nor_a_hit() -> None:
    found = compared(np.array([[0, -1], [2, 1]]), np.array([[-1, 0], [-1, -1]]))
    assert found == Foreseen(used=1, fetched=3, hits=1)
    assert Foreseen(0, 0, 0).recall == Foreseen(0, 0, 0).precision == 0
