"""Routers inside a router, as plain data: {kind: softmax_topk, renormalise: false}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rayemu.routing.gate import Gate
from rayemu.routing.router import Router

# Metadata of a dataclass field that holds such data, or a list of it: it is then checked as the family's own.
NESTED = {"nested": True}


def inner(given: Mapping[str, Any], path: str, top_k: int, experts: int | None = None) -> Router:
    """The router of scope "row" that `given` describes, with the outer router's `top_k`.

    With `experts` it is checked too: raises ValueError that names the parameter as routing.`path`.parameter.
    """
    from rayemu.routing import ROUTERS, make_router

    params = {name: value for name, value in given.items() if name != "kind"}
    kind = given.get("kind")
    if experts is None:
        strategy: Any = ROUTERS[str(kind)]
        built: Router = strategy(top_k=top_k, **params)
        return built
    if "top_k" in params:
        raise ValueError(f"routing.{path}.top_k is {params['top_k']!r}; allowed: none, it is the model's own")
    try:
        router = make_router(kind, experts, top_k=top_k, **params)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(str(error).replace("routing.", f"routing.{path}.", 1)) from None
    if router.scope != "row":
        rows = ", ".join(name for name, each in ROUTERS.items() if each.scope == "row")
        raise ValueError(f"routing.{path}.kind is {kind!r}; allowed: a router of rows: {rows}")
    return router


def score_columns(router: Router, gate: Gate) -> int:
    """How many numbers a row tells the router."""
    return router.scores(np.empty((0, len(gate.weight)), np.float32), gate).shape[1]
