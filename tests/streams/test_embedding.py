from __future__ import annotations

import math

import numpy as np
import pytest

from rayemu.streams.embedding import Embedding, embed


def test_a_row_is_a_function_of_seed_and_token() -> None:
    one, other = Embedding(10_000, 32, seed=5), Embedding(10_000, 32, seed=5)
    tokens = np.random.default_rng(0).integers(10_000, size=2000)
    forwards = one.rows(tokens)
    backwards = other.rows(tokens[::-1])[::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert not np.array_equal(forwards, Embedding(10_000, 32, seed=6).rows(tokens))


def test_rows_are_independent_standard_normals() -> None:
    table = Embedding(3000, 64, seed=1).rows(np.arange(3000)).astype(np.float64)  # [V, D]
    values = table.size
    assert abs(table.mean()) < 5 / math.sqrt(values)
    assert abs(table.var() - 1) < 5 * math.sqrt(2 / values)
    assert abs((table**4).mean() - 3) < 5 * math.sqrt(96 / values)
    assert abs((table[1:] * table[:-1]).mean()) < 5 / math.sqrt(values)  # neighbouring tokens
    assert abs((table[:, 1:] * table[:, :-1]).mean()) < 5 / math.sqrt(values)  # neighbouring columns


@pytest.mark.parametrize("context", [0.1, 0.5, 0.99])
def test_context_is_the_recurrence(context: float) -> None:
    tokens = np.random.default_rng(0).integers(50, size=60)
    table = Embedding(50, 8, seed=2).rows(np.arange(50)).astype(np.float64)
    expected = np.empty((60, 8))
    for t, token in enumerate(tokens):
        fresh = math.sqrt(1 - context**2) * table[token]
        expected[t] = table[token] if t == 0 else fresh + context * expected[t - 1]
    got = np.concatenate(list(embed(np.split(tokens, 4), 50, 8, 2, context)))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_context_keeps_the_scale_and_sets_the_correlation() -> None:
    tokens = np.random.default_rng(0).permutation(20_000)  # no token twice, so embeddings are independent
    (x,) = embed([tokens], 20_000, 16, 3, 0.67)
    assert abs(x.var() - 1) < 0.02
    assert abs((x[1:] * x[:-1]).mean() - 0.67) < 0.02


def test_an_empty_batch_is_empty_and_changes_nothing() -> None:
    tokens = np.arange(6)
    empty = np.arange(0)
    pieces = list(embed([empty, tokens[:3], empty, tokens[3:]], 6, 4, 0, 0.5))
    assert [len(p) for p in pieces] == [0, 3, 0, 3]
    np.testing.assert_array_equal(np.concatenate(pieces), next(embed([tokens], 6, 4, 0, 0.5)))
