"""Sinkhorn-balanced top-k: experts that many tokens want become dearer, until all have the same share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.capacity import softmax, weights_of
from rayemu.routing.gate import Gate, Routing, check_choices, softmax_powers, top_k
from rayemu.routing.router import Context, Router

MOST_ITERATIONS = 10_000  # of which each is a pass over [T, E], and the first tens do nearly all
LEAST = math.exp(-80)  # a float32 holds it, and no product of scales leaves a float64


@dataclass(frozen=True)
class Sinkhorn(Router):
    """Top-k of a transport plan in which every token has one share and every expert T / E of them.

    The plan is row_t * exp(logit_te / temperature) * column_e (entropy-regularised optimal transport); row
    and column scales are found by `iterations` turns of Sinkhorn and Knopp's normalisation. A token's order
    of experts in it is that of logit + temperature * log(column): a bias of each expert for this batch. The
    plan is balanced, and its top-k nearly. A low temperature comes nearer to the highest sum of logits, and
    needs more turns. Ties of a whole batch stay ties, to the lower expert. Logits more than 80 temperatures
    below a token's best count as that; rows with NaN have no say in the plan.

    It costs `iterations` passes over [T, E] in float64: at T=4096, E=64, K=8 with 16 of them 6 times
    softmax_topk's choice.
    Weights are the gate's softmax, with `renormalise` over the K choices, times `scaling`.
    Clark et al. 2022 (S-BASE), arXiv 2202.01169; Sinkhorn and Knopp 1967.
    """

    top_k: int
    iterations: int = 16
    temperature: float = 0.25
    renormalise: bool = True
    scaling: float = 1.0
    scope: ClassVar[str] = "batch"

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        if not 1 <= self.iterations <= MOST_ITERATIONS:
            allowed = f"1 to {MOST_ITERATIONS:,}"
            raise ValueError(f"routing.iterations is {self.iterations!r}; allowed: {allowed}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"routing.temperature is {self.temperature!r}; allowed: a number above 0")

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, top_k] by descending share of the plan, ties to the lower expert."""
        bias = balancing_bias(scores, self.iterations, self.temperature)
        chosen, _ = top_k(scores + bias.astype(np.float32), self.top_k)  # [T, K]
        picked = np.take_along_axis(scores, chosen, axis=1)
        experts = chosen.astype(np.int32)
        probabilities = None if self.renormalise else softmax(scores)
        return Routing(experts, weights_of(experts, picked, probabilities, self.scaling))


def balancing_bias(logits: F32, iterations: int, temperature: float) -> npt.NDArray[np.float64]:
    """temperature * log(column) of each expert [E] for a batch of logits [T, E]; see `Sinkhorn`."""
    experts = logits.shape[1]
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and counts as that
        powers = softmax_powers(logits[~np.isnan(logits).any(axis=1)] / np.float32(temperature))
    kernel = np.maximum(powers, np.float32(LEAST)).astype(np.float64)  # [n, E]
    columns = np.ones(experts)
    if not len(kernel):
        return np.zeros(experts)
    product = np.empty_like(kernel)
    for _ in range(iterations):
        # by elements: a product through BLAS would round the columns each in their own way
        rows = 1 / np.add.reduce(np.multiply(kernel, columns, out=product), axis=1, keepdims=True)
        columns = len(kernel) / experts / np.add.reduce(np.multiply(kernel, rows, out=product), axis=0)
    return temperature * np.log(columns)
