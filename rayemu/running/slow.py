"""What is known of slow routers before a run."""

from __future__ import annotations

from rayemu.model.spec import ModelSpec
from rayemu.routing import Router, make_router
from rayemu.scenario import Scenario
from rayemu.units import format_seconds

SLOW_S = 2.0  # from here on a run says beforehand that its routers are slow


def router_of(spec: ModelSpec, layer: int) -> Router:
    """A layer's router."""
    kind, params = spec.layer_routers.get(layer, (spec.router, spec.router_params))
    return make_router(kind, spec.experts, top_k=spec.top_k, **params)


def slow_routers(scenario: Scenario) -> str:
    """What to expect of a run whose routers take seconds for their choices; empty where they do not."""
    spec, run = scenario.spec, scenario.run
    takes: dict[str, float] = {}  # seconds for one batch, all layers
    for layer in range(spec.dense_layers, spec.layers):
        kind, _ = spec.layer_routers.get(layer, (spec.router, {}))
        seconds, _ = router_of(spec, layer).costs(run.batch_tokens)
        takes[kind] = takes.get(kind, 0.0) + seconds
    if sum(takes.values()) * run.batches < SLOW_S:
        return ""
    again = ", and as long again to check" if run.check == "exact" else ""
    each = ", ".join(f"{kind} about {format_seconds(s)}" for kind, s in takes.items() if s)
    total = format_seconds(sum(takes.values()) * run.batches)
    return f"choosing experts takes long: {each} for each batch, {total} in all{again}"
