"""Statistics against streams whose answers are known: by formula, by construction, or by slow counting."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rayemu.traces.statistics import (
    MOST_SKEW,
    coactivation,
    even_fit,
    neighbour_similarity,
    reuse_gaps,
    steady_fit,
    transitions,
    working_sets,
    zipf_fit,
)


def popularity(experts: int, exponent: float) -> np.ndarray:
    mass = np.arange(1, experts + 1) ** -exponent
    return mass / mass.sum()


def independent(rng: np.random.Generator, tokens: int, shares: np.ndarray) -> np.ndarray:
    """One choice per token [T, 1]."""
    return rng.choice(len(shares), (tokens, 1), p=shares)


def subsets(rng: np.random.Generator, tokens: int, experts: int, k: int) -> np.ndarray:
    """k different experts per token [T, k], all sets alike."""
    return np.argsort(rng.random((tokens, experts)), axis=1)[:, :k]


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.8, 1.2, 2.5])
def test_zipf_of_exact_shares(exponent: float) -> None:
    fit = zipf_fit(1e6 * np.random.default_rng(0).permutation(popularity(64, exponent)))
    assert fit.exponent == pytest.approx(exponent, abs=1e-6) and fit.distance < 1e-9


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_zipf_of_a_sample(exponent: float) -> None:
    """The error of the estimate is 1 / sqrt(N Var ln r), by Fisher's information; sorting adds little."""
    shares, rows = popularity(32, exponent), 200_000
    logs = np.log(np.arange(1, 33))
    sigma = 1 / np.sqrt(rows * (shares @ logs**2 - (shares @ logs) ** 2))
    fit = zipf_fit(np.random.default_rng(1).multinomial(rows, shares))
    assert abs(fit.exponent - exponent) < 5 * sigma and fit.distance < 2 / np.sqrt(rows)


def test_zipf_tells_what_is_none() -> None:
    geometric = 1e6 * 0.5 ** np.arange(32)
    assert zipf_fit(geometric).distance > 0.05
    assert zipf_fit(np.array([9, 0, 0])).exponent == MOST_SKEW
    assert np.isnan(zipf_fit(np.zeros(4)).exponent) and np.isnan(zipf_fit(np.array([3.0])).exponent)
    assert zipf_fit(np.full(4, 7)).exponent == 0


@pytest.mark.parametrize("k", [1, 2, 7])
def test_even_choices_are_binomial(k: int) -> None:
    """With W (E - 1) degrees of freedom a good fit has dispersion 1, give or take sqrt(2 / freedom)."""
    rng, windows, experts, tokens = np.random.default_rng(2), 200, 8, 100
    chosen = subsets(rng, windows * tokens, experts, k).reshape(windows, -1)
    loads = np.stack([np.bincount(row, minlength=experts) for row in chosen])
    for fit in (even_fit(loads, tokens), steady_fit(loads, tokens)):
        assert abs(fit.dispersion - 1) < 4 * np.sqrt(2 / (windows * (experts - 1)))
        assert 1e-4 < fit.p_value < 1 - 1e-4


def test_chance_is_scipy_s_for_one_choice() -> None:
    from scipy import stats

    row = np.array([12, 7, 9, 20])
    fit = even_fit(row, row.sum())
    known = stats.chisquare(row)
    assert fit.p_value == pytest.approx(known.pvalue) and 3 * fit.dispersion == pytest.approx(known.statistic)
    both = np.array([[12, 7, 9, 20], [5, 9, 8, 11]])
    # without 1 - p in the variance the steady fit is the test of a contingency table
    table = stats.chi2_contingency(both, correction=False)
    assert steady_fit(both, 1e12).dispersion * 3 == pytest.approx(table.statistic * 3 / 4, rel=1e-6)


