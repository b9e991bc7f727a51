"""The schedule of a graph of events on modelled hardware: when each would have begun and ended there.

Level by level of the graph (an event's level is the length of the longest chain of causes before it), so that
each level is a few operations on arrays. docs/pricing.md states the rule and its limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import numpy as np

from rayemu.hardware import Hardware
from rayemu.hardware.spec import Processors
from rayemu.hardware.transfers import FREE, services
from rayemu.model.spec import ModelSpec
from rayemu.pricing.graph import COMBINE, EXPERT, MESSAGE, ROUTE, EventGraph

Array = np.ndarray
_AT_ONCE = 1 << 14  # events that are looked up together: few enough for the processor's cache
_RADIX = 1 << 16  # NumPy sorts keys of 16 bits by radix, ten times as fast as wider ones


@dataclass(frozen=True, eq=False)
class Schedule:
    """When the N events of a graph happen, in seconds of the hardware's time (emulated, never wall time).

    An event is ready when its last cause has ended; `end - start` is what it takes alone, `start - ready`
    what it waited for modules and links, of a message all along its way. `busy` [R] is what each resource
    served, by groups: "modules" (one each), "routing" (a router each, or a host of each node, and last that
    of the coordinator), and the links by level, "module" and "node". `level` [N] says which links a message
    passes: an index of `rayemu.hardware.spec.LEVELS`, FREE for work and for messages that pass none.
    """

    ready: Array  # [N] float64
    start: Array  # [N] float64
    end: Array  # [N] float64
    level: Array  # [N] int8
    busy: dict[str, Array]

    @property
    def span(self) -> float:
        """Seconds from the first event to the last."""
        return float(self.end.max(initial=0.0) - self.ready.min(initial=0.0))


def schedule(graph: EventGraph, hardware: Hardware, model: ModelSpec) -> Schedule:
    """List the events of a graph on a hardware; `model` is taken at its full widths.

    Every resource (a module, a router or host, each link) serves one event at a time: of a level, whoever is
    ready first, ties by their order in the graph; events of lower levels come before. A message asks all
    links of its way at once and has passed when the last has served it, plus latency (see
    `rayemu.hardware.transfers.services`). Raises ValueError for a graph whose causes come later than their
    effects.
    """
    depth = _depths(graph)
    if np.all(depth[1:] >= depth[:-1]):
        return _scheduled(graph, depth, hardware, model.full())
    order = np.argsort(depth, kind="stable")
    found = _scheduled(_reordered(graph, order), depth[order], hardware, model.full())
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return replace(
        found,
        ready=found.ready[place],
        start=found.start[place],
        end=found.end[place],
        level=found.level[place],
    )


def work_seconds(graph: EventGraph, events: Array, hardware: Hardware, model: ModelSpec) -> Array:
    """Return what each of the events that are work takes [n] alone, in seconds."""
    kind, rows = graph.kind[events], graph.rows[events].astype(np.int64)
    took = np.zeros(len(events))
    if (mine := kind == ROUTE).any():
        took[mine] = hardware.route_seconds(model.d_model, model.experts, rows[mine])
    if (mine := kind == COMBINE).any():
        took[mine] = hardware.combine_seconds(model.d_model, model.top_k, rows[mine])
    for width, mine in expert_widths(graph, events, model):
        took[mine] = hardware.expert_seconds(model.d_model, width, rows[mine], gated=model.gated)
    return took


def expert_widths(graph: EventGraph, events: Array, model: ModelSpec) -> Iterator[tuple[int, Array]]:
    """Give the width F of passes, and which of the events [n] have it: routed, shared and dense ones."""
    is_expert = graph.kind[events] == EXPERT
    routed = graph.expert[events] >= 0
    dense = graph.layer[events] < model.dense_layers
    for width, mine in (
        (model.d_ff, is_expert & routed),
        (model.shared_d_ff, is_expert & ~routed & ~dense),
        (model.dense_d_ff, is_expert & ~routed & dense),
    ):
        if mine.any():
            if width < 1:
                raise ValueError(f"the graph has passes of a shared or dense FFN, and {model.name} has none")
            yield width, mine


# -- levels -----------------------------------------------------------------------------------------------
def _depths(graph: EventGraph) -> Array:
    """Return the longest chain of causes before each event [N]."""
    size = len(graph)
    last = _over_causes(np.maximum, graph.cause_start, graph.causes, -1)
    if (last >= np.arange(size)).any() or (size and graph.causes.min(initial=0) < 0):
        wrong = int(np.flatnonzero(last >= np.arange(size))[0])
        raise ValueError(f"event {wrong} has cause {last[wrong]}; causes must come before what they cause")
    depth = np.zeros(size, np.int32)
    for low, high in _runs(last):
        starts = graph.cause_start[low : high + 1]
        causes = graph.causes[starts[0] : starts[-1]]
        depth[low:high] = _over_causes(np.maximum, starts - starts[0], depth[causes], -1) + 1
    return depth


def _runs(last_cause: Array) -> Iterator[tuple[int, int]]:
    """Cut events [N] in runs without causes among themselves, each as long as can be."""
    highest = np.maximum.accumulate(last_cause)
    low, size = 0, len(highest)
    while low < size:
        high = int(np.searchsorted(highest, low))
        yield low, high
        low = high


def _over_causes(reduce: np.ufunc, start: Array, values: Array, none: float) -> Array:
    """Reduce the values [C] of each event's causes to one [N]; `none` where there are no causes."""
    some = start[1:] > start[:-1]
    if some.all() and len(some):
        return np.asarray(reduce.reduceat(values, start[:-1]))
    found = np.full(len(some), none, values.dtype)
    if some.any():
        found[some] = reduce.reduceat(values, start[:-1][some])
    return found


