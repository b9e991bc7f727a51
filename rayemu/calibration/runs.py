"""Short real runs: what messages, jobs and waiting cost beside arithmetic, fitted to their wall time."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from rayemu.drivers.record import load_columns
from rayemu.hardware import Hardware
from rayemu.model.spec import ModelSpec
from rayemu.pricing import EventGraph, schedule
from rayemu.pricing.recorded_graph import graph_of
from rayemu.running.run import run_scenario
from rayemu.scenario import Scenario

# One at a time and four in flight, small frames and large ones, with little arithmetic.
TINY = {"d_model": 64, "d_ff": 64, "experts": 8, "top_k": 2, "layers": 2}
WIDE = {"d_model": 1024, "d_ff": 32, "experts": 8, "top_k": 2, "layers": 2}
RUNS: tuple[dict[str, Any], ...] = (
    {"model": TINY, "run": {"batches": 60, "batch_tokens": 8, "in_flight": 1}},
    {"model": TINY, "run": {"batches": 60, "batch_tokens": 256, "in_flight": 4}},
    {"model": WIDE, "run": {"batches": 30, "batch_tokens": 512, "in_flight": 2}},
)
FIRST = {"frame": 1e-4, "job": 5e-5, "latency": 1e-4, "bandwidth": 1e9}


@dataclass(frozen=True, eq=False)
class Ran:
    """A run as it was: its graph at the width that it had, and what it took."""

    name: str
    graph: EventGraph
    spec: ModelSpec
    tokens: int
    wall_s: float  # from the first submission to the last result


def ran(scenario: Scenario) -> Ran:
    """Run a scenario on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        summary = run_scenario(scenario, Path(folder) / "run")
        record = load_columns(Path(folder) / "run" / "record.npz")
    spec = replace(scenario.spec, scale=1)
    nodes = np.repeat(np.arange(scenario.cluster.nodes, dtype=np.int32), scenario.cluster.modules_per_node)
    graph = graph_of(record, spec, scenario.run.in_flight, nodes)
    tokens = int(summary["tokens_out"])
    return Ran(scenario.name, graph, spec, tokens, tokens / summary["tokens_per_wall_s"])


def predicted(run: Ran, hardware: Hardware) -> float:
    """What the run's graph takes on a hardware."""
    return schedule(run.graph, hardware, run.spec).span


def with_costs(hardware: Hardware, costs: dict[str, float]) -> Hardware:
    """A hardware with these costs of messages and jobs."""
    spec = hardware.spec
    assert spec.processors is not None
    processors = spec.processors.model_copy(update={k: costs[k] for k in ("frame", "job", "bandwidth")})
    links = spec.links.model_copy(
        update={
            name: level.model_copy(update={"latency": costs["latency"]})
            for name, level in (("module", spec.links.module), ("node", spec.links.node))
            if level is not None
        }
    )
    return replace(hardware, spec=spec.model_copy(update={"processors": processors, "links": links}))


def fit_costs(hardware: Hardware, runs: Sequence[Ran]) -> dict[str, float]:
    """The costs that bring the runs' predicted times nearest to what they took, by relative error."""
    names = list(FIRST)

    def errors(logs: np.ndarray) -> np.ndarray:
        trial = with_costs(hardware, dict(zip(names, np.exp(logs).tolist(), strict=True)))
        miss = [np.log(predicted(run, trial) / run.wall_s) for run in runs]
        pull = 0.02 * (logs - np.log(list(FIRST.values())))  # what the runs do not tell stays as it was
        return np.concatenate([miss, pull])

    found = least_squares(errors, np.log(list(FIRST.values())), diff_step=0.05)
    return dict(zip(names, np.exp(found.x).tolist(), strict=True))
