"""Noisy top-k: noise on the logits, so that near ties are settled by chance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices, softmax_choice, top_k
from rayemu.routing.router import Context, Router
from rayemu.routing.row_bits import U64, WORDS, draws, keys, row_hash


@dataclass(frozen=True)
class NoisyTopK(Router):
    """Softmax top-k of the logits plus Gaussian noise of standard deviation `noise`; weights know it, too.

    H(x)_i = (x W)_i + noise * N(0, 1), weights softmax(top-k of H): Shazeer et al. 2017 (arXiv 1701.06538),
    equations 3-5. There the deviation is softplus(x W_noise); W_noise is learned, and there is nothing to
    learn it from here. The default is what it starts from, softplus(0) = ln 2; 0 is softmax_topk, to the bit.

    The noise is drawn from `seed`, the layer and the row's own bits: a row has the same wherever it is
    routed, and equal rows of a layer have the same. Its values are the quantiles of the normal distribution
    at the middle of 65,536 equal shares, up to 4.3 deviations. -0.0 counts as 0.0, NaN by its bits; a NaN
    logit stays NaN. With noise for all E experts a choice takes 1.6 times as long as softmax_topk's, and with
    the gate's product and the hash of the row 1.7 times (T = 4096, E = 64, K = 8, D = 1024).
    """

    top_k: int
    noise: float = math.log(2)
    renormalise: bool = True
    scaling: float = 1.0
    seed: int = 0

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"routing.noise is {self.noise}; allowed: 0 and above, finite")
        if self.seed < 0:
            raise ValueError(f"routing.seed is {self.seed}; allowed: 0 and above")

    def scores(self, x: F32, gate: Gate) -> F32:
        """Rows [T, D] -> their logits and hash [T, E + 2]."""
        return np.concatenate((gate.logits(x), row_hash(x, self.seed)), axis=1)

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits and hash [T, E + 2] -> choices [T, K] by descending noisy logit."""
        rows = keys(scores[:, -WORDS:], context.layer + 1)  # [T]
        logits = np.ascontiguousarray(scores[:, :-WORDS])  # [T, E]
        logits += gaussian(rows, logits.shape[1], self.noise)
        return softmax_choice(logits, lambda noisy: top_k(noisy, self.top_k), self.renormalise, self.scaling)


def gaussian(keys: U64, count: int, deviation: float = 1.0) -> F32:
    """`count` normal numbers for each key, of mean 0: [T] -> [T, count]."""
    sixteens = draws(keys, -(-count // 4)).astype("<u8", copy=False).view("<u2")  # [T, count, rounded up]
    return (_quantiles() * np.float32(deviation)).take(sixteens[:, :count])


@cache
def _quantiles() -> F32:
    """The normal distribution's quantiles at the middle of 65,536 equal shares."""
    from scipy.special import ndtri

    values: F32 = ndtri((np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.float32)
    return values
