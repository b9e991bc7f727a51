"""What every router works with: the gate's weights, and the choices that come out.

Shapes: T tokens, K choices per token, E experts, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32, exact_columns, exact_matmul


class Routing(NamedTuple):
    """Choices of each token, best first: `experts` [T, K] int32 and their `weights` [T, K] float32."""

    experts: npt.NDArray[np.int32]
    weights: F32


@dataclass(frozen=True, eq=False)
class Gate:
    """A gate's parameters: `weight` [D, E]; `selection_bias` [E] is added to scores to choose, or None.

    `bias` [E] is added to the logits, where there is one.
    A selection bias of -inf keeps an expert for last; NaN and +inf are a ValueError, for they would draw
    every token without a trace in the weights.
    """

    weight: F32
    selection_bias: F32 | None = None
    bias: F32 | None = None

    def __post_init__(self) -> None:
        bias = self.selection_bias
        if bias is not None and not (bias < np.inf).all():
            expert = int(np.flatnonzero(~(bias < np.inf))[0])
            raise ValueError(f"selection_bias[{expert}] is {bias[expert]}; allowed: numbers, or -inf")

    def logits(self, x: F32) -> F32:
        """x [T, D] -> [T, E]; a row's bits do not depend on the other rows."""
        logits = exact_matmul(x, self.weight)
        if self.bias is not None:
            logits += self.bias
        return logits

    def logits_of(self, x: F32, experts: npt.NDArray[np.integer]) -> F32:
        """x [T, D] -> the columns `experts` [n] of its logits, [T, n] C-contiguous, with the same bits."""
        logits = exact_columns(x, self.weight, experts)
        if self.bias is not None:
            logits += self.bias[experts]
        return logits


def softmax_powers(logits: F32) -> F32:
    """exp(logit - the row's highest) [T, N]: divided by their sum these are the softmax of logits [T, N].

    A row whose highest logit is infinite is taken at its limit: the logits that share it give 1, others 0.
    NaN stays NaN.
    """
    highest = logits.max(axis=1, keepdims=True)  # [T, 1]
    # inf - inf is put right below; a difference beyond float32 is -inf and gives 0, which is right
    with np.errstate(invalid="ignore", over="ignore"):
        powers = logits - highest
    rows = np.flatnonzero(np.isinf(highest))
    powers[rows] = np.where(logits[rows] == highest[rows], np.float32(0), np.float32(-np.inf))
    return np.exp(powers, out=powers)


def top_k(
    scores: F32, count: int, closed: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.intp], F32]:
    """The `count` highest scores of each row, best first, ties to the lower index. Overwrites `scores`.

    scores [T, E] C-contiguous -> indices [T, count], values [T, count]. The indices of a row differ whatever
    its scores are. NaN is taken first, so that it shows in the weights. Where fewer than `count` scores are
    above -inf, the others follow by index, those of `closed` groups [T, G] last.
    `count` passes of a vectorised argmax cost less than a stable sort of the row for the few choices that
    routers make.
    """
    rows, width = scores.shape
    indices = np.empty((rows, count), np.intp)
    values = np.empty((rows, count), np.float32)
    flat = scores.reshape(-1)
    offsets = np.arange(0, rows * width, width)  # [T]
    for choice in range(count):
        best = scores.argmax(axis=1)  # [T]
        indices[:, choice] = best
        best += offsets
        values[:, choice] = flat[best]
        flat[best] = -np.inf
    short = np.flatnonzero(values[:, -1] == -np.inf)  # what was taken looks like what is worth nothing
    if short.size:
        order = np.tile(np.arange(width, 2 * width), (short.size, 1))  # [n, E]
        if closed is not None:
            order += np.repeat(closed[short], width // closed.shape[1], axis=1) * width
        row, choice_of = np.nonzero(values[short] != -np.inf)
        order[row, indices[short][row, choice_of]] = choice_of
        indices[short] = order.argsort(axis=1)[:, :count]
    return indices, values


def softmax_choice(
    logits: F32,
    take: Callable[[F32], tuple[npt.NDArray[np.intp], F32]],
    renormalise: bool = True,
    scaling: float = 1.0,
) -> Routing:
    """The experts that `take` chooses by their logits, weighted by the softmax. Overwrites `logits` [T, E].

    take(logits) -> experts [T, K], their logits [T, K]; it may overwrite what it is given. With `renormalise`
    weights are the softmax over the K chosen, otherwise probabilities among all E; both times `scaling`.
    """
    if renormalise:  # the probabilities' common denominator cancels
        return renormalised(*take(logits), scaling)
    powers = softmax_powers(logits)  # [T, E]
    total = np.add.reduce(powers, axis=1, keepdims=True)  # [T, 1]
    experts, _ = take(logits)
    weights = np.take_along_axis(powers, experts, axis=1)
    weights /= total
    if scaling != 1.0:
        weights *= np.float32(scaling)
    return Routing(experts.astype(np.int32), weights)


def renormalised(experts: npt.NDArray[np.integer], best: F32, scaling: float = 1.0) -> Routing:
    """Experts [T, K] weighted by the softmax of their own logits `best` [T, K], times `scaling`."""
    weights = softmax_powers(best)
    weights /= np.add.reduce(weights, axis=1, keepdims=True)
    if scaling != 1.0:
        weights *= np.float32(scaling)
    return Routing(experts.astype(np.int32, copy=False), weights)


def best_groups(group_scores: F32, count: int) -> npt.NDArray[np.intp]:
    """The `count` best groups of each row, best first: group_scores [T, G] (overwritten) -> [T, count]."""
    return top_k(group_scores, count)[0]


def close_groups(scores: F32, open_groups: npt.NDArray[np.integer], groups: int) -> npt.NDArray[np.bool_]:
    """Set the scores of all but each row's `open_groups` [T, g] to -inf, in place.

    scores [T, E] C-contiguous; `groups` G of E/G neighbouring experts. Returns which are closed, [T, G].
    """
    rows = len(scores)
    closed = np.ones((rows, groups), bool)
    np.put_along_axis(closed, open_groups.astype(np.intp, copy=False), False, axis=1)
    scores.reshape(rows, groups, scores.shape[1] // groups)[closed] = -np.inf
    return closed


def check_choices(top_k: int, experts: int, groups: int = 1, top_groups: int = 1, least: int = 1) -> None:
    """Refuse parameters that no gate of `experts` experts can satisfy; raises ValueError.

    `least` is how many experts a group must hold.
    """
    if groups < 1 or experts % groups or experts // groups < least:
        raise ValueError(
            f"routing.groups is {groups}; allowed: a divisor of {experts} experts with >= {least} in each"
        )
    if not 1 <= top_groups <= groups:
        raise ValueError(f"routing.top_groups is {top_groups}; allowed: 1 to groups = {groups}")
    available = experts // groups * top_groups
    if not 1 <= top_k <= available:
        raise ValueError(f"routing.top_k is {top_k}; allowed: 1 to {available}, the experts open to a token")
