"""`rayemu plan`: planners side by side on recorded loads, and the best plan for another system to read.

L layers, E experts, M modules.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from rayemu.balance.metrics import imbalance
from rayemu.balance.migration import match_devices, moves_between
from rayemu.placement import PLACEMENTS, Placement, PlacementProblem, check_placement
from rayemu.placement.copies import replica_bound
from rayemu.placement.groups import groups_to_nodes
from rayemu.report.fitting import fitted
from rayemu.study.strategies import learned
from rayemu.traces import Trace, TraceError, read, read_plan, write
from rayemu.traces.placements import placement_of, plan_of
from rayemu.units import format_bytes, format_seconds

PLAN_FORMATS = ("eplb", "vllm", "sglang", "trtllm", "npy", "rayemu")
NOT_WHOLE = "groups of experts would not stay whole"


class PlanError(ValueError):
    """A question that has no answer: says which argument, and what is allowed."""


@dataclass(frozen=True)
class Machine:
    """What the experts are put on: `slots` per layer in all, `groups` of experts that stay on one node."""

    modules: int
    nodes: int = 1
    slots: int | None = None
    groups: int = 1
    expert_bytes: int = 0


@dataclass(frozen=True, eq=False)
class Answer:
    """What one planner gives. `imbalance` is max/mean of the modules' loads, averaged over layers.

    `gap` is by how much that is above the `bound` that no plan can pass; `moves` are experts to be loaded
    from the plan that is kept, None without one.
    """

    planner: str
    plan: Placement | None
    refused: str = ""
    imbalance: float = 0.0
    bound: float = 0.0
    slots: float = 0.0  # per layer
    moves: int | None = None
    moved_bytes: int | None = None
    plan_wall_s: float = 0.0

    @property
    def gap(self) -> float:
        """The part by which the imbalance is above the bound."""
        return self.imbalance / self.bound - 1 if self.bound else 0.0


def plan(
    file: Path,
    machine: Machine,
    keep: Path | None,
    names: list[str] | None,
    out: Path | None,
    format: str | None,
    as_json: bool,
    known: dict[str, Any],
) -> None:
    """Print the planners' answers, best first, and write the best plan. Raises TraceError, PlanError."""
    _check_output(out, format)
    trace = read(file, known.pop("format", None), **known)
    if not isinstance(trace, Trace):
        raise TraceError(f"{file}: a plan; expected loads of experts")
    problem = problem_for(trace, machine)
    present = None if keep is None else kept(keep, problem)
    answers = ranked(dataclasses.replace(problem, present=present), machine, names)
    if as_json:
        print(json.dumps([_facts(a) for a in answers], indent=1))
    else:
        _print(answers, machine, trace)
    best = answers[0]
    if best.plan is None:
        raise PlanError("no planner has an answer; what each lacks is above")
    if out is not None and format is not None:
        write(out, format, plan_of(best.plan, problem.experts, problem.modules, trace.layers.tolist()))
        if not as_json:
            Console(soft_wrap=True).print(f"{escape(str(out))}: the plan of {best.planner}", highlight=False)


def _check_output(out: Path | None, format: str | None) -> None:
    """Raise PlanError for a plan that could not be written, before anything is worked out."""
    if out is None and format is not None:
        raise PlanError(f"--format {format} says how --out is written, and there is no --out")
    if out is not None and format not in PLAN_FORMATS:
        given = "--out needs --format" if format is None else f"--format {format} is not allowed"
        raise PlanError(f"{given}; allowed: {', '.join(PLAN_FORMATS)}")


def problem_for(trace: Trace, machine: Machine) -> PlacementProblem:
    """Put a trace's loads on a machine. Raises PlanError where they do not fit each other."""
    layers, experts = trace.loads.shape[1:]
    slots = experts if machine.slots is None else machine.slots
    if slots < experts:
        raise PlanError(f"--slots {slots} is not allowed; allowed: {experts} (one per expert) and above")
    if slots > experts * machine.modules:
        most = experts * machine.modules
        raise PlanError(f"--slots {slots} is not allowed; allowed: up to {most}, each expert on each module")
    if machine.modules % machine.nodes:
        raise PlanError(
            f"--nodes {machine.nodes} is not allowed; allowed: a divisor of the {machine.modules} modules"
        )
    if experts % machine.groups:
        raise PlanError(f"--groups {machine.groups} is not allowed; allowed: a divisor of {experts} experts")
    copies = np.ones((layers, experts), np.int64)
    each = machine.modules // machine.nodes
    empty = PlacementProblem(
        np.ones((layers, experts)),
        copies,
        np.repeat(np.arange(machine.nodes, dtype=np.int32), each),
        slots,
        machine.expert_bytes,
    )
    return learned(empty, trace)


