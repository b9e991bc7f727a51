"""The schedule of a graph of events on modelled hardware: when each would have begun and ended there.

Events are served in order of time, those of a short window together, so that each window is a few operations
on arrays. docs/pricing.md states the rule and its limits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayemu.hardware import Hardware
from rayemu.hardware.transfers import FREE, services
from rayemu.model.spec import ModelSpec
from rayemu.pricing.graph import COMBINE, EXPERT, MESSAGE, ROUTE, EventGraph
from rayemu.pricing.processors import Processes, on_processors

Array = np.ndarray
EXACTLY = 1 << 16  # events that are served in exactly their order; of larger graphs
WINDOWS = 1024  # is how many windows there are at least: what gets ready in the same may change places
_AT_ONCE = 1 << 14  # events that are looked up together: few enough for the processor's cache
_MOST_ENTRIES = 4  # of an event on average: two ports and two shared links
_RADIX = 1 << 16  # NumPy sorts keys of 16 bits by radix, ten times as fast as wider ones


@dataclass(frozen=True, eq=False)
class Schedule:
    """When the N events of a graph happen, in seconds of the hardware's time (emulated, never wall time).

    An event is ready when its last cause has ended; `end - start` is what it takes alone, `start - ready`
    what it waited for modules and links, of a message all along its way. `busy` [R] is what each resource
    served, by groups: "modules" (one each), "routing" (a router each, or a host of each node, and last that
    of the coordinator), "processors" of a machine that emulates, and the links by level, "module" and
    "node". `level` [N] says which links a message passes: an index of `rayemu.hardware.spec.LEVELS`, FREE
    for work and for messages that pass none.
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


def schedule(graph: EventGraph, hardware: Hardware, model: ModelSpec, windows: int | None = None) -> Schedule:
    """List the events of a graph on a hardware; `model` is taken at its full widths.

    Every resource (a module, a router or host, each link) serves one event at a time, first come first
    served, ties by their order in the graph. A message asks all links of its way at once and has passed when
    the last has served it, plus latency (see `rayemu.hardware.transfers.services`). What becomes ready in
    the same of `windows` parts of the whole time may change places; with 0 nothing does, None is 0 up to
    EXACTLY events and WINDOWS beyond. On processors it is always 0: who sleeps is told by exactly this order.
    Raises ValueError for a graph whose causes come later than their effects.
    """
    size, modules, model = len(graph), len(graph.module_to_node), model.full()
    nodes = int(graph.module_to_node.max(initial=0)) + 1
    routers = (modules if _routes_itself(hardware) else nodes) + 1
    groups = {"modules": range(modules), "routing": range(modules, modules + routers)}
    if hardware.spec.processors is not None:
        groups["processors"] = range(groups["routing"].stop, groups["routing"].stop + 1)
    asked = _asked(graph, hardware, model, groups)
    processes = Processes(graph, hardware.spec.processors) if hardware.spec.processors is not None else None
    workers = groups["processors"].start if "processors" in groups else 0
    queues = _Queues(max(ids.stop for ids in groups.values()), asked, workers, processes)
    longest = _longest(graph, asked.alone)
    ready, end = np.zeros((2, size))
    if hardware.spec.processors is not None:
        windows = 0
    elif windows is None:
        windows = 0 if size <= EXACTLY else WINDOWS
    if size:
        window = max(longest, float(queues.busy.max())) / windows if windows else 0.0
        _serve(graph, asked, queues, window, ready, end)
    busy = {name: queues.busy[ids.start : ids.stop] for name, ids in groups.items()}
    return Schedule(ready, end - asked.alone, end, asked.level, busy)


def work_seconds(graph: EventGraph, events: Array, hardware: Hardware, model: ModelSpec) -> Array:
    """Return what each of the events that are work takes [n] alone, in seconds."""
    kind, rows = graph.kind[events], graph.rows[events].astype(np.int64)
    took = np.zeros(len(events))
    scored, flops = kind == ROUTE, graph.flops[events]  # 0 where nobody said: the whole gate
    chosen = scored & (flops > 0) & (flops <= model.experts * rows)  # of scores alone
    if chosen.any():
        took[chosen] = hardware.route_seconds(1, model.experts, rows[chosen])
    scored &= ~chosen
    columns = np.rint(flops / np.maximum(2.0 * model.d_model * rows, 1)).astype(np.int64)
    columns[flops == 0] = model.experts
    for experts in np.unique(columns[scored]).tolist():  # all, or a module's own
        mine = scored & (columns == experts)
        took[mine] = hardware.route_seconds(model.d_model, experts, rows[mine])
    for outputs, mine in combine_widths(graph, events, model):
        took[mine] = hardware.combine_seconds(model.d_model, outputs, rows[mine])
    for width, mine in expert_widths(graph, events, model):
        took[mine] = hardware.expert_seconds(model.d_model, width, rows[mine], gated=model.gated)
        if (processors := hardware.spec.processors) is not None:
            took[mine & (model.ffn_flops(width) * rows < processors.turn)] /= processors.share
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


