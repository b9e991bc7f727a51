"""BASE: every token to an expert so that all experts have as many, and the scores' sum is the highest."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.capacity import routing_of, softmax
from rayemu.routing.gate import Gate, Routing, check_choices
from rayemu.routing.router import Context, Router
from rayemu.routing.sinkhorn import balancing_bias

LEAST = -1e4


@dataclass(frozen=True)
class BaseAssignment(Router):
    """Balanced linear assignment: top_k rounds, each the best one in which no expert is ahead of others.

    In a round every token gets one expert that it does not have, so that after round r every expert has
    floor or ceil of r * T / E tokens, and the sum of the logits is the highest that there is; rounds are not
    optimised together. Should earlier rounds leave no such assignment, the bounds give way by one token until
    there is one. A logit counts by how far it is below its token's best, at most 10,000; NaN is a best.

    It costs a search in a T x T matrix for each round: on one core 3 ms a round at T=256, 50 ms at 1,024 and
    1.5 s and 270 MB at 4,096, where top_k=8 takes 5,000 times softmax_topk's choice.

    Weights are the gate's softmax (Lewis et al. have the sigmoid), with `renormalise` over the K choices,
    times `scaling`. Lewis et al. 2021 (BASE layers), arXiv 2103.16716.
    """

    top_k: int
    renormalise: bool = True
    scaling: float = 1.0
    scope: ClassVar[str] = "batch"

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)

    def costs(self, tokens: int) -> tuple[float, int]:
        """The search, measured at 256 to 4,096 tokens."""
        return self.top_k * 1.5 * (tokens / 4096) ** 2.5, 16 * tokens**2

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, top_k], best first, ties to the lower expert."""
        tokens, experts = scores.shape
        chosen = np.zeros(scores.shape, bool)
        if not tokens:
            nothing = np.empty((0, self.top_k))
            return Routing(nothing.astype(np.int32), nothing.astype(np.float32))
        values = _below_best(scores)
        for turn in range(1, self.top_k + 1):
            values[chosen] = -np.inf
            loads = np.count_nonzero(chosen, axis=0)
            share = turn * tokens
            least, most = share // experts - loads, -(-share // experts) - loads
            chosen[np.arange(tokens), _assigned(values, least, most)] = True
        return routing_of(scores, softmax(scores), chosen, self.renormalise, self.scaling)


def _below_best(logits: F32) -> npt.NDArray[np.float64]:
    """Logits [T, E] less the highest of their row, finite."""
    values = np.where(np.isnan(logits), np.inf, logits.astype(np.float64))
    with np.errstate(invalid="ignore"):  # equal infinities differ by nothing
        values -= values.max(axis=1, keepdims=True)
    return np.maximum(np.nan_to_num(values, nan=0.0, neginf=LEAST), LEAST)


def _assigned(
    values: npt.NDArray[np.float64], least: npt.NDArray[np.int64], most: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """An expert for each token [T], of the highest sum of values [T, E] where -inf is out of the question.

    Each expert gets `least` to `most` [E] tokens: it has `most` places, and those that make up `least` are
    closed to the rows without value that fill what the tokens leave empty.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and other routers need none of it

    tokens, experts = values.shape
    bias = balancing_bias(values.astype(np.float32), iterations=16, temperature=0.25)  # [E]
    for slack in count():
        places = np.maximum(most + slack, 0)
        expert_of = np.repeat(np.arange(experts), places)  # [P]
        place = np.arange(len(expert_of)) - np.repeat(places.cumsum() - places, places)
        if len(expert_of) < tokens:
            continue
        # a price for each place alike changes no assignment's rank; one that balances nearly saves the search
        worth = np.tile(bias[expert_of], (len(expert_of), 1))  # [P, P]
        worth[:tokens] += values[:, expert_of]
        worth[tokens:, place < (least - slack)[expert_of]] = -np.inf
        try:
            _, columns = linear_sum_assignment(worth, maximize=True)
        except ValueError:  # as SciPy says that there is no such assignment
            continue
        return expert_of[columns[:tokens]]
    raise AssertionError("unreachable: with enough slack every token may go anywhere")
