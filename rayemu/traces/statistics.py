"""What a routing trace says: how skewed experts are, how steady, how soon used again, and with whom.

Pure functions of loads and choices. Shapes: W windows, L layers, E experts, T tokens, K choices per token.
Choices below 0 are none. Analytic values for independent tokens are in the docstrings; the tests hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

MOST_SKEW = 50.0  # exponents from here on are one expert that has everything
_BLOCK = 1 << 16  # tokens at once: float32 counts them exactly up to 2^24


class ZipfFit(NamedTuple):
    """Shares like 1 / rank^exponent: how well they fit."""

    exponent: float
    distance: float  # largest difference of cumulated shares, as Kolmogorov and Smirnov have it


def zipf_fit(loads: np.ndarray) -> ZipfFit:
    """The exponent of a Zipf law over ranks 1 to E by maximum likelihood, of loads [E].

    The likelihood of counts c by rank r is greatest where the mean of ln r under 1/r^a is that of the counts
    (Clauset, Shalizi, Newman 2009, for a bounded range). Ranks are those of the counts themselves, which
    makes even loads look a little skewed: by about sqrt(E / rows). 0 for even loads, nan for none.
    """
    counts = np.sort(np.asarray(loads, np.float64))[::-1]
    rows = counts.sum()
    if rows <= 0 or len(counts) < 2:
        return ZipfFit(float("nan"), float("nan"))
    logs = np.log(np.arange(1, len(counts) + 1))  # [E]
    wanted = float(counts @ logs / rows)

    def shares(exponent: float) -> np.ndarray:
        mass = np.exp(-exponent * logs)
        return mass / mass.sum()

    def excess(exponent: float) -> float:
        return float(shares(exponent) @ logs) - wanted

    if excess(0.0) <= 0:
        exponent = 0.0
    elif excess(MOST_SKEW) >= 0:
        exponent = MOST_SKEW
    else:
        exponent = float(optimize.brentq(excess, 0.0, MOST_SKEW, xtol=1e-9))
    distance = float(np.abs(np.cumsum(counts / rows) - np.cumsum(shares(exponent))).max())
    return ZipfFit(exponent, distance)


class BinomialFit(NamedTuple):
    """Loads as binomial draws: variance over the binomial's, 1 for a good fit, and the chance of as much."""

    dispersion: float
    p_value: float  # of the chi-square test


def even_fit(loads: np.ndarray, tokens: np.ndarray | float) -> BinomialFit:
    """Whether all experts are equally likely: loads [W, E] of windows of `tokens` [W] as Binomial(t, k / E).

    k is the mean number of choices per token.
    """
    loads = np.atleast_2d(np.asarray(loads, np.float64))
    trials = np.broadcast_to(np.asarray(tokens, np.float64), len(loads))
    even = np.full(loads.shape[1], 1 / loads.shape[1])
    return _dispersion(loads, trials, loads.sum(axis=1)[:, None] * even, 0)


def steady_fit(loads: np.ndarray, tokens: np.ndarray | float) -> BinomialFit:
    """Whether each expert keeps its own likelihood: loads [W, E] of windows of `tokens` [W].

    Expected is the expert's share over all windows. A dispersion far above 1 says that popularity drifts,
    and that a plan from one window will not hold in the next.
    """
    loads = np.atleast_2d(np.asarray(loads, np.float64))
    trials = np.broadcast_to(np.asarray(tokens, np.float64), len(loads))
    share = loads.sum(axis=0) / max(loads.sum(), 1.0)
    return _dispersion(loads, trials, loads.sum(axis=1)[:, None] * share, 1)


def _dispersion(loads: np.ndarray, trials: np.ndarray, expected: np.ndarray, spent: int) -> BinomialFit:
    """Chi-square of loads [W, E] over its degrees of freedom, `spent` windows of which went into `expected`.

    Each squared deviation over its binomial variance has mean 1. The sums of the windows are given (a token
    makes K different choices), so that E - 1 of E are free.
    """
    likely = np.divide(expected, trials[:, None], out=np.zeros_like(expected), where=trials[:, None] > 0)
    variance = expected * (1 - np.minimum(likely, 1))
    live = (variance > 0).any(axis=0)  # neither never used nor always
    experts, windows = int(live.sum()), int((trials > 0).sum()) - spent
    if windows < 1 or experts < 2:
        return BinomialFit(float("nan"), float("nan"))
    squares = (loads - expected)[:, live] ** 2
    terms = np.divide(squares, variance[:, live], out=np.zeros_like(squares), where=variance[:, live] > 0)
    total, freedom = float(terms.sum()) * (experts - 1) / experts, windows * (experts - 1)
    return BinomialFit(total / freedom, float(stats.chi2.sf(total, freedom)))