def combine_widths(graph: EventGraph, events: Array, model: ModelSpec) -> Iterator[tuple[int, Array]]:
    """Give how many outputs a combine sums for each row, and which of the events [n] sum so many.

    K of experts; a dense layer has one FFN, whose output is added to the row.
    """
    is_combine, dense = graph.kind[events] == COMBINE, graph.layer[events] < model.dense_layers
    for outputs, mine in ((model.top_k, is_combine & ~dense), (1, is_combine & dense)):
        if mine.any():
            yield outputs, mine


# -- the order of events ----------------------------------------------------------------------------------
def _serve(
    graph: EventGraph, asked: _Asked, queues: _Queues, window: float, ready: Array, end: Array
) -> None:
    """Fill in when all events [N] are ready and end.

    What is not ready yet will not be before one of those that are could end: so all that are ready before
    that can be served together, and with a `window` also those that are ready that long after the first.
    """
    begin, effects = _effects(graph)
    waits = np.diff(graph.cause_start).astype(effects.dtype)
    front = np.flatnonzero(waits == 0)
    slot = np.zeros(len(graph), np.int32)
    while len(front):
        at = ready[front]
        first, could = at.min(), (at + asked.alone[front]).min()
        if could > first:
            now = (at < could) | (at <= first + window)
        else:  # what takes no time makes others ready at the same time
            now = (at <= first + window) & ((asked.alone[front] == 0) | (window > 0))
        if now.all():
            events, front = front, front[:0]
        else:
            events, front = front[now], front[~now]
        events.sort()
        at = ready[events]
        if (at[1:] < at[:-1]).any():
            order = np.argsort(at, kind="stable")
            events, at = events[order], at[order]
        ended = queues.served(events, at)
        end[events] = ended
        reached, count = _spread(begin, events)
        reached = effects[reached]
        if not len(reached):
            continue
        np.maximum.at(ready, reached, np.repeat(ended, count))
        np.subtract.at(waits, reached, np.ones_like(reached))  # a lone 1 takes eight times as long
        new = reached[waits[reached] == 0]
        number = np.arange(len(new), dtype=slot.dtype)
        slot[new] = number  # each once: of the places of one event the last stays
        front = np.concatenate([front, new[slot[new] == number]])


def _effects(graph: EventGraph) -> tuple[Array, Array]:
    """Return the events that wait for each event: those of n from begin[n] to begin[n + 1]."""
    from scipy.sparse import csr_array  # slow to import

    size = len(graph)
    causes = csr_array((np.ones(len(graph.causes), np.int8), graph.causes, graph.cause_start), (size, size))
    by_cause = causes.tocsc()
    return by_cause.indptr, by_cause.indices


def _longest(graph: EventGraph, alone: Array) -> float:
    """Return the time of the longest chain of causes if nothing ever waited for a resource."""
    last = _over_causes(np.maximum, graph.cause_start, graph.causes, -1)
    late = np.flatnonzero(last >= np.arange(len(graph)))
    if len(late):
        raise ValueError(
            f"event {late[0]} has cause {last[late[0]]}; causes must come before what they cause"
        )
    end = np.zeros(len(graph))
    for low, high in _runs(last):
        starts = graph.cause_start[low : high + 1]
        begun = end[graph.causes[starts[0] : starts[-1]]]
        end[low:high] = _over_causes(np.maximum, starts - starts[0], begun, 0.0) + alone[low:high]
    return float(end.max(initial=0.0))


def _spread(start: Array, chosen: Array) -> tuple[Array, Array]:
    """Return the entries of the chosen [n], one's after another's, and how many each has [n]."""
    low = start[chosen]
    count = start[chosen + 1] - low
    before = np.cumsum(count)
    low += count
    low -= before
    return np.arange(before[-1] if len(before) else 0) + np.repeat(low, count), count


def _runs(last_cause: Array) -> Iterator[tuple[int, int]]:
    """Cut events [N] in runs without causes among themselves, each as long as can be."""
    highest = np.maximum.accumulate(last_cause)
    low, size = 0, len(highest)
    while low < size:
        # A number of another type would have all of them converted, for each run.
        high = int(np.searchsorted(highest, highest.dtype.type(low)))
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


