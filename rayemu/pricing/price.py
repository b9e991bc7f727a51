"""What a scheduled graph comes to: step, tokens per second, utilisation, energy, cost. Emulated time only."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayemu.hardware import Hardware
from rayemu.hardware.spec import BITS, LEVELS
from rayemu.model.spec import ModelSpec
from rayemu.pricing.graph import MESSAGE, EventGraph
from rayemu.pricing.memory import PricingError
from rayemu.pricing.path import PARTS, critical_paths
from rayemu.pricing.schedule import Schedule, combine_widths, expert_widths

YEARS = 3
_YEAR_S = 365 * 24 * 3600.0


def price(
    graph: EventGraph, plan: Schedule, hardware: Hardware, model: ModelSpec, tokens: int
) -> dict[str, Any]:
    """Sum a schedule up, as plain data; `tokens` are those of all its batches.

    `step_emu_s` is the mean over batches from submission to the last result, and `critical_path` the mean of
    its parts; `tokens_per_emu_s` counts from the first submission to the last result. `utilisation` is busy
    time over that of the whole graph. Raises PricingError where no batch was finished.
    """
    paths = critical_paths(graph, plan)
    if not len(paths.batch) or tokens < 1:
        raise PricingError("no batch was finished, so there is no step to price; run it until one is")
    model = model.full()
    steps = paths.end - paths.begin
    stream = float(paths.end.max() - paths.begin.min())
    energy, unknown = _energy(graph, plan, hardware, model)
    joules = sum(energy.values())
    modules, nodes = len(graph.module_to_node), len(np.unique(graph.module_to_node))
    rate = tokens / stream if stream > 0 else None
    return {
        "hardware": hardware.name,
        "modules": modules,
        "nodes": nodes,
        "batches": len(paths.batch),
        "tokens": tokens,
        "step_emu_s": float(steps.mean()),
        "step_p99_emu_s": float(np.percentile(steps, 99)),
        "stream_emu_s": stream,
        "tokens_per_emu_s": rate,
        "joules_per_token": joules / tokens,
        "critical_path": dict(zip(PARTS, paths.parts.mean(axis=0).tolist(), strict=True)),
        "utilisation": _utilisation(plan),
        "energy_joules": energy,
        "energy_not_known": unknown,
        "cost": _cost(hardware, modules, nodes, joules / plan.span if plan.span > 0 else 0.0, rate),
    }


def _utilisation(plan: Schedule) -> dict[str, Any]:
    """Mean and maximum share of the time that the resources of each group are busy."""
    found = {}
    for name, busy in plan.busy.items():
        share = busy / plan.span if plan.span > 0 else np.zeros(len(busy))
        key = name if name in ("modules", "routing") else f"{name}_links"
        found[key] = {"mean": float(share.mean()), "max": float(share.max())} if len(share) else None
    return found


def _energy(
    graph: EventGraph, plan: Schedule, hardware: Hardware, model: ModelSpec
) -> tuple[dict[str, float], list[str]]:
    """Joules by component, and the components that happened and whose energy the hardware does not tell."""
    energy, spec = hardware.spec.energy, hardware.spec
    work = np.flatnonzero(graph.kind != MESSAGE)
    passes = 0.0
    for width, mine in expert_widths(graph, work, model):
        rows = graph.rows[work[mine]].astype(np.int64)
        passes += float(
            np.sum(
                hardware.expert_joules(model.d_model, width, rows, gated=model.gated, static=False),
            )
        )
    found, unknown = {"experts": passes}, []
    if passes and spec.module.fetch is not None and energy.fetch is None:
        unknown.append("fetch")
    moved = sum(
        (outputs + 1) * int(graph.rows[work[mine]].sum(dtype=np.int64))
        for outputs, mine in combine_widths(graph, work, model)
    )  # rows in and out
    if energy.activations is not None:
        bits = BITS[spec.module.compute.precision]
        found["combine"] = moved * model.d_model * bits * energy.activations
    elif moved:
        unknown.append("combine")
    routed = float(plan.busy["routing"].sum())
    if spec.router is not None and spec.router.power is not None:
        found["routing"] = routed * spec.router.power
    elif routed:
        unknown.append("routing")
    for index, name in enumerate(LEVELS):
        carried = float(graph.bytes[plan.level == index].sum())
        if name in energy.links:
            found[f"{name}_links"] = 8 * carried * energy.links[name]
        elif carried:
            unknown.append(f"{name}_links")
    found["static"] = energy.static * len(graph.module_to_node) * plan.span
    return found, unknown


def _cost(
    hardware: Hardware, modules: int, nodes: int, watts: float, rate: float | None
) -> dict[str, float] | None:
    """US dollars over three years at the graph's mean power all the time; None where there is no price."""
    price = hardware.spec.price
    if price is None:
        return None
    bought = modules * price.module + nodes * price.host
    power = watts * price.overhead * YEARS * _YEAR_S * price.energy
    found = {"years": YEARS, "bought_usd": bought, "mean_watts": watts, "power_usd": power}
    found["total_usd"] = bought + power
    if rate:
        found["usd_per_million_tokens"] = (bought + power) / (rate * YEARS * _YEAR_S) * 1e6
    return found