def kept(path: Path, problem: PlacementProblem) -> Placement:
    """The plan that there is. Raises TraceError, PlanError where it is not one for this problem."""
    found = read_plan(path, num_experts=problem.experts)
    if found.num_devices not in (None, problem.modules):
        raise PlanError(
            f"--keep {path}: a plan for {found.num_devices} devices, and there are {problem.modules} "
            f"modules; give --modules {found.num_devices}, or a plan for {problem.modules}"
        )
    if found.num_devices is None:
        found = read_plan(path, num_experts=problem.experts, num_devices=problem.modules)
    if found.phy2log.shape[0] != problem.layers:
        raise PlanError(
            f"--keep {path}: a plan of {found.phy2log.shape[0]} layers, and the loads have {problem.layers}"
        )
    placement = placement_of(found)
    try:
        check_placement(placement, (0, problem.layers), problem.experts, problem.modules)
    except ValueError as error:
        raise PlanError(f"--keep {path}: {error}") from None
    return placement


def bound(problem: PlacementProblem, groups: int = 1) -> np.ndarray:
    """The load [L] that the fullest module has at least, whatever the plan.

    The mean over modules, or what the heaviest copy has at least if no expert has more than M copies; with
    groups that stay whole on nodes, the same of the fullest node, by the best way to share groups out.
    """
    loads, modules = problem.loads, problem.modules
    if groups > 1 and groups % problem.nodes == 0 and not problem.slots % problem.nodes:
        return groups_to_nodes(loads, groups, problem.nodes, problem.slots, modules)[1]
    heaviest = replica_bound(-np.sort(-loads, axis=1), problem.slots, modules)
    return np.maximum(loads.sum(axis=1) / modules, heaviest)


def ranked(problem: PlacementProblem, machine: Machine, names: list[str] | None = None) -> list[Answer]:
    """Ask planners, of groups those that keep them whole: best balance first, then fewest moves."""
    unknown = [name for name in names or [] if name not in PLACEMENTS]
    if unknown:
        raise PlanError(f"--planner {unknown[0]} is not known; allowed: {', '.join(PLACEMENTS)}")
    least = bound(problem, machine.groups)
    mean = problem.loads.sum(axis=1) / problem.modules
    busy = mean > 0
    low = float((least[busy] / mean[busy]).mean()) if busy.any() else 1.0
    answers = [_ask(name, problem, machine, low) for name in names or PLACEMENTS]
    return sorted(answers, key=lambda a: (a.plan is None, round(a.imbalance, 4), a.moves or 0))


def _ask(name: str, problem: PlacementProblem, machine: Machine, low: float) -> Answer:
    strategy: Any = PLACEMENTS[name]
    fields = {f.name for f in dataclasses.fields(strategy)}
    if machine.groups > 1 and "groups" not in fields:
        return Answer(name, None, NOT_WHOLE)
    given = {"groups": machine.groups} if "groups" in fields else {}
    own = dataclasses.replace(problem, rng=np.random.default_rng(0))
    began = time.perf_counter()
    try:
        found: Placement = strategy(**given).place(own)
    except (ValueError, ImportError) as error:
        return Answer(name, None, str(error))
    seconds = time.perf_counter() - began
    answer = Answer(
        name,
        found,
        imbalance=float(imbalance(problem.loads, found, problem.modules)),
        bound=low,
        slots=len(found) / problem.layers,
        plan_wall_s=seconds,
    )
    if problem.present is None:
        return answer
    found = match_devices(problem.present, found, problem.module_to_node)
    moves = moves_between(problem.present, found, problem.module_to_node)
    return dataclasses.replace(
        answer,
        plan=found,
        moves=len(moves),
        moved_bytes=moves.bytes(problem.expert_bytes) if problem.expert_bytes else None,
    )


def _facts(answer: Answer) -> dict[str, Any]:
    facts = {f.name: getattr(answer, f.name) for f in dataclasses.fields(answer) if f.name != "plan"}
    if answer.plan is None:
        return {"planner": answer.planner, "refused": answer.refused}
    return {**facts, "gap": answer.gap}


def _print(answers: list[Answer], machine: Machine, trace: Trace) -> None:
    windows, layers, experts = trace.loads.shape
    title = (
        f"{layers} layers of {experts} experts on {machine.modules} modules in {machine.nodes} nodes, "
        f"loads of {windows} windows"
    )
    heads = ("planner", "max/mean\nload", "bound", "above\nit", "slots", "moves", "bytes\nmoved", "time")
    rows = [
        (
            a.planner,
            f"{a.imbalance:.4f}",
            f"{a.bound:.4f}",
            f"{max(a.gap, 0.0):.2%}",  # rounding may put it a bit below
            f"{a.slots:.4g}",
            "-" if a.moves is None else str(a.moves),
            "-" if a.moved_bytes is None else format_bytes(a.moved_bytes),
            format_seconds(a.plan_wall_s),
        )
        for a in answers
        if a.plan is not None
    ]
    refused = [f"{a.planner}: {a.refused}" for a in answers if a.plan is None and a.refused != NOT_WHOLE]
    if several := [a.planner for a in answers if a.refused == NOT_WHOLE]:
        refused.append(f"{', '.join(several)}: {NOT_WHOLE}")
    console = Console()
    for table in fitted(console.width, title, heads, rows):
        console.print(table)
    for line in refused:
        console.print(escape(line), highlight=False)