def _asked(graph: EventGraph, hardware: Hardware, model: ModelSpec, groups: dict[str, range]) -> _Asked:
    """Look up what all events ask; notes the links in `groups`."""
    size = len(graph)
    start = np.zeros(size + 1, np.int64)
    latency, alone = np.empty(size), np.empty(size)
    floor = np.zeros(size)
    level = np.empty(size, np.int8)
    # Room for most; what is not used of it is never touched, and so costs nothing.
    resource, seconds = np.empty(_MOST_ENTRIES * size, np.int32), np.empty(_MOST_ENTRIES * size)
    used = 0
    for low in range(0, max(size, 1), _AT_ONCE):
        high = min(low + _AT_ONCE, size)
        count, *entries, latency[low:high], least, alone[low:high], level[low:high] = _asked_by(
            graph, low, high, hardware, model, groups
        )
        if least.any():  # few hardwares have one, and what is not written takes no memory
            floor[low:high] = least
        start[low + 1 : high + 1] = count
        end = used + len(entries[0])
        if end > len(resource):  # as on long ways through a torus
            resource = np.concatenate([resource[:used], np.empty(2 * end - used, np.int32)])
            seconds = np.concatenate([seconds[:used], np.empty(2 * end - used)])
        resource[used:end], seconds[used:end] = entries
        used = end
    np.cumsum(start, out=start)
    return _Asked(start, resource[:used], seconds[:used], latency, floor, alone, level)


def _asked_by(
    graph: EventGraph, low: int, high: int, hardware: Hardware, model: ModelSpec, groups: dict[str, range]
) -> tuple[Array, ...]:
    """Look up the columns of _Asked of the events from `low` to before `high`, with counts for starts."""
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
    resource, seconds = np.empty(start[-1], np.int32), np.empty(start[-1])
    entry = start[:-1][~message]
    resource[entry] = _worker(graph, work, hardware, groups)
    seconds[entry] = took = work_seconds(graph, work, hardware, model)
    others = np.ones(len(resource), bool)
    others[entry] = False
    resource[others], seconds[others] = links.resource + offset, links.seconds
    level = np.full(len(events), FREE, np.int8)
    latency, floor = np.zeros((2, len(events)))
    level[message], latency[message], floor[message] = links.level, links.latency, links.floor
    if hardware.spec.processors is not None:
        start, resource, seconds, more = on_processors(
            graph.bytes[events],
            message,
            took,
            hardware.spec.processors,
            start,
            resource,
            seconds,
            groups["processors"].start,
        )
        latency += more
    alone = np.maximum(_over_causes(np.maximum, start, seconds, 0.0) + latency, floor)
    if hardware.spec.processors is not None:  # not also the latency, see _Queues
        alone[~message] = took
    return np.diff(start), resource, seconds, latency, floor, alone, level


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


# -- the queues -------------------------------------------------------------------------------------------
class _Queues:
    """When each of R resources is free, and what it will have served.

    On processors the first `workers` resources are who works; the latency of work is not theirs but what a
    processor takes longer than all of them.
    """

    def __init__(
        self, resources: int, asked: _Asked, workers: int = 0, processes: Processes | None = None
    ) -> None:
        self.asked, self.workers, self.processes = asked, workers, processes
        self.free = np.zeros(resources)
        self.busy = np.zeros(resources)
        for low in range(0, len(asked.resource), _AT_ONCE):  # bincount would widen all ids at once
            some = slice(low, low + _AT_ONCE)
            np.add.at(self.busy, asked.resource[some], asked.seconds[some])
        self.floors = bool(asked.floor.any())
        self.key = np.uint16 if resources <= _RADIX else np.int64

    def served(self, events: Array, ready: Array) -> Array:
        """Serve events [n], in the order in which they are ready at `ready` [n]; returns when they end."""
        asked = self.asked
        entries, count = _spread(asked.start, events)
        if not len(entries):
            return np.maximum(ready + asked.latency[events], ready + asked.floor[events])
        mine = asked.resource[entries]
        order = np.argsort(mine.astype(self.key), kind="stable")
        mine, took = mine[order], asked.seconds[entries][order]
        of = np.repeat(np.arange(len(events)), count)[order]
        came = ready[of]
        new = np.ones(len(mine), bool)
        np.not_equal(mine[1:], mine[:-1], out=new[1:])
        begin = np.flatnonzero(new)  # of each resource's entries
        latency = asked.latency[events]
        if self.processes is not None:
            wake, share = self.processes.wake, 1 / self.processes.count
            woken = self.processes.woken(events, ready)
            at = np.flatnonzero((mine == self.workers) & woken[of])
            at = at[np.diff(of[at], append=-1) != 0]  # at one of the two ends of a message
            took[at] += wake * share
            self.busy[self.workers] += len(at) * wake * share
            latency = latency + np.where(woken, wake * (1 - share), 0.0)
        length = np.diff(begin, append=len(mine))
        np.maximum(came, self.free[mine], out=came)
        done = np.cumsum(took)
        done -= np.repeat(done[begin] - took[begin], length)  # of the resource's own
        # An entry ends at the latest of: when an entry up to it came, plus all service from that one on.
        came -= done
        came += took
        done += _running_maximum(came, begin, length)
        self.free[mine[begin]] = done[begin + length - 1]
        if self.workers:
            done -= np.where(mine < self.workers, latency[of], 0.0)
        end = ready.copy()
        np.maximum.at(end, of, done)
        end += latency
        if self.floors:
            end = np.maximum(end, ready + asked.floor[events])
        if self.processes is not None:
            self.processes.awake(events, end)
        return end


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
