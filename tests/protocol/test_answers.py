"""Answers that are summed up from where they lie, against arrays that have them in order."""

from __future__ import annotations

import numpy as np
import pytest

from rayemu.model.reference import combine, combine_from
from rayemu.protocol import answers as answers_of
from rayemu.protocol.answers import Answers

D = 20


@pytest.mark.parametrize("few", [0, 1 << 20])
@pytest.mark.parametrize("seed", range(12))
def test_answers_come_out_by_choice_wherever_they_lay(
    seed: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_of, "FEW_BYTES", few)
    rng = np.random.default_rng(seed)
    tokens, choices = int(rng.integers(1, 90)), int(rng.integers(1, 6))
    pairs = tokens * choices
    answers = Answers(pairs, choices, D)
    expected = np.zeros((pairs, D), np.float32)  # of those that never come
    for _ in range(int(rng.integers(0, 6))):
        some = rng.permutation(pairs)[: rng.integers(1, pairs + 1)]
        if rng.random() < 0.5:
            rows, index = rng.standard_normal((len(some), D), dtype=np.float32), None
        else:
            rows = rng.standard_normal((int(rng.integers(1, 300)), D), dtype=np.float32)
            index = rng.integers(0, len(rows), len(some)).astype(np.int32)
        answers.take(some, rows, index)
        for number, pair in enumerate(some.tolist()):
            expected[pair] = rows[number if index is None else index[number]]
    expected = expected.reshape(tokens, choices, D)
    for low in range(0, tokens, 7):
        high = min(low + 7, tokens)
        for choice, term in enumerate(answers.terms(low, high)):
            assert np.array_equal(term, expected[low:high, choice])
    weights = rng.standard_normal((tokens, choices), dtype=np.float32)
    y = combine_from(answers.terms, weights, None, np.empty((tokens, D), np.float32))
    assert np.array_equal(y, combine(weights, expected))