def test_skewed_experts_are_steady_but_not_even_and_drifting_ones_neither() -> None:
    rng = np.random.default_rng(3)
    skewed = rng.multinomial(1000, popularity(16, 1.0), 50)
    assert even_fit(skewed, 1000).dispersion > 20 and even_fit(skewed, 1000).p_value < 1e-9
    assert steady_fit(skewed, 1000).dispersion == pytest.approx(1, abs=0.2)
    drifting = np.stack([rng.multinomial(1000, np.roll(popularity(16, 1.0), w // 5)) for w in range(50)])
    assert steady_fit(drifting, 1000).dispersion > 20


def test_rare_experts_count_too() -> None:
    """Expected loads far below 1 have as much say as others."""
    rng = np.random.default_rng(12)
    share = np.array([0.5, 0.4, *[0.1 / 30] * 30])
    loads = rng.multinomial(20, share, 4000)
    assert abs(steady_fit(loads, 20).dispersion - 1) < 0.05


def test_experts_that_nobody_uses_are_no_evidence() -> None:
    loads = np.random.default_rng(4).multinomial(500, np.full(4, 0.25), 100)
    wide = np.pad(loads, ((0, 0), (0, 60)))
    assert steady_fit(wide, 500) == pytest.approx(steady_fit(loads, 500))
    assert np.isnan(steady_fit(loads[:1], 500).dispersion) and np.isnan(
        even_fit(np.zeros((2, 3)), 0).dispersion
    )


def test_reuse_of_a_cycle_and_of_independent_tokens() -> None:
    cycle = np.arange(60)[:, None] % 6
    assert set(reuse_gaps(cycle, 6)) == {6} and len(reuse_gaps(cycle, 6)) == 54
    shares, tokens = popularity(8, 1.0), 200_000
    chosen = independent(np.random.default_rng(5), tokens, shares)
    gaps = reuse_gaps(chosen, 8)
    # a gap belongs to expert e with its share, and is geometric: P(gap > n) = sum of p (1 - p)^n
    for n in (1, 4, 16, 64):
        known = (shares * (1 - shares) ** n).sum()
        assert abs((gaps > n).mean() - known) < 5 * np.sqrt(known / tokens) + 1e-3
    assert reuse_gaps(np.full((3, 2), -1), 4).size == 0


def test_working_sets_by_formula_and_by_counting() -> None:
    shares, tokens = popularity(8, 1.0), 100_000
    chosen = independent(np.random.default_rng(6), tokens, shares)
    known = [(1 - (1 - shares) ** w).sum() for w in (1, 4, 16, 64)]
    assert working_sets(chosen, 8, [1, 4, 16, 64]) == pytest.approx(known, abs=0.03)
    few = np.random.default_rng(7).integers(-1, 5, (40, 3))
    slowly = [
        np.mean([len(set(few[s : s + w].ravel().tolist()) - {-1}) for s in range(40 - w + 1)])
        for w in (1, 3, 9, 40)
    ]
    assert working_sets(few, 5, [1, 3, 9, 40]) == pytest.approx(slowly)
    assert np.isnan(working_sets(few, 5, [41])[0])


@pytest.mark.parametrize("stay", [0.0, 0.67, 1.0])
def test_neighbours_that_stay(stay: float) -> None:
    """Each token keeps its predecessor's choice with probability `stay`, else draws anew."""
    rng, shares, tokens = np.random.default_rng(8), popularity(16, 0.5), 100_000
    drawn = independent(rng, tokens, shares)[:, 0]
    fresh = rng.random(tokens) >= stay
    fresh[0] = True
    chosen = drawn[np.maximum.accumulate(np.where(fresh, np.arange(tokens), 0))]
    found = neighbour_similarity(chosen[:, None], 16)
    if stay < 1:
        chance = (shares**2).sum()
        assert found.shared == pytest.approx(stay + (1 - stay) * chance, abs=0.01)
        assert found.by_chance == pytest.approx(chance, abs=0.01)
        assert neighbour_similarity(chosen[:, None], 16, 9).shared == pytest.approx(
            stay**9 + (1 - stay**9) * chance, abs=0.02
        )
    else:
        assert found.shared == 1


def test_neighbours_by_chance_with_several_choices() -> None:
    """Two sets of k of E share k^2 / E experts on average."""
    chosen = subsets(np.random.default_rng(9), 50_000, 12, 3)
    found = neighbour_similarity(chosen, 12)
    assert found.shared == pytest.approx(3 / 12, abs=0.005) and found.by_chance == pytest.approx(
        3 / 12, abs=1e-3
    )
    assert np.isnan(neighbour_similarity(np.full((5, 2), -1), 4).shared)


def test_pairs_by_counting() -> None:
    rng = np.random.default_rng(10)
    chosen = np.stack([subsets(rng, 300, 7, 3) for _ in range(3)], axis=1)  # [T, L, K]
    chosen[rng.random(chosen.shape) < 0.2] = -1
    together, onward = np.zeros((3, 7, 7), int), np.zeros((2, 7, 7), int)
    for token in chosen.tolist():
        sets = [set(row) - {-1} for row in token]
        for layer, ids in enumerate(sets):
            for i, j in itertools.permutations(ids, 2):
                together[layer, i, j] += 1
        for layer in range(2):
            for i, j in itertools.product(sets[layer], sets[layer + 1]):
                onward[layer, i, j] += 1
    assert np.array_equal(coactivation(chosen, 7), together)
    assert np.array_equal(transitions(chosen, 7), onward)
    assert transitions(chosen[:, :1], 7).shape == (0, 7, 7)


def test_pairs_of_more_tokens_than_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = np.stack([subsets(np.random.default_rng(11), 100, 5, 2) for _ in range(2)], axis=1)
    whole = coactivation(chosen, 5), transitions(chosen, 5)
    monkeypatch.setattr("rayemu.traces.statistics._BLOCK", 7)
    assert np.array_equal(coactivation(chosen, 5), whole[0]) and np.array_equal(
        transitions(chosen, 5), whole[1]
    )


def test_an_expert_named_twice_by_a_token_counts_once() -> None:
    twice = np.array([[1, 1], [1, 0]])
    assert working_sets(twice, 2, [1]).tolist() == [1.5]
    assert reuse_gaps(twice, 2).tolist() == [1]
    assert coactivation(twice[:, None], 2)[0].tolist() == [[0, 1], [1, 0]]
