"""A model's forward pass under other routers than its own, to see what their choices bring and cost.

Shapes: T tokens, K choices per token, E experts, M modules, L layers, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rayemu.model.expert import expert_forward
from rayemu.model.model import Layer, Model
from rayemu.model.reference import combine, dense_forward, expert_input, finish, prepare, shared_forward
from rayemu.numerics import F32, denormals_kept
from rayemu.placement import Placement
from rayemu.routing import Context, Router, Routing


@denormals_kept()
def forward(
    model: Model,
    x: F32,
    routers_per_layer: Sequence[Router],
    home: npt.NDArray[np.int16],
    holders: npt.NDArray[np.bool_],
    module_to_node: npt.NDArray[np.int32],
    batch: int = 0,
    states: dict[int, Any] | None = None,
    counts: dict[str, float] | None = None,
    block: Callable[[Layer, F32, Routing], F32] | None = None,
) -> tuple[F32, list[Routing | None]]:
    """All layers of `model` on x [T, D] -> y [T, D] and each layer's choices, None for a dense one.

    `routers_per_layer` [L] choose; those of dense layers are not asked. `home` [T], `holders` [L, M, E] and
    `module_to_node` [M] are what they may know (see `routing.Context`), `batch` is the number of this batch.
    `states`, by layer, goes from one call to the next: what is missing in it is made, and then kept there;
    None for a first batch. `counts` is added to. `block` may stand in for `moe`, if its result is the same.
    With the layers' own routers y is that of `reference_forward`, to the bit.
    """
    if len(routers_per_layer) != len(model.layers):
        raise ValueError(f"{len(routers_per_layer)} routers for {len(model.layers)} layers; give one to each")
    states = {} if states is None else states
    counts = {} if counts is None else counts
    routings: list[Routing | None] = []
    for layer, router in zip(model.layers, routers_per_layer, strict=True):
        rows = prepare(layer, x)
        if layer.gate is None:
            routings.append(None)
            x = finish(layer, x, dense_forward(layer, rows))
            continue
        if layer.index not in states:
            states[layer.index] = router.new_state(len(layer.experts))
        where = (home, holders[layer.index], module_to_node)
        routing = router.route(
            rows, layer.gate, Context(layer.index, batch, *where, states[layer.index], counts)
        )
        routings.append(routing)
        x = finish(layer, x, (block or moe)(layer, rows, routing))
    return x, routings


def moe(layer: Layer, x: F32, routing: Routing) -> F32:
    """The block's output [T, D] on normalised rows x [T, D], with these choices; -1 is none."""
    given, weights = expert_input(layer, x, routing.weights)
    rows = np.zeros((*routing.experts.shape, x.shape[1]), np.float32)  # [T, K, D]
    for expert in np.unique(routing.experts[routing.experts >= 0]).tolist():
        tokens, choice = np.nonzero(routing.experts == expert)
        rows[tokens, choice] = expert_forward(layer.experts[expert], given[tokens])
    return combine(weights, rows, shared_forward(layer, x))


def unlike(x: F32, routing: Routing, other_x: F32, other: Routing) -> npt.NDArray[np.bool_]:
    """Rows [T] of which `moe` may give something else for x [T, D] and `routing` than for the other ones.

    Each is computed by itself, so one with the same input, choices and weights comes to the same bits.
    """
    choices = other.experts.shape[1]
    if len(x) != len(other_x) or routing.experts.shape[1] < choices:
        return np.ones(len(x), bool)
    differs: npt.NDArray[np.bool_] = (x != other_x).any(axis=1)
    differs |= (routing.experts[:, :choices] != other.experts).any(axis=1)
    differs |= (routing.weights[:, :choices] != other.weights).any(axis=1)
    differs |= (routing.experts[:, choices:] >= 0).any(axis=1)
    return differs


def holders_of(placement: Placement, layers: int, experts: int, modules: int) -> npt.NDArray[np.bool_]:
    """Which modules hold which experts, [L, M, E]."""
    holders = np.zeros((layers, modules, experts), bool)
    holders[placement.layer, placement.module, placement.expert] = True
    return holders


def output_error(y: F32, wanted: F32) -> float:
    """|y - wanted| / |wanted| of two outputs [T, D], Frobenius."""
    exact = wanted.astype(np.float64)
    return float(np.linalg.norm(y - exact) / max(float(np.linalg.norm(exact)), 1e-300))
