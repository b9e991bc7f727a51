"""What routers with a limited number of rows per expert share: the limit, and choices as a matrix.

Shapes: T tokens, K choices per token, E experts.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import Routing, softmax_powers

BOOL = npt.NDArray[np.bool_]
LARGEST_FACTOR = 1_000_000  # what it gives room for is counted in 64 bits


def capacity(factor: float, tokens: int, top_k: int, experts: int) -> int:
    """Rows that an expert may take: ceil(factor * T * K / E), `factor` as it is written in decimals."""
    return math.ceil(Fraction(str(float(factor))) * tokens * top_k / experts)


def check_capacity_factor(factor: object, also: str = "") -> None:
    """Refuse a capacity factor that leaves no room; raises ValueError. `also` is what else it may be."""
    number = isinstance(factor, int | float) and not isinstance(factor, bool)
    if not (number and 0 < float(factor) <= LARGEST_FACTOR):  # type: ignore[arg-type]
        allowed = f"a number above 0, up to {LARGEST_FACTOR:,}"
        raise ValueError(f"routing.capacity_factor is {factor!r}; allowed: {allowed}{also}")


def softmax(logits: F32) -> F32:
    """Softmax of each row of logits [T, E]."""
    powers = softmax_powers(logits)
    powers /= np.add.reduce(powers, axis=1, keepdims=True)
    return powers


def best_rows(values: F32, count: int) -> BOOL:
    """Which rows are the `count` best of each column [T, E]: NaN first, ties to the upper row."""
    rows = len(values)
    if count >= rows:
        return np.ones(values.shape, bool)
    columns = np.ascontiguousarray(values.T)  # [E, T]
    columns[np.isnan(columns)] = np.inf
    last = np.partition(columns, rows - count, axis=1)[:, rows - count, None]  # [E, 1], the worst taken
    best = columns >= last
    for column in np.flatnonzero(np.count_nonzero(best, axis=1) > count).tolist():
        ties = np.flatnonzero(columns[column] == last[column])
        best[column, ties[count - np.count_nonzero(best[column]) :]] = False
    return best.T


def routing_of(logits: F32, probabilities: F32, chosen: BOOL, renormalise: bool, scaling: float) -> Routing:
    """The choices `chosen` [T, E] as a Routing: best logit first, ties to the lower expert, -1 last.

    K is the most that any token has, at least 1. Weights as of `weights_of`.
    """
    rows, columns = np.nonzero(chosen)  # row by row, experts ascending
    counts = np.count_nonzero(chosen, axis=1)  # [T]
    shape = len(logits), max(1, int(counts.max(initial=0)))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    experts = np.full(shape, -1, np.int32)  # [T, K]
    picked = np.full(shape, -np.inf, np.float32)
    experts[rows, place] = columns
    picked[rows, place] = logits[rows, columns]
    # NaN goes first, and -inf that is chosen before what is not
    falling = np.where(np.isnan(picked), -np.inf, -np.maximum(picked, np.finfo(np.float32).min))
    falling[experts < 0] = np.inf
    order = falling.argsort(axis=1, kind="stable")
    experts = np.take_along_axis(experts, order, axis=1)
    picked = np.take_along_axis(picked, order, axis=1)
    return Routing(experts, weights_of(experts, picked, None if renormalise else probabilities, scaling))


def weights_of(experts: npt.NDArray[np.int32], picked: F32, probabilities: F32 | None, scaling: float) -> F32:
    """Weights [T, K] of choices `experts` [T, K] whose logits are `picked` [T, K], -inf where there is none.

    They are the `probabilities` [T, E] times `scaling`; without those, the softmax over a token's choices.
    """
    empty = experts < 0
    if probabilities is None:
        weights = softmax_powers(picked)
        weights[empty] = 0
        total = np.add.reduce(weights, axis=1, keepdims=True)
        np.divide(weights, total, out=weights, where=total != 0)
    else:
        weights = np.take_along_axis(probabilities, np.maximum(experts, 0), axis=1)
    weights[empty] = 0
    weights *= np.float32(scaling)
    return weights
