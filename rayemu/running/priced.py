"""A run priced on modelled hardware as soon as it is over: its second clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayemu.hardware import Hardware
from rayemu.hardware.transfers import services
from rayemu.pricing import EventGraph, Schedule
from rayemu.pricing.memory import PricingError, refuse_overfull
from rayemu.pricing.recorded import held_by, price_recorded, recorded
from rayemu.scenario import Scenario


def refuse_what_cannot_be_priced(scenario: Scenario, hardware: Sequence[Hardware]) -> None:
    """Refuse a run without a record, and hardware that cannot hold its experts or does not join its nodes.

    Raises PricingError, HardwareError.
    """
    if hardware and not scenario.run.record:
        raise PricingError("--hardware prices the run's record, and run.record is false; set it to true")
    nothing, cluster = np.zeros(0, np.int64), scenario.cluster
    nodes = np.repeat(np.arange(cluster.nodes), cluster.modules_per_node)
    for one in hardware:
        refuse_overfull(held_by(scenario, one), one)
        services(one.spec, nothing, nothing, nothing, nodes)


def price_run(
    scenario: Scenario, record: np.ndarray, summary: dict[str, Any], hardware: Sequence[Hardware]
) -> list[tuple[str, EventGraph, Schedule]]:
    """Put the pricing of a run in its summary, or why there is none; gives the schedules, by name.

    As `rayemu price --json` has it: an object, or of several hardwares a list of them.
    """
    if not hardware:
        return []
    figures: list[dict[str, Any]]
    try:
        run = recorded(scenario, record, summary)
        priced = [price_recorded(run, one) for one in hardware]
    except PricingError as error:
        priced, figures = [], [{"hardware": one.name, "refused": str(error)} for one in hardware]
    else:
        figures = [found for found, _ in priced]
    summary["priced"] = figures[0] if len(figures) == 1 else figures
    return [(found["hardware"], run.graph, plan) for found, plan in priced]
