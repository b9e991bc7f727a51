"""Balance by an auxiliary loss: a bias of the gate that goes down the loss's gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices, softmax_powers
from rayemu.routing.learned import F64, kept, loads
from rayemu.routing.router import Context, Router
from rayemu.routing.softmax_topk import SoftmaxTopK


@dataclass(frozen=True)
class AuxLossTopK(Router):
    """Softmax top-k of logits plus a bias that is trained on the auxiliary load-balancing loss.

    The loss of a batch is E sum_e f_e P_e, where f_e is the share of choices that expert e got and P_e its
    mean probability: Fedus, Zoph and Shazeer 2021 (Switch, arXiv 2101.03961), equation 4. After every batch
    the bias takes a step of `rate` down the gradient; f has none. Rows with NaN are left out of it. As it is
    the gate that such a loss trains, weights are those of the biased logits too, which is where this differs
    from `bias_balanced_topk`; of a gate only a bias can be trained here, since scores are all that a choice
    sees. Without `learn` the bias stays as it is, and as long as it is 0 this is `softmax_topk` to the bit.

    While it learns it costs twice what `softmax_topk` does: a softmax over all experts, and the gradient.
    State: the bias [E]. Counts `choices_of_fullest_expert` and `choices_of_mean_expert`, of each batch.
    """

    top_k: int
    rate: float = 1.0
    learn: bool = True
    renormalise: bool = True
    scaling: float = 1.0
    scope: ClassVar[str] = "batch"

    def check(self, experts: int) -> None:
        """Raise ValueError when `experts` experts cannot serve these parameters."""
        check_choices(self.top_k, experts)
        if not 0 <= self.rate < np.inf:
            raise ValueError(f"routing.rate is {self.rate}; allowed: a number >= 0")

    def new_state(self, experts: int) -> F64:
        """No bias [E]."""
        return np.zeros(experts)

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> choices [T, K] by descending biased logit, ties to the lower expert."""
        experts = scores.shape[1]
        bias = kept(context, experts)  # [E]
        scores += bias.astype(np.float32)
        given = scores.copy() if self.learn else scores  # which is overwritten
        routing = SoftmaxTopK(self.top_k, self.renormalise, self.scaling).choose(given, gate, context)
        load = loads(context, routing.experts, experts)  # [E]
        if self.learn and len(scores):
            bias -= self.rate * loss_gradient(scores, load / load.sum())
        return routing


def loss_gradient(logits: F32, shares: F64) -> F64:
    """The gradient [E] of E sum_e f_e P_e by a bias on the logits [T, E], with fixed shares f [E].

    It is E mean_t p_te (f_e - sum_i f_i p_ti), p being the softmax; rows with NaN are left out.
    """
    powers = softmax_powers(logits)  # [T, E]
    total = np.add.reduce(powers, axis=1)  # [T]
    fine = np.isfinite(total)
    if not fine.all():
        powers, total = powers[fine], total[fine]
    share = 1.0 / total  # [T], float32
    cost = np.einsum("te,e->t", powers, shares.astype(np.float32)) * share  # [T] sum_i f_i p_ti
    mean = np.einsum("t,te->e", share, powers)  # [E] sums of p_te
    pulled = np.einsum("t,te->e", share * cost, powers)
    gradient: F64 = (shares * mean - pulled) * (len(shares) / max(len(total), 1))
    return gradient