def _reordered(graph: EventGraph, order: Array) -> EventGraph:
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    count = np.diff(graph.cause_start)[order]
    start = np.concatenate([[0], np.cumsum(count)])
    which = np.repeat(graph.cause_start[:-1][order] - start[:-1], count) + np.arange(start[-1])
    apart = ("cause_start", "causes", "module_to_node")
    columns = {f.name: getattr(graph, f.name) for f in fields(graph) if f.name not in apart}
    return replace(
        graph,
        **{name: column[order] for name, column in columns.items() if isinstance(column, np.ndarray)},
        cause_start=start,
        causes=place[graph.causes[which]],
    )


# -- what events ask of resources -------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class _Asked:
    """What n consecutive events ask: entries start[i] to start[i + 1] of event i."""

    start: Array  # [n + 1]
    resource: Array  # [K]
    seconds: Array  # [K]
    latency: Array  # [n] beside the resources
    floor: Array  # [n] that the event takes at least
    alone: Array  # [n] without others
    level: Array  # [n]


def _asked(
    graph: EventGraph, low: int, high: int, hardware: Hardware, model: ModelSpec, groups: dict[str, range]
) -> _Asked:
    """Look up what the events from `low` to before `high` ask; notes the links in `groups`."""
    events = np.arange(low, high)
    message = graph.kind[low:high] == MESSAGE
    sent, work = events[message], events[~message]
    nodes = graph.module_to_node
    links = services(hardware.spec, graph.src[sent], graph.dst[sent], graph.bytes[sent], nodes)
    offset = groups.get("processors", groups["routing"]).stop
    for name, ids in links.resources.items():
        groups[name] = range(offset + ids.start, offset + ids.stop)
    count = np.ones(high - low, np.int64)
    count[message] = np.diff(links.start)
    start = np.concatenate([[0], np.cumsum(count)])
    took = work_seconds(graph, work, hardware, model)
    if not len(work):
        resource, seconds = links.resource + offset, links.seconds
    else:
        resource, seconds = np.empty(start[-1], np.int64), np.empty(start[-1])
        entry = start[:-1][~message]
        resource[entry] = _worker(graph, work, hardware, groups)
        seconds[entry] = took
        others = np.ones(len(resource), bool)
        others[entry] = False
        resource[others], seconds[others] = links.resource + offset, links.seconds
    level = np.full(len(events), FREE, np.int8)
    latency, floor, alone = np.zeros((3, len(events)))
    level[message], latency[message], floor[message] = links.level, links.latency, links.floor
    if hardware.spec.processors is not None:
        start, resource, seconds, more = _on_processors(
            graph.bytes[events], message, took, hardware.spec.processors, start, resource, seconds, groups
        )
        latency += more
    alone = np.maximum(_over_causes(np.maximum, start, seconds, 0.0) + latency, floor)
    return _Asked(start, resource, seconds, latency, floor, alone, level)