def reuse_gaps(choices: np.ndarray, experts: int) -> np.ndarray:
    """After how many tokens each use of an expert is followed by the next one: choices [T, K] -> [N] int64.

    For independent tokens that use expert e with probability p, its gaps are geometric, of mean 1 / p.
    """
    gaps = [np.diff(at) for at in _uses(choices, experts)]
    return np.concatenate([np.zeros(0, np.int64), *gaps])


def working_sets(choices: np.ndarray, experts: int, windows: Sequence[int]) -> np.ndarray:
    """How many experts are used within w tokens in a row, on average over all places: one number per w.

    Exact, from the gaps (Denning, Schwartz 1972): an expert is missing in the windows that fit between two of
    its uses. nan where a window is longer than the stream. For independent tokens it is the sum over experts
    of 1 - (1 - p)^w.
    """
    tokens = len(choices)
    sizes = np.asarray(windows, np.int64)
    places = np.maximum(tokens - sizes + 1, 0)
    present = np.zeros(len(sizes))
    for at in _uses(choices, experts):
        free = np.diff(np.concatenate([[-1], at, [tokens]])) - 1  # tokens without it, before, between, after
        present += places - np.maximum(free[None] - sizes[:, None] + 1, 0).sum(axis=1)
    return np.divide(present, places, out=np.full(len(sizes), np.nan), where=places > 0)


class Similarity(NamedTuple):
    """How much of a token's choices the next token shares, and what chance alone would give."""

    shared: float
    by_chance: float


def neighbour_similarity(choices: np.ndarray, experts: int, distance: int = 1) -> Similarity:
    """The share of a token's choices [T, K] that the token `distance` later makes as well, on average.

    By chance, for independent tokens with the same popularity, it is the sum of p_e^2 over the sum of p_e,
    p_e being the probability that a token uses expert e.
    """
    chosen = _one_hot(choices, experts)  # [T, E]
    uses = chosen.sum(axis=1)
    before, after = chosen[:-distance], chosen[distance:]
    some = uses[: len(before)] > 0
    if not some.any():
        return Similarity(float("nan"), float("nan"))
    common = (before & after).sum(axis=1)[some] / uses[: len(before)][some]
    likely = chosen.mean(axis=0)
    return Similarity(float(common.mean()), float((likely**2).sum() / likely.sum()))


def coactivation(choices: np.ndarray, experts: int) -> np.ndarray:
    """Tokens that chose both experts, by layer: choices [T, L, K] -> [L, E, E] int64, zero diagonal."""
    found = _pairs(choices, experts, 0)
    found[:, np.arange(experts), np.arange(experts)] = 0
    return found


def transitions(choices: np.ndarray, experts: int) -> np.ndarray:
    """Tokens that chose i in a layer and j in the next: choices [T, L, K] -> [L - 1, E, E] int64."""
    return _pairs(choices, experts, 1)


def _pairs(choices: np.ndarray, experts: int, apart: int) -> np.ndarray:
    layers = max(choices.shape[1] - apart, 0)
    found = np.zeros((layers, experts, experts), np.int64)
    for start in range(0, len(choices), _BLOCK):
        block = choices[start : start + _BLOCK]
        for layer in range(layers):
            of = _one_hot(block[:, layer], experts).astype(np.float32)
            to = of if not apart else _one_hot(block[:, layer + apart], experts).astype(np.float32)
            found[layer] += (of.T @ to).astype(np.int64)
    return found


def _one_hot(choices: np.ndarray, experts: int) -> np.ndarray:
    """Who was chosen [T, E] bool, of choices [T, K]."""
    chosen = np.zeros((len(choices), experts), bool)
    token, place = np.nonzero(choices >= 0)
    chosen[token, choices[token, place]] = True
    return chosen


def _uses(choices: np.ndarray, experts: int) -> list[np.ndarray]:
    """The tokens that use each expert, in order: choices [T, K] -> E arrays."""
    tokens = len(choices)
    token, place = np.nonzero(choices >= 0)
    uses = np.unique(choices[token, place].astype(np.int64) * tokens + token)
    borders = np.searchsorted(uses, tokens * np.arange(1, experts, dtype=np.int64))
    return np.split(uses % max(tokens, 1), borders)
