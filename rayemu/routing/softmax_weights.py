"""Weights of choices that were made by other scores than the logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import softmax_powers


def softmax_weights(
    logits: F32, chosen: npt.NDArray[np.intp], renormalise: bool = True, scaling: float = 1.0
) -> F32:
    """The softmax of logits [T, E] at chosen [T, K] -> weights [T, K]; as `softmax_topk` does, to the bit.

    With `renormalise` those of a row sum to `scaling`, else they are probabilities times `scaling`. -1 weighs
    nothing; each row needs another choice.
    """
    if renormalise:  # the probabilities' common denominator cancels
        best = taken(logits, chosen)  # [T, K]; -1 takes anything
        best[chosen < 0] = -np.inf
        weights = softmax_powers(best)
        weights[chosen < 0] = 0  # where all logits are -inf, they share the row
        weights /= np.add.reduce(weights, axis=1, keepdims=True)
    else:
        powers = softmax_powers(logits)  # [T, E]
        weights = taken(powers, chosen)
        weights /= np.add.reduce(powers, axis=1, keepdims=True)
        weights[chosen < 0] = 0
    if scaling != 1.0:
        weights *= np.float32(scaling)
    return weights


def taken(values: F32, chosen: npt.NDArray[np.intp]) -> F32:
    """values [T, E] at chosen [T, K] -> [T, K]: numpy.take_along_axis in half the time."""
    rows, width = values.shape
    return values.reshape(-1).take(chosen + np.arange(0, rows * width, width)[:, None])