def _on_processors(
    sizes: Array,
    message: Array,
    took: Array,
    processors: Processors,
    start: Array,
    resource: Array,
    seconds: Array,
    groups: dict[str, range],
) -> tuple[Array, Array, Array, Array]:
    """What n events ask of the processors too, at both ends of a message; and the latency [n] of it.

    They are one resource that is as quick as all together; that one of them is slower than all is latency.
    """
    own = processors.frame + sizes / processors.bandwidth  # [n] at each end
    own[~message] = took + processors.job
    count = np.diff(start)
    place = np.cumsum(np.where(message, 2, 1) + count)
    place = np.concatenate([[0], place])
    new_resource = np.full(place[-1], groups["processors"].start)
    new_seconds = np.empty(place[-1])
    kept = np.ones(place[-1], bool)
    at = place[1:] - 1
    new_seconds[at] = own / processors.count
    kept[at] = False
    at = at[message] - 1
    new_seconds[at] = own[message] / processors.count
    kept[at] = False
    new_resource[kept], new_seconds[kept] = resource, seconds
    late = own * (1 - 1 / processors.count)
    return place, new_resource, new_seconds, np.where(message, 2, 1) * late


def _worker(graph: EventGraph, work: Array, hardware: Hardware, groups: dict[str, range]) -> Array:
    """Return who does each piece of work [n]: its module, or for routing a router or a host."""
    where = graph.src[work].astype(np.int64)
    place = where if _routes_itself(hardware) else graph.module_to_node[where].astype(np.int64)
    router = np.where(where < 0, groups["routing"].stop - 1, groups["routing"].start + place)
    mine = np.where(graph.kind[work] == ROUTE, router, where)
    if (mine < 0).any():
        raise ValueError("the graph has experts or combines at the coordinator; only modules have them")
    return mine


def _routes_itself(hardware: Hardware) -> bool:
    """Whether each module has a router or host of its own, instead of one for each node."""
    return hardware.spec.router is not None or hardware.spec.host.each


# -- the schedule -----------------------------------------------------------------------------------------
def _scheduled(graph: EventGraph, depth: Array, hardware: Hardware, model: ModelSpec) -> Schedule:
    """Schedule events that are sorted by level."""
    size, modules = len(graph), len(graph.module_to_node)
    nodes = int(graph.module_to_node.max(initial=0)) + 1
    routers = (modules if _routes_itself(hardware) else nodes) + 1
    groups = {"modules": range(modules), "routing": range(modules, modules + routers)}
    if hardware.spec.processors is not None:
        groups["processors"] = range(groups["routing"].stop, groups["routing"].stop + 1)
    ready, end, alone = np.zeros((3, size))
    level = np.full(size, FREE, np.int8)
    borders = np.concatenate([[0], np.flatnonzero(np.diff(depth)) + 1, [size]])
    queues: _Queues | None = None
    for levels in _grouped(borders):
        first, last = levels[0], levels[-1]
        asked = _asked(graph, first, last, hardware, model, groups)
        queues = queues or _Queues(max(ids.stop for ids in groups.values()))
        queues.count(asked.resource, asked.seconds)
        for low, high in pairwise(levels):
            starts = graph.cause_start[low : high + 1]
            begun = end[graph.causes[starts[0] : starts[-1]]]
            ready[low:high] = at = _over_causes(np.maximum, starts - starts[0], begun, 0.0)
            end[low:high] = queues.served(asked, low - first, high - first, at)
        alone[first:last], level[first:last] = asked.alone, asked.level
    busy = np.zeros(groups["routing"].stop) if queues is None else queues.busy
    return Schedule(
        ready, end - alone, end, level, {name: busy[ids.start : ids.stop] for name, ids in groups.items()}
    )


