"""What is known of slow routers before a run."""

from __future__ import annotations

from rayemu.model.model import routers_of
from rayemu.scenario import Scenario
from rayemu.units import format_seconds

SLOW_S = 2.0  # from here on a run says beforehand that its routers are slow


def slow_routers(scenario: Scenario) -> str:
    """What to expect of a run whose routers take seconds for their choices; empty where they do not."""
    spec, run = scenario.spec, scenario.run
    takes: dict[str, float] = {}  # seconds for one batch, all layers
    for layer, router in list(enumerate(routers_of(spec)))[spec.dense_layers :]:
        kind, seconds = spec.router_of(layer)[0], router.costs(run.batch_tokens)[0]
        takes[kind] = takes.get(kind, 0.0) + seconds
    if sum(takes.values()) * run.batches < SLOW_S:
        return ""
    again = ", and as long again to check" if run.check == "exact" else ""
    each = ", ".join(f"{kind} about {format_seconds(s)}" for kind, s in takes.items() if s)
    total = format_seconds(sum(takes.values()) * run.batches)
    return f"choosing experts takes long: {each} for each batch, {total} in all{again}"
