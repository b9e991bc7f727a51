"""One experiment as frozen, validated data that round-trips through YAML.

    scenario = Scenario.load("laptop").with_overrides(["model.top_k=4"])

A wrong value is refused here, before anything starts, with its path, the value and what is allowed.
"""

from __future__ import annotations

from rayemu.scenario.errors import ScenarioError
from rayemu.scenario.faults import FAULTS, At, Fault
from rayemu.scenario.rebalance import Rebalance
from rayemu.scenario.scenario import Scenario
from rayemu.scenario.sections import (
    Arrivals,
    Cluster,
    Codecs,
    Exchange,
    Model,
    Placement,
    Replicas,
    Routing,
    Run,
    Stream,
)

__all__ = [
    "FAULTS",
    "Arrivals",
    "At",
    "Cluster",
    "Codecs",
    "Exchange",
    "Fault",
    "Model",
    "Placement",
    "Rebalance",
    "Replicas",
    "Routing",
    "Run",
    "Scenario",
    "ScenarioError",
    "Stream",
]
