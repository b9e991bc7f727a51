"""One MoE layer on several hardwares against the size of its batch: who is quicker, and from which size on.

The layer's events are those of a step: route at each home, dispatch, passes of the experts that somebody
chose, replies, combine; scheduled as any graph. T tokens, K choices, E experts, M modules, D model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayemu.hardware import Hardware
from rayemu.hardware.spec import BITS
from rayemu.model.spec import ModelSpec
from rayemu.pricing.graph import COMBINE, DISPATCH, EXPERT, MESSAGE, REPLY, ROUTE, EventGraph
from rayemu.pricing.price import price
from rayemu.pricing.schedule import schedule

SIZES = tuple(1 << power for power in range(13))  # 1 to 4096 tokens


def curve(
    hardware: Hardware,
    model: ModelSpec,
    modules: int,
    loads: np.ndarray | None = None,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Price one routed layer for each batch size: seconds and joules per token, and the critical path.

    `loads` [E] are the experts' popularity (None: all alike); choices are drawn with `seed`, the same for
    every hardware. Experts are dealt in order to the modules, tokens in turn; rows travel at the precision
    of the hardware's experts.
    """
    full = model.full()
    width = BITS[hardware.spec.module.compute.precision] / 8 * full.d_model
    nodes = np.arange(modules, dtype=np.int32) // hardware.spec.modules_per_node
    points = []
    for tokens in sizes:
        graph = layer_graph(full, draw(full, tokens, loads, seed), nodes, width)
        found = price(graph, schedule(graph, hardware, full), hardware, full, tokens)
        step = found["step_emu_s"]
        points.append(
            {
                "tokens": tokens,
                "step_emu_s": step,
                "emu_s_per_token": step / tokens,
                "joules_per_token": found["joules_per_token"],
                "critical_path": found["critical_path"],
                "energy_not_known": found["energy_not_known"],
            }
        )
    return points


def draw(model: ModelSpec, tokens: int, loads: np.ndarray | None, seed: int) -> np.ndarray:
    """Draw the choices [T, K] of tokens: K different experts each, by their loads [E]."""
    weights = np.ones(model.experts) if loads is None else np.asarray(loads, np.float64)
    able = int(np.count_nonzero(weights > 0))
    if weights.shape != (model.experts,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError(f"loads: allowed are {model.experts} numbers from 0 on, one for each expert")
    if able < model.top_k:
        raise ValueError(f"loads: {able} experts have any; a token chooses {model.top_k}")
    # The K first of exponential clocks: experts without replacement, by their weights (Efraimidis, Spirakis).
    rng = np.random.default_rng([seed, tokens])
    with np.errstate(divide="ignore"):
        clocks = rng.exponential(size=(tokens, model.experts)) / weights
    return np.argpartition(clocks, model.top_k - 1, axis=1)[:, : model.top_k]


def layer_graph(
    model: ModelSpec, choices: np.ndarray, module_to_node: np.ndarray, row_bytes: float
) -> EventGraph:
    """Make the events of one routed layer for choices [T, K]; tokens and experts are dealt to M modules."""
    modules, tokens = len(module_to_node), len(choices)
    home = np.repeat(np.arange(tokens) % modules, model.top_k)  # [T K]
    expert = choices.reshape(-1)
    where = expert * modules // model.experts
    homes = np.unique(home)
    owned = np.bincount(home, minlength=modules)[homes] // model.top_k
    # Rows of one expert for one home: what a pass is made of; and of one module for one home: what is sent.
    parts, pair_rows = np.unique(home * model.experts + expert, return_counts=True)
    part_home, part_expert = np.divmod(parts, model.experts)
    sends, of = np.unique(part_home * modules + part_expert * modules // model.experts, return_inverse=True)
    send_home, send_module = np.divmod(sends, modules)
    replied = np.bincount(of, pair_rows)
    # A token's row goes once to a module, however many of its experts are there.
    token, module = np.divmod(np.unique(np.repeat(np.arange(tokens), model.top_k) * modules + where), modules)
    sent = np.bincount(np.searchsorted(sends, token % modules * modules + module))
    passes, job = np.unique(part_expert, return_inverse=True)
    pass_rows = np.bincount(job, pair_rows)
    shared = len(homes) if model.shared_d_ff else 0
    count = [len(homes), len(sends), len(passes), shared, len(sends), len(homes)]
    route, dispatch, work, own, reply, combine = np.cumsum([0, *count[:-1]])
    rank = np.searchsorted(homes, np.arange(modules))
    both = np.arange(len(parts))
    edges = [
        (dispatch + np.arange(len(sends)), route + rank[send_home]),
        (work + job, dispatch + of),
        (own + np.arange(shared), route + np.arange(shared)),
        (reply + of, work + job[both]),
        (combine + rank[send_home], reply + np.arange(len(sends))),
        (combine + np.arange(shared), own + np.arange(shared)),
    ]
    effect, cause = (np.concatenate(side) for side in zip(*edges, strict=True))
    order = np.lexsort((cause, effect))
    module = where[np.unique(expert, return_index=True)[1]]
    size = sum(count)

    def column(*blocks: Any) -> np.ndarray:
        return np.concatenate([np.broadcast_to(b, n) for b, n in zip(blocks, count, strict=True)])

    own_home = homes[:shared]
    return EventGraph(
        kind=column(ROUTE, MESSAGE, EXPERT, EXPERT, MESSAGE, COMBINE).astype(np.uint8),
        role=column(0, DISPATCH, 0, 0, REPLY, 0).astype(np.uint8),
        src=column(homes, send_home, module, own_home, send_module, homes).astype(np.int16),
        dst=column(homes, send_module, module, own_home, send_home, homes).astype(np.int16),
        batch=np.zeros(size, np.int32),
        layer=np.full(size, model.dense_layers, np.int32),
        expert=column(-1, -1, passes, -1, -1, -1).astype(np.int32),
        rows=column(owned, sent, pass_rows, owned[:shared], replied, owned).astype(np.int32),
        bytes=column(0.0, sent * row_bytes, 0.0, 0.0, replied * row_bytes, 0.0),
        flops=np.zeros(size),
        request=np.full(size, -1),
        cause_start=np.concatenate([[0], np.cumsum(np.bincount(effect, minlength=size))]),
        causes=cause[order],
        module_to_node=module_to_node,
    )


def crossings(sizes: Sequence[int], one: Sequence[float], other: Sequence[float]) -> list[dict[str, Any]]:
    """Find where the lesser of two curves changes: the sizes around it, and where lines between them meet.

    `first` says which is the lesser up to there: 0 the one, 1 the other. Lines are straight on logarithmic
    axes.
    """
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    gap = np.log(a) - np.log(b)
    known = np.flatnonzero(gap)  # where they are equal neither is less
    found = []
    for low, high in zip(known[:-1].tolist(), known[1:].tolist(), strict=True):
        if (gap[low] < 0) == (gap[high] < 0):
            continue
        share = gap[low] / (gap[low] - gap[high])
        at = np.exp(np.log(sizes[low]) * (1 - share) + np.log(sizes[high]) * share)
        found.append({"after": sizes[low], "by": sizes[high], "about": float(at), "first": int(gap[low] > 0)})
    return found
