"""How far two gates agree on the same rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import top_k


class Agreement(NamedTuple):
    """Shares of rows, and a divergence in nats.

    `top1`: both have the same best expert. `sets`: both have the same best k, in whatever order. `within`:
    the best expert of the first is among the best k of the second. `divergence`: the mean over rows of the
    Kullback-Leibler divergence KL(a || b) of the softmaxes of all logits.
    """

    top1: float
    sets: float
    within: float
    divergence: float


def agreement(logits_a: F32, logits_b: F32, k: int) -> Agreement:
    """Compare logits_b [T, E] with logits_a [T, E]; ties go to the lower expert, as in the routers.

    All numbers are NaN without rows. An expert that is possible for a and not for b makes the divergence
    infinite. Raises ValueError for other shapes, for k outside of 1 to E, and for logits of NaN or +inf.
    """
    if logits_a.ndim != 2 or logits_a.shape != logits_b.shape:
        raise ValueError(f"logits of {logits_a.shape} and {logits_b.shape}; wanted: twice the same [T, E]")
    rows, experts = logits_a.shape
    if not 1 <= k <= experts:
        raise ValueError(f"k is {k}; allowed: 1 to {experts}, the number of experts")
    for logits in (logits_a, logits_b):
        if not (logits < np.inf).all():
            row = int(np.flatnonzero(~(logits < np.inf).all(axis=1))[0])
            raise ValueError(f"row {row} has a logit that is NaN or +inf; allowed: numbers, or -inf")
    if not rows:
        return Agreement(*[float("nan")] * 4)
    best = [top_k(np.array(logits, np.float32, order="C"), k)[0] for logits in (logits_a, logits_b)]  # [T, k]
    first = best[0][:, :1]
    return Agreement(
        top1=float((first == best[1][:, :1]).mean()),
        sets=float((np.sort(best[0], axis=1) == np.sort(best[1], axis=1)).all(axis=1).mean()),
        within=float((first == best[1]).any(axis=1).mean()),
        divergence=float(_divergence(_log_softmax(logits_a), _log_softmax(logits_b)).mean()),
    )


def _log_softmax(logits: F32) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _divergence(log_a: npt.NDArray[np.float64], log_b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    possible = np.exp(log_a)  # [T, E]
    with np.errstate(invalid="ignore"):  # -inf - -inf, times 0
        terms = np.where(possible > 0, possible * (log_a - log_b), 0.0)
    total: npt.NDArray[np.float64] = terms.sum(axis=1)
    return total
