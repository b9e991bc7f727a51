"""Placement strategies side by side: what each saves and costs, on loads that it has seen or not."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from rich.table import Table

from rayemu.placement import PLACEMENTS, Linear, Placement, PlacementProblem
from rayemu.placement.quality import (
    load_deviation,
    mean_hops,
    messages,
    pairs_apart,
    replica_hit_rate,
    steps_apart,
)
from rayemu.placement.survival import survives
from rayemu.traces.statistics import coactivation, transitions
from rayemu.traces.trace import Trace
from rayemu.units import format_bytes, format_seconds


class Strategy(Protocol):
    """One of `rayemu.placement`."""

    def place(self, problem: PlacementProblem) -> Placement:
        """Where the experts should be."""


@dataclass(frozen=True)
class Line:
    """What one strategy's plan is worth. Layers are averaged; `refused` says why there is no plan.

    Traffic is relative to linear's plan with one copy of each expert (1: the same), None where it is not
    known: `pairs` of co-chosen experts apart, `messages` of a token with merged rows (only where the choices
    are known), `steps` to the next layer's experts apart; each first by module, then by node.
    """

    name: str
    refused: str = ""
    pairs: tuple[float, float] | None = None
    messages: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None
    imbalance: float = 0.0  # max / mean load of modules
    deviation: float = 0.0  # standard deviation / mean of it
    hops: float = 0.0  # of a row to its nearest copy
    hit_rate: float = 0.0  # rows for which a replica is nearer than the first copy
    copies: float = 0.0  # of an expert
    memory_bytes: int = 0  # of experts on the fullest module
    survives: tuple[int, int] = (0, 0)  # failures of modules, of nodes, whichever they are
    plan_wall_s: float = 0.0


def learned(problem: PlacementProblem, trace: Trace) -> PlacementProblem:
    """Fill in what a trace of the problem's layers tells: loads, variances and, from choices, pairs."""
    shares = trace.loads / np.maximum(trace.loads.sum(axis=2, keepdims=True), 1)
    known = dataclasses.replace(
        problem, loads=trace.loads.sum(axis=0).astype(np.float64), variances=shares.var(axis=0)
    )
    if trace.choices is None:
        return known
    return dataclasses.replace(
        known,
        coactivation=coactivation(trace.choices, trace.experts),
        transitions=transitions(trace.choices, trace.experts),
    )


def compare(
    problem: PlacementProblem,
    strategies: Mapping[str, Strategy] | None = None,
    judged: PlacementProblem | None = None,
    choices: np.ndarray | None = None,
) -> Iterator[Line]:
    """Plan `problem` with each strategy (all, as they stand) and measure the plans on `judged` (the same).

    `choices [T, L, K]` are those of judged tokens, for messages. Where a strategy refuses the problem, its
    line says why.
    """
    judged = problem if judged is None else judged
    once = dataclasses.replace(problem, copies=np.minimum(problem.copies, 1), memory=None)
    linear = _traffic(Linear().place(once), judged, choices)
    every: dict[str, Strategy] = {kind: make() for kind, make in PLACEMENTS.items()}  # type: ignore[misc]
    for name, strategy in (every if strategies is None else strategies).items():
        # One generator for all would make a plan depend on the strategies before it.
        own = dataclasses.replace(problem, rng=np.random.default_rng(0))
        started = time.perf_counter()
        try:
            plan = strategy.place(own)
        except ValueError as error:
            yield Line(name, refused=str(error))
            continue
        yield _line(name, plan, judged, choices, linear, time.perf_counter() - started)


def _line(
    name: str,
    plan: Placement,
    judged: PlacementProblem,
    choices: np.ndarray | None,
    linear: dict[str, tuple[float, float]],
    seconds: float,
) -> Line:
    loads, modules = judged.loads, judged.modules
    moe = judged.copies.any(axis=1)
    each = plan.module_loads(loads, modules)[moe]
    counts = plan.counts(judged.layers, judged.experts)[moe]
    traffic = {
        what: tuple(mine / max(base, 1e-300) for mine, base in zip(found, linear[what], strict=True))
        for what, found in _traffic(plan, judged, choices).items()
    }
    return Line(
        name,
        imbalance=float((each.max(axis=1) / np.maximum(each.mean(axis=1), 1e-300)).mean()),
        deviation=float(load_deviation(plan, loads, modules)[moe].mean()),
        hops=float(mean_hops(plan, loads, judged.distances)[moe].mean()),
        hit_rate=float(replica_hit_rate(plan, loads, judged.distances)[moe].mean()),
        copies=float(counts.mean()),
        memory_bytes=int(np.bincount(plan.module, minlength=modules).max()) * judged.expert_bytes,
        survives=(survives(plan, np.arange(modules)), survives(plan, judged.module_to_node)),
        plan_wall_s=seconds,
        **traffic,  # type: ignore[arg-type]
    )


def _traffic(
    plan: Placement, judged: PlacementProblem, choices: np.ndarray | None
) -> dict[str, tuple[float, float]]:
    """What travels, by module and by node: a mean over the layers that have experts."""
    groups = np.arange(judged.modules), judged.module_to_node
    moe = np.asarray(judged.copies.any(axis=1))
    found = {}
    if judged.coactivation is not None:
        found["pairs"] = [pairs_apart(plan, judged.coactivation, group)[moe].mean() for group in groups]
    if choices is not None:
        far = judged.distances
        found["messages"] = [messages(plan, choices, group, far)[moe].mean() for group in groups]
    both = moe[:-1] & moe[1:]
    if judged.transitions is not None and both.any():
        found["steps"] = [steps_apart(plan, judged.transitions, group)[both].mean() for group in groups]
    return {what: (float(by_module), float(by_node)) for what, (by_module, by_node) in found.items()}


def table(lines: list[Line], title: str) -> Table:
    """The lines for people; percentages are traffic relative to linear, by module/by node."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("placement", no_wrap=True)
    heads = (
        *("pairs\napart", "messages", "steps\napart", "max/mean\nload", "deviation", "hops", "replica\nhits"),
        *("copies", "memory", "survives", "time"),
    )
    for head in heads:
        shown.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        if line.refused:
            shown.add_row(line.name, *["-"] * len(heads))
            continue
        shown.add_row(
            line.name,
            *(_both(line.pairs), _both(line.messages), _both(line.steps)),
            *(f"{line.imbalance:.2f}", f"{line.deviation:.2f}", f"{line.hops:.2f}", f"{line.hit_rate:.0%}"),
            *(f"{line.copies:.2f}", format_bytes(line.memory_bytes)),
            f"{line.survives[0]}/{line.survives[1]}",
            format_seconds(line.plan_wall_s),
        )
    refused = [f"{line.name}: {line.refused}" for line in lines if line.refused]
    shown.caption = "\n".join(refused) or None
    return shown


def _both(ratios: tuple[float, float] | None) -> str:
    return "-" if ratios is None else f"{ratios[0]:.0%}/{ratios[1]:.0%}"
