"""Routers: which experts a token goes to, and with which weights.

A strategy is a `Router`: a frozen dataclass of its parameters with `check(experts)` and
`choose(scores, gate, context) -> Routing`. Of most, a row's choices and weights do not depend on the other
rows, to the bit, so that routing in one place or in many gives the same result; the others (scope "batch")
choose at the coordinator for a layer's whole batch.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rayemu.routing.cached_topk import CachedTopK
from rayemu.routing.gate import Gate, Routing
from rayemu.routing.predictive_topk import PredictiveTopK
from rayemu.routing.replay import Replay
from rayemu.routing.router import Context, Router
from rayemu.routing.sigmoid_group_topk import SigmoidGroupTopK
from rayemu.routing.softmax_group_topk import SoftmaxGroupTopK
from rayemu.routing.softmax_topk import SoftmaxTopK

__all__ = [
    "ROUTERS",
    "CachedTopK",
    "Context",
    "Gate",
    "PredictiveTopK",
    "Replay",
    "Router",
    "Routing",
    "SigmoidGroupTopK",
    "SoftmaxGroupTopK",
    "SoftmaxTopK",
    "make_router",
]


ROUTERS: dict[str, type[Router]] = {
    "softmax_topk": SoftmaxTopK,
    "softmax_group_topk": SoftmaxGroupTopK,
    "sigmoid_group_topk": SigmoidGroupTopK,
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
    router: Router = strategy(**params)
    router.check(experts)
    return router
