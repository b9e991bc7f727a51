"""Tracks of a trace for the time that modelled hardware would have taken, beside those of the run itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rayemu.hardware.transfers import FREE
from rayemu.pricing import EventGraph, Schedule
from rayemu.pricing.graph import COMBINE, EXPERT, MESSAGE, ROUTE
from rayemu.report.trace import name_of_expert

_NAMES = {ROUTE: "route", EXPERT: "expert", COMBINE: "combine"}
_LINKS, _WORK = 0, 1
_THREADS = ("links", "work")


def add_emulated(
    content: dict[str, Any], name: str, graph: EventGraph, plan: Schedule, dense_layers: int = 0
) -> None:
    """Add the schedule of a run on the hardware `name` to its trace, as processes "emulated: name, ...".

    Times are microseconds of emulated time from the first event. Messages overlap, so they are spans with a
    begin and an end of their own; those that pass no link are left out.
    """
    listed: list[dict[str, Any]] = content["traceEvents"]
    base = max((int(event["pid"]) for event in listed), default=0) + 1
    shown = np.flatnonzero((graph.kind != MESSAGE) | (plan.level != FREE))
    origin = float(plan.ready.min(initial=0.0))
    for source in np.unique(graph.src[shown]).tolist():
        listed += _process(source, base, name, graph.module_to_node.tolist())
    for event in shown[np.argsort(plan.start[shown], kind="stable")].tolist():
        listed += _spans(event, base, graph, plan, origin, dense_layers)


def _process(source: int, base: int, name: str, nodes: list[int]) -> Iterator[dict[str, Any]]:
    who = "coordinator" if source < 0 else f"module {source} (node {nodes[source]})"
    common = {"ph": "M", "pid": base + source + 1}
    yield {**common, "name": "process_name", "args": {"name": f"emulated: {name}, {who}"}}
    yield {**common, "name": "process_sort_index", "args": {"sort_index": base + source}}
    for thread, label in enumerate(_THREADS):
        yield {**common, "name": "thread_name", "tid": thread, "args": {"name": label}}


def _spans(
    event: int, base: int, graph: EventGraph, plan: Schedule, origin: float, dense_layers: int
) -> Iterator[dict[str, Any]]:
    kind, src, dst = int(graph.kind[event]), int(graph.src[event]), int(graph.dst[event])
    begin, end = ((float(at[event]) - origin) * 1e6 for at in (plan.start, plan.end))
    args: dict[str, Any] = {key: int(getattr(graph, key)[event]) for key in ("batch", "layer", "rows")}
    args["queued_emu_us"] = round(float(plan.start[event] - plan.ready[event]) * 1e6, 3)
    common = {"cat": "emulated", "pid": base + src + 1}
    if kind != MESSAGE:
        name = _NAMES[kind]
        if kind == EXPERT:
            name = name_of_expert(int(graph.expert[event]), args["layer"], dense_layers)
        took = round(max(0.0, end - begin), 3)
        yield {
            **common,
            "ph": "X",
            "tid": _WORK,
            "name": name,
            "ts": round(begin, 3),
            "dur": took,
            "args": args,
        }
        return
    args["bytes"] = int(graph.bytes[event])
    span = {**common, "tid": _LINKS, "id": event, "name": f"message to {dst}"}
    yield {**span, "ph": "b", "ts": round(begin, 3), "args": args}
    yield {**span, "ph": "e", "ts": round(end, 3)}
