"""Short real runs: what messages, wake-ups and company cost beside arithmetic, fitted to their wall time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from rayemu.emulator import Emulator
from rayemu.hardware import Hardware
from rayemu.model.spec import ModelSpec
from rayemu.pricing import EventGraph, schedule
from rayemu.pricing.recorded_graph import graph_of
from rayemu.scenario import Scenario

# Processes that are woken by every message, many small messages, wide rows, and passes in company. Each
# takes half a second, and seconds to start.
TINY = {"d_model": 64, "d_ff": 64, "experts": 8, "top_k": 2, "layers": 2}
WIDE = {"d_model": 1024, "d_ff": 32, "experts": 8, "top_k": 2, "layers": 2}
BUSY = {"d_model": 512, "d_ff": 1024, "experts": 8, "top_k": 2, "layers": 2}
RUNS: tuple[dict[str, Any], ...] = (
    {"model": TINY, "run": {"batches": 60, "batch_tokens": 8, "in_flight": 1}},
    {"model": TINY, "run": {"batches": 20, "batch_tokens": 512, "in_flight": 4}},
    {"model": WIDE, "run": {"batches": 12, "batch_tokens": 512, "in_flight": 4}},
    {"model": BUSY, "run": {"batches": 10, "batch_tokens": 512, "in_flight": 2}},
)
FIRST = {"frame": 8e-5, "wake": 2e-4, "bandwidth": 1.4e9, "share": 0.75}
WARM = 4  # batches before those that are timed: a first product is checked, and memory is touched
QUIET_S = 0.1  # until what followed the last result is done and noted


@dataclass(frozen=True, eq=False)
class Ran:
    """A run as it was: its graph at the width that it had, and what it took, both without warming up."""

    name: str
    graph: EventGraph
    spec: ModelSpec
    tokens: int
    wall_s: float  # from the first submission to the last result


def ran(scenario: Scenario) -> Ran:
    """Run a scenario on this machine: WARM batches, and when they are done its own, which are timed.

    All are made beforehand, and nothing is written or checked meanwhile.
    """
    run, spec = scenario.run, replace(scenario.spec, scale=1)
    rng = np.random.default_rng(run.seed)
    shape = (run.batch_tokens, scenario.spec.d_model)
    batches = [rng.standard_normal(shape, dtype=np.float32) for _ in range(WARM + run.batches)]
    with Emulator(scenario) as emulator:
        first = 1 + max(result.batch for result in emulator.stream(batches[:WARM]))
        emulator.wait(QUIET_S)
        began = time.perf_counter()
        tokens = sum(len(result.y) for result in emulator.stream(batches[WARM:]))
        took = time.perf_counter() - began
        emulator.wait(QUIET_S)
        record = emulator.record()
    nodes = np.repeat(np.arange(scenario.cluster.nodes, dtype=np.int32), scenario.cluster.modules_per_node)
    graph = graph_of(record[record["batch"] >= first], spec, run.in_flight, nodes)
    return Ran(scenario.name, graph, spec, tokens, took)


def predicted(run: Ran, hardware: Hardware) -> float:
    """What the run's graph takes on a hardware."""
    return schedule(run.graph, hardware, run.spec).span


def with_costs(hardware: Hardware, costs: dict[str, float]) -> Hardware:
    """A hardware whose processors have these costs of messages and wake-ups, and this share."""
    spec = hardware.spec
    assert spec.processors is not None
    processors = spec.processors.model_copy(update=costs)
    return replace(hardware, spec=spec.model_copy(update={"processors": processors}))


def fit_costs(hardware: Hardware, runs: Sequence[Ran]) -> dict[str, float]:
    """The costs that bring the runs' predicted times nearest to what they took, by relative error."""
    names = list(FIRST)
    first = np.log(list(FIRST.values()))

    def costs(logs: np.ndarray) -> dict[str, float]:
        return dict(zip(names, np.exp(logs).tolist(), strict=True))

    def errors(logs: np.ndarray) -> np.ndarray:
        trial = with_costs(hardware, costs(logs))
        miss = [np.log(predicted(run, trial) / run.wall_s) for run in runs]
        return np.concatenate([miss, 0.02 * (logs - first)])  # what the runs do not tell stays as it was

    most = np.where(np.array(names) == "share", 0.0, np.inf)
    # Steps of 5 %: who sleeps changes by leaps. A fit to the per cent is enough.
    found = least_squares(errors, first, bounds=(-np.inf, most), diff_step=0.05, xtol=1e-2, ftol=1e-2)
    return costs(found.x)
