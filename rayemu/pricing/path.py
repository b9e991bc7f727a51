"""What a batch's time went to: the chain of events that its last one waited for, cut in parts.

From the last event of a batch back through the cause that ended last, each time, to the batch's beginning.
What an event takes alone goes to the part that it belongs to; what it waited for modules and links is queue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.pricing.graph import COMBINE, DISPATCH, EXPERT, MESSAGE, OTHER, ROUTE, EventGraph
from rayemu.pricing.schedule import Schedule

PARTS = ("route", "dispatch", "queue", "compute", "combine")
_ROUTE, _DISPATCH, _QUEUE, _COMPUTE, _COMBINE = range(len(PARTS))
CLIENT = -2


@dataclass(frozen=True, eq=False)
class Paths:
    """The critical path of each of B batches, in emulated seconds: the parts of each sum to end - begin."""

    batch: np.ndarray  # [B]
    begin: np.ndarray  # [B] when it was submitted, or its first event could begin
    end: np.ndarray  # [B] when its last result arrived, or its last event ended
    parts: np.ndarray  # [B, 5] by PARTS


def critical_paths(graph: EventGraph, plan: Schedule) -> Paths:
    """Find the critical path of every batch that has come to its end.

    Where a graph has messages to the client, a batch ends with its last one, and batches without are left
    out; otherwise with its last event. A merged pass may lead into an earlier batch, whose rows it waited
    for: what was before this batch's beginning is not counted.
    """
    batch, begin, last = _batches(graph, plan)
    part = part_of(graph)
    parts = np.zeros((len(batch), len(PARTS)))
    path, event, upto = np.arange(len(batch)), last, plan.end[last]
    while len(path):
        since = begin[path]
        ready = np.maximum(plan.ready[event], since)
        start = np.minimum(np.maximum(plan.start[event], ready), upto)
        parts[path, part[event]] += upto - start
        parts[path, _QUEUE] += start - ready
        on = (plan.ready[event] > since) & (graph.cause_start[event + 1] > graph.cause_start[event])
        path, event, upto = path[on], _latest_cause(graph, plan, event[on]), ready[on]
    return Paths(batch, begin, plan.end[last], parts)


def part_of(graph: EventGraph) -> np.ndarray:
    """Return the part [N], by PARTS, that each event's own time belongs to.

    Messages to the client are the end of combining, those from it the begin of dispatching. What else is
    between modules and the coordinator, who routes and hands slices out, belongs to routing, as do modules'
    offers of experts.
    """
    with_client = (graph.dst == CLIENT) | (graph.src == CLIENT)
    sent = np.select(
        [graph.role == DISPATCH, (graph.role == OTHER) & ~with_client],
        [_DISPATCH, _ROUTE],
        np.where(graph.src == CLIENT, _DISPATCH, _COMBINE),
    )
    work = np.select(
        [graph.kind == kind for kind in (ROUTE, EXPERT, COMBINE)], [_ROUTE, _COMPUTE, _COMBINE], _COMBINE
    )
    return np.where(graph.kind == MESSAGE, sent, work)


def _batches(graph: EventGraph, plan: Schedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the batches [B], when each began, and the last event of each."""
    message = graph.kind == MESSAGE
    given, taken = message & (graph.src == CLIENT), message & (graph.dst == CLIENT)
    ends = np.flatnonzero(taken if taken.any() else graph.batch >= 0)
    ends = ends[np.lexsort((plan.end[ends], graph.batch[ends]))]
    final = np.flatnonzero(np.diff(graph.batch[ends], append=np.iinfo(np.int32).max))
    last = ends[final]
    batch = graph.batch[last]
    begins = np.flatnonzero(given if given.any() else graph.batch >= 0)
    begins = begins[np.lexsort((plan.ready[begins], graph.batch[begins]))]
    known = graph.batch[begins]
    first = np.minimum(np.searchsorted(known, batch), max(len(known) - 1, 0))
    begin = np.where(known[first] == batch, plan.ready[begins[first]], 0.0) if len(known) else np.zeros(0)
    return batch, np.minimum(begin, plan.end[last]), last


def _latest_cause(graph: EventGraph, plan: Schedule, events: np.ndarray) -> np.ndarray:
    """Return the cause of each event [n] that ended last; each has one."""
    low = graph.cause_start[events]
    count = graph.cause_start[events + 1] - low
    first = np.cumsum(count) - count
    causes = graph.causes[np.repeat(low - first, count) + np.arange(count.sum())]
    of = np.repeat(np.arange(len(events)), count)
    order = np.lexsort((plan.end[causes], of))
    return causes[order[first + count - 1]] if len(events) else events
