"""A run that was recorded, as it is priced: its graph, its model at full width, what its modules hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayemu.drivers.record import GEMM, load_columns
from rayemu.hardware import Hardware
from rayemu.model.spec import ModelSpec
from rayemu.pricing.graph import EventGraph
from rayemu.pricing.memory import MemoryMap, PricingError, memory_map, refuse_overfull
from rayemu.pricing.price import price
from rayemu.pricing.recorded_graph import graph_of
from rayemu.pricing.schedule import Schedule, schedule
from rayemu.scenario import Scenario

_AGAIN = "run it again"
_RESTORE = "restore the scenario.yaml that it was made with"


@dataclass(frozen=True, eq=False)
class Recorded:
    """A run's graph of events, and what pricing needs to know beside it."""

    graph: EventGraph
    scenario: Scenario
    tokens: int  # of finished batches

    @property
    def model(self) -> ModelSpec:
        """The model at its full widths."""
        return self.scenario.spec.full()


def recorded(scenario: Scenario, record: np.ndarray, summary: dict[str, Any]) -> Recorded:
    """Make a run ready for pricing. Raises PricingError where it was not whole or is of another model."""
    failed = [name for name, held in summary["checks"].items() if held is False]
    if failed:
        raise PricingError(f"the run did not hold {', '.join(failed)}; only whole runs are priced; {_AGAIN}")
    if summary["record_cut"]:
        raise PricingError(f"its record is cut ({summary['record_cut']}); make room on the disk and {_AGAIN}")
    if not scenario.run.record:
        raise PricingError(f"the run kept no record (run.record is false); set it to true and {_AGAIN}")
    if not len(record) or not summary["tokens_out"]:
        raise PricingError(f"nothing was finished or recorded, so there is nothing to price; {_AGAIN}")
    _same_model(scenario, record, summary)
    cluster = scenario.cluster
    nodes = np.repeat(np.arange(cluster.nodes, dtype=np.int32), cluster.modules_per_node)
    try:
        graph = graph_of(record, scenario.spec, module_to_node=nodes)
    except ValueError as error:
        raise PricingError(str(error)) from None
    return Recorded(graph, scenario, summary["tokens_out"])


def load_recorded(folder: Path) -> Recorded:
    """Load a finished run from its folder. Raises PricingError, RecordError, ScenarioError."""
    for name in ("scenario.yaml", "summary.json"):
        if not (folder / name).is_file():
            what = "no run is there" if name == "scenario.yaml" else "the run was not finished"
            raise PricingError(f"{folder}: {what} ({name} is missing); make one with rayemu run")
    scenario = Scenario.load(folder / "scenario.yaml")
    record = load_columns(folder / "record.npz")
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return recorded(scenario, record, summary)
    except PricingError as error:
        raise PricingError(f"{folder}: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise PricingError(f"{folder}/summary.json is damaged ({error!r}); {_AGAIN}") from None


def held_by(scenario: Scenario, hardware: Hardware) -> MemoryMap:
    """Return what the modules of a scenario hold on a hardware, with all batches under way."""
    held = np.bincount(scenario.placed().module, minlength=scenario.cluster.modules)
    rows = scenario.run.in_flight * -(-scenario.run.batch_tokens // scenario.cluster.modules)
    return memory_map(hardware, scenario.spec, held, rows)


def price_recorded(
    run: Recorded, hardware: Hardware, allow_overfull: bool = False
) -> tuple[dict[str, Any], Schedule]:
    """Price a run on a hardware: the figures, and the schedule that they are of.

    Raises PricingError where a module cannot hold its experts, unless `allow_overfull`.
    """
    memory = held_by(run.scenario, hardware)
    if not allow_overfull:
        refuse_overfull(memory, hardware)
    plan = schedule(run.graph, hardware, run.model)
    figures = price(run.graph, plan, hardware, run.model, run.tokens)
    beside = {"missing_causes": run.graph.gaps, "arrivals": run.scenario.arrivals.kind}
    return {**figures, "memory": memory.as_dict(), **beside}, plan


def _same_model(scenario: Scenario, record: np.ndarray, summary: dict[str, Any]) -> None:
    """Refuse a record of another model or cluster, as of a scenario.yaml that was changed."""
    spec, cluster = scenario.spec, scenario.cluster
    passes = record[(record["kind"] == GEMM) & (record["expert"] >= 0) & (record["rows"] > 0)]
    flops = np.unique(passes["flops"] / passes["rows"])
    told = {
        "operations of a row": (flops.tolist(), [float(spec.flops_per_row())], len(flops) > 0),
        "layers and experts": (np.shape(summary["expert_tokens"]), (spec.layers, spec.experts), True),
        "modules": (len(summary["module_rows"]), cluster.modules, True),
    }
    for name, (found, wanted, known) in told.items():
        if known and found != wanted:
            what = "cluster" if name == "modules" else "model"
            raise PricingError(
                f"the record is not of the {what} in scenario.yaml: its {name} are {found}, not {wanted}; "
                f"{_RESTORE}"
            )
    frames = record[record["level"] > 0]
    across = frames["src"] // cluster.modules_per_node != frames["dst"] // cluster.modules_per_node
    if ((frames["level"] == 2) != across).any():
        raise PricingError(
            "the record is not of the cluster in scenario.yaml: its frames crossed other nodes than "
            f"{cluster.nodes} of {cluster.modules_per_node} modules; {_RESTORE}"
        )