def _grouped(borders: Array) -> Iterator[list[int]]:
    """Group consecutive levels so that a group has few enough events, or is one level."""
    group = [int(borders[0])]
    for border in borders[1:].tolist():
        if len(group) > 1 and border - group[0] > _AT_ONCE:
            yield group
            group = [group[-1]]
        group.append(border)
    if group[-1] > group[0]:
        yield group


class _Queues:
    """When each of R resources is free, and what it has served."""

    def __init__(self, resources: int) -> None:
        self.free, self.busy = np.zeros((2, resources))
        self.key = np.uint16 if resources <= _RADIX else np.int64

    def count(self, resource: Array, seconds: Array) -> None:
        """Note what is served."""
        self.busy += np.bincount(resource, seconds, len(self.busy))

    def served(self, asked: _Asked, low: int, high: int, ready: Array) -> Array:
        """Serve the events from `low` to before `high`, ready at `ready` [n]; returns their ends."""
        first, last = asked.start[low], asked.start[high]
        if first == last:
            return ready
        starts = asked.start[low : high + 1] - first
        resource, seconds = asked.resource[first:last], asked.seconds[first:last]
        order = self._order(resource, starts, ready)
        mine = resource[order]
        new = np.empty(len(mine), bool)
        new[0] = True
        np.not_equal(mine[1:], mine[:-1], out=new[1:])
        begin = np.flatnonzero(new)  # of each resource's entries
        length = np.diff(np.append(begin, len(mine)))
        came = np.repeat(ready, np.diff(starts))[order]
        np.maximum(came, self.free[mine], out=came)
        took = seconds[order]
        done = np.cumsum(took)
        done -= np.repeat(done[begin] - took[begin], length)  # of the resource's own
        # An entry ends at the latest of: when an entry up to it came, plus all service from that one on.
        came -= done
        came += took
        done += _running_maximum(came, begin, length)
        self.free[mine[begin]] = done[begin + length - 1]
        ended = np.empty(len(mine))
        ended[order] = done
        end = _over_causes(np.maximum, starts, ended, -np.inf)
        none = end == -np.inf
        if none.any():
            end = np.where(none, ready, end)
        return np.maximum(end + asked.latency[low:high], ready + asked.floor[low:high])

    def _order(self, resource: Array, starts: Array, ready: Array) -> Array:
        """Sort entries by resource, then by when they are ready, then by their order."""
        keys = resource.astype(self.key)
        if (ready[1:] >= ready[:-1]).all():
            return np.argsort(keys, kind="stable")
        rank = np.empty(len(ready), np.uint16 if len(ready) <= _RADIX else np.int64)
        rank[np.argsort(ready, kind="stable")] = np.arange(len(ready))
        order = np.argsort(np.repeat(rank, np.diff(starts)), kind="stable")
        return order[np.argsort(keys[order], kind="stable")]


def _running_maximum(values: Array, begin: Array, length: Array) -> Array:
    """Return the running maximum of each of consecutive segments, which begin at `begin`."""
    longest = int(length.max())
    if longest == 1:
        return values
    if len(begin) == 1:
        return np.maximum.accumulate(values)
    # Segments lifted one above the other make one running maximum; it only says where the largest are, as
    # what is added costs digits.
    lift = np.repeat(np.arange(len(begin)) * (1.001 * (values.max() - values.min())), length)
    lifted = values + lift
    highest = np.maximum.accumulate(lifted)
    at = np.where(lifted == highest, np.arange(len(values)), 0)
    return values[np.maximum.accumulate(at)]
