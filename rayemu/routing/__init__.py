"""Routers: which experts a token goes to, and with which weights.

A strategy is a `Router`: a frozen dataclass of its parameters with `check(experts)` and
`choose(scores, gate, context) -> Routing`. Of most, a row's choices and weights do not depend on the other
rows, to the bit, so that routing in one place or in many gives the same result; the others (scope "batch")
choose at the coordinator for a layer's whole batch.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from rayemu.routing.agreement import Agreement, agreement
from rayemu.routing.aux_loss_topk import AuxLossTopK
from rayemu.routing.base import BaseAssignment
from rayemu.routing.bias_balanced_topk import BiasBalancedTopK
from rayemu.routing.cached_expert_choice import CachedExpertChoice
from rayemu.routing.cached_topk import CachedTopK
from rayemu.routing.capacity_topk import CapacityTopK
from rayemu.routing.expert_choice import ExpertChoice
from rayemu.routing.gate import Gate, Routing
from rayemu.routing.grouped_topk import GroupedTopK
from rayemu.routing.hash import Hash
from rayemu.routing.hierarchical_topk import HierarchicalTopK, routing_operations
from rayemu.routing.load_penalised_topk import LoadPenalisedTopK
from rayemu.routing.locality_topk import LocalityTopK
from rayemu.routing.noisy_topk import NoisyTopK
from rayemu.routing.offers import Offer, merge_top_k, offer_top_k
from rayemu.routing.predictive_topk import PredictiveTopK
from rayemu.routing.quantised_topk import QuantisedTopK
from rayemu.routing.random import Random
from rayemu.routing.replay import Replay
from rayemu.routing.router import Context, Router, located
from rayemu.routing.sigmoid_group_topk import SigmoidGroupTopK
from rayemu.routing.sinkhorn import Sinkhorn
from rayemu.routing.softmax_group_topk import SoftmaxGroupTopK
from rayemu.routing.softmax_topk import SoftmaxTopK
from rayemu.routing.top_p import TopP
from rayemu.routing.two_stage_topk import TwoStageTopK
from rayemu.routing.verified import Verified
from rayemu.routing.verify import recovered, violations
from rayemu.routing.voting import Voting, vote
from rayemu.routing.z_loss import router_z_loss

__all__ = [
    "ROUTERS",
    "Agreement",
    "AuxLossTopK",
    "BaseAssignment",
    "BiasBalancedTopK",
    "CachedExpertChoice",
    "CachedTopK",
    "CapacityTopK",
    "Context",
    "ExpertChoice",
    "Gate",
    "GroupedTopK",
    "Hash",
    "HierarchicalTopK",
    "LoadPenalisedTopK",
    "LocalityTopK",
    "NoisyTopK",
    "Offer",
    "PredictiveTopK",
    "QuantisedTopK",
    "Random",
    "Replay",
    "Router",
    "Routing",
    "SigmoidGroupTopK",
    "Sinkhorn",
    "SoftmaxGroupTopK",
    "SoftmaxTopK",
    "TopP",
    "TwoStageTopK",
    "Verified",
    "Voting",
    "agreement",
    "located",
    "make_router",
    "merge_top_k",
    "offer_top_k",
    "recovered",
    "router_z_loss",
    "routing_operations",
    "violations",
    "vote",
]

LARGEST = float(np.finfo(np.float32).max)

ROUTERS: dict[str, type[Router]] = {
    "softmax_topk": SoftmaxTopK,
    "softmax_group_topk": SoftmaxGroupTopK,
    "sigmoid_group_topk": SigmoidGroupTopK,
    "grouped_topk": GroupedTopK,
    "hierarchical_topk": HierarchicalTopK,
    "top_p": TopP,
    "hash": Hash,
    "random": Random,
    "noisy_topk": NoisyTopK,
    "base": BaseAssignment,
    "cached_expert_choice": CachedExpertChoice,
    "capacity_topk": CapacityTopK,
    "expert_choice": ExpertChoice,
    "sinkhorn": Sinkhorn,
    "aux_loss_topk": AuxLossTopK,
    "bias_balanced_topk": BiasBalancedTopK,
    "load_penalised_topk": LoadPenalisedTopK,
    "locality_topk": LocalityTopK,
    "two_stage_topk": TwoStageTopK,
    "quantised_topk": QuantisedTopK,
    "verified": Verified,
    "voting": Voting,
    "cached_topk": CachedTopK,
    "predictive_topk": PredictiveTopK,
    "replay": Replay,
}


def make_router(kind: str, experts: int, **params: Any) -> Router:
    """The router `kind` with `params` (top_k among them), checked against a gate of `experts` experts.

    Raises ValueError for an unknown kind or parameter or an impossible value, naming what is allowed.
    """
    if kind not in ROUTERS:
        raise ValueError(f"routing.kind is {kind!r}; allowed: one of {', '.join(ROUTERS)}")
    strategy: Any = ROUTERS[kind]
    allowed = [entry.name for entry in fields(strategy)]
    for name in params:
        if name not in allowed:
            raise ValueError(f"routing.{name} is no parameter of {kind}; allowed: {', '.join(allowed)}")
    for name in ("scaling", "noise", "rate", "factor", "total"):
        value = params.get(name)
        if isinstance(value, int | float) and not abs(value) <= LARGEST:
            raise ValueError(f"routing.{name} is {value}; allowed: what a float32 holds, up to {LARGEST:.3g}")
    router: Router = strategy(**params)
    router.check(experts)
    return router
