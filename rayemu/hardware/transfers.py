"""What messages take: the links that each passes, how long each link serves it, and the latency beside that.

`services` is the one place that says so; an exchange's time here and the schedule of a whole run are made of
it. A message holds each of its links for its bytes over the link's bandwidth; a link serves one at a time; a
message has arrived when its slowest link has passed it, plus the latency of its level.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rayemu.hardware.loading import HardwareError
from rayemu.hardware.spec import LEVELS, Hardware, Level
from rayemu.hardware.topology import Network, network

Array = np.ndarray
HOST, CLIENT = -1, -2  # as src or dst: the host of node 0, and the client, whose messages are free
FREE = -1  # the level of messages that cost nothing
_MODULE, _NODE = LEVELS.index("module"), LEVELS.index("node")
_AT_ONCE = 1 << 20  # messages of an exchange that are looked at together


@dataclass(frozen=True)
class Services:
    """What N messages ask of the links: entries of message i are start[i] to start[i + 1].

    A message that is ready at t ends at max(t + floor, end + latency), where `end` is when the last of its
    resources has served it for its seconds (or t where it has none). Every resource serves one at a time.
    """

    level: Array  # [N] int8: index into LEVELS, or FREE
    latency: Array  # [N] float64
    floor: Array  # [N] float64
    start: Array  # [N + 1] int64
    resource: Array  # [K] int64
    seconds: Array  # [K] float64
    resources: dict[str, range]  # "module" and "node": the ids of each level's links


def level_of(hardware: Hardware, name: str) -> Level:
    """The link of a level: where a hardware does not say, that of the next one below."""
    links = hardware.links
    found = {"bank": links.bank, "module": links.module, "node": links.node, "cluster": links.cluster}
    for at in range(LEVELS.index(name), -1, -1):
        if (level := found[LEVELS[at]]) is not None:
            return level
    return links.module


def services(hardware: Hardware, src: Array, dst: Array, sizes: Array, module_to_node: Array) -> Services:
    """What messages [N] of `sizes` bytes from `src` to `dst` (a module, HOST or CLIENT) ask of the links.

    Inside a node: the links of its module level. Between nodes: those of the node level, whose ends are the
    modules, or, where a node's link is shared, the nodes; then a message passes its modules' own ports too.
    The sender's first link also takes the level's overhead. To oneself and with the client is free. The host
    has a port of its own on a crossbar; elsewhere it is at the first end of node 0. Raises ValueError, and
    HardwareError for a topology that does not join so many.
    """
    plan = _Plan(hardware, np.asarray(module_to_node))
    return plan.services(np.asarray(src, np.int64), np.asarray(dst, np.int64), np.asarray(sizes, np.float64))


def all_to_all_seconds(hardware: Hardware, sizes: Array, module_to_node: Array) -> float:
    """Seconds of one exchange of `sizes` [M, M] bytes from row to column, all ready at 0.

    The fullest resource's work plus the longest latency of its messages, as if those with the longest way
    were served last. What stays at home is free. Raises ValueError.
    """
    work = _work(hardware, sizes, module_to_node)
    return max(work.floor, float((work.seconds + work.latency).max(initial=0.0)))


def phases_seconds(hardware: Hardware, phases: Iterable[Array], module_to_node: Array) -> float:
    """Seconds of exchanges [M, M] one after another: each begins when the one before has ended."""
    return sum(all_to_all_seconds(hardware, np.asarray(phase), module_to_node) for phase in phases)


def pairwise(sizes: Array) -> Iterator[Array]:
    """Cut an exchange [M, M] in M - 1 phases: in phase k each module sends to the k-th after it."""
    modules = len(sizes)
    here = np.arange(modules)
    for step in range(1, modules):
        phase = np.zeros_like(sizes)
        there = (here + step) % modules
        phase[here, there] = sizes[here, there]
        yield phase


def hierarchical(sizes: Array, module_to_node: Array) -> tuple[Array, Array]:
    """An exchange [M, M] through relays as two: to a relay in every other node, then inside the nodes.

    As the emulator does it with relays spread: home h has in each node the member h modulo their number.
    """
    sizes, nodes = np.asarray(sizes, np.float64), np.asarray(module_to_node)
    modules = len(sizes)
    between, inside = np.zeros((2, modules, modules))
    for node in np.unique(nodes):
        members = np.flatnonzero(nodes == node)
        relay = np.where(nodes == node, np.arange(modules), members[np.arange(modules) % len(members)])
        between[np.arange(modules), relay] += sizes[:, members].sum(1)
        for member in members:
            inside[:, member] += np.bincount(relay, weights=sizes[:, member], minlength=modules)
    return between * (nodes[:, None] != nodes[None, :]), inside


def bandwidth_needed(
    hardware: Hardware, sizes: Array, module_to_node: Array, deadline: float
) -> dict[str, float]:
    """Bandwidth (bytes/s, as its level states it) that each level needs to end an exchange by `deadline`.

    Latency, overheads and the share that is reached stay as they are; levels that nothing crosses are left
    out. Raises ValueError where no bandwidth is enough.
    """
    work = _work(hardware, sizes, module_to_node)
    fixed = _work(hardware, sizes, module_to_node, without_bytes=True)
    left = deadline - fixed.latency - fixed.seconds
    busy = work.seconds > fixed.seconds
    if deadline < work.floor or (left[busy] <= 0).any():
        least = max(work.floor, float((fixed.latency + fixed.seconds).max()))
        raise ValueError(
            f"deadline: {deadline} s is not allowed; without any bytes the exchange takes {least:.3g} s"
        )
    needed = {}
    for name, ids in work.resources.items():
        mine = np.zeros(len(busy), bool)
        mine[ids.start : ids.stop] = busy[ids.start : ids.stop]
        if mine.any():
            share = (work.seconds - fixed.seconds)[mine] / left[mine]
            needed[name] = float(share.max()) * level_of(hardware, name).bandwidth
    return needed


def even_exchange_seconds(hardware: Hardware, sent: float, modules: int) -> float:
    """Seconds when each of `modules` sends `sent` bytes, to all alike and itself among them: how it scales.

    Consecutive modules fill nodes of `modules_per_node`.
    """
    sizes = np.broadcast_to(np.float64(sent / modules), (modules, modules))
    return all_to_all_seconds(hardware, sizes, np.arange(modules) // hardware.modules_per_node)


@dataclass(frozen=True)
class _Work:
    """What an exchange asks of each resource [R]."""

    seconds: Array  # of all service
    latency: Array  # the longest of the messages that pass
    floor: float
    resources: dict[str, range]


def _work(hardware: Hardware, sizes: Array, module_to_node: Array, *, without_bytes: bool = False) -> _Work:
    sizes, nodes = np.asarray(sizes), np.asarray(module_to_node)
    if sizes.shape != (len(sizes), len(sizes)) or len(nodes) != len(sizes):
        raise ValueError(
            f"bytes_between has shape {sizes.shape}; it must be [M, M] with a node for each module"
        )
    plan = _Plan(hardware, nodes)
    seconds, latency, floor = np.zeros(plan.count), np.zeros(plan.count), 0.0
    rows = max(1, _AT_ONCE // max(1, len(sizes)))
    for first in range(0, len(sizes), rows):
        src, dst = np.nonzero(sizes[first : first + rows])
        carried = sizes[first + src, dst].astype(np.float64) * (not without_bytes)
        asked = plan.services(src + first, dst, carried)
        seconds += np.bincount(asked.resource, weights=asked.seconds, minlength=plan.count)
        np.maximum.at(latency, asked.resource, np.repeat(asked.latency, np.diff(asked.start)))
        floor = max(floor, float(asked.floor.max(initial=0.0)))
    return _Work(seconds, latency, floor, plan.resources)


class _Plan:
    """The links of M modules in their nodes, numbered through: every node's own, then those between nodes."""

    def __init__(self, hardware: Hardware, module_to_node: Array) -> None:
        nodes = np.asarray(module_to_node, np.int64)
        modules, count = len(nodes), int(nodes.max(initial=0)) + 1
        if modules and nodes.min() < 0:
            raise ValueError(f"module_to_node: node {nodes.min()} is not allowed; nodes count from 0")
        self.levels = {name: level_of(hardware, name) for name in ("module", "node")}
        inside, between = self.levels["module"], self.levels["node"]
        order = np.argsort(nodes, kind="stable")
        members = np.bincount(nodes, minlength=count)
        rank = np.empty(modules, np.int64)
        rank[order] = np.arange(modules) - np.repeat(np.cumsum(members) - members, members)
        most = int(members.max(initial=1))
        ported = _ported(inside)  # the host has a port of its own: the end after the last
        self.inside = _network(hardware, "module", most + ported)
        self.modules, self.node = modules, np.r_[nodes, 0]  # the host is module M, on node 0
        self.end = np.r_[rank, most if ported else 0]
        self.ported, self.shared = ported, between.shared
        if between.shared:
            self.between, self.outer = _network(hardware, "node", count), self.node
        else:
            own = _ported(between)
            first = int(order[0]) if modules else 0  # where the host is when it has no port
            self.between = _network(hardware, "node", modules + own)
            self.outer = np.r_[np.arange(modules), modules if own else first]
        split = count * len(self.inside.links)
        self.count = split + len(self.between.links)
        self.resources = {"module": range(split), "node": range(split, self.count)}

    def services(self, src: Array, dst: Array, sizes: Array) -> Services:
        """See the function of this name."""
        for name, ends in (("src", src), ("dst", dst)):
            if len(ends) and not (CLIENT <= ends.min() and ends.max() < self.modules):
                wrong = ends[(ends < CLIENT) | (ends >= self.modules)][0]
                raise ValueError(f"{name}: module {wrong} is not allowed; there are {self.modules} modules")
        paid = (src != dst) & (src != CLIENT) & (dst != CLIENT)
        src, dst = (np.where(ends < 0, self.modules, ends) for ends in (src, dst))
        far = paid & (self.node[src] != self.node[dst])
        level = np.where(far, _NODE, np.where(paid, _MODULE, FREE)).astype(np.int8)
        latency, floor = np.zeros((2, len(src)))
        entries = []  # message, resource, seconds
        for name, chosen, net, ends, base in (
            ("module", paid & ~far, self.inside, self.end, self.node * len(self.inside.links)),
            ("node", far, self.between, self.outer, np.full(self.modules + 1, self.resources["node"].start)),
        ):
            which, link = np.flatnonzero(chosen), self.levels[name]
            if not len(which):
                continue
            routes = net.routes(ends[src[which]], ends[dst[which]])
            of = which[routes.of]
            latency[which] = link.latency + np.maximum(routes.hops - 1, 0) * _hop(link)
            floor[which] = link.floor
            if name == "node" and self.shared and self.ported:
                entries += self._ports(src, dst, sizes, which)
            entries.append((of, base[src[of]] + routes.link, _held(link, sizes[of] * routes.part)))
        of, resource, seconds = (
            (np.concatenate(part) for part in zip(*entries, strict=True))
            if entries
            else (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        )
        order = np.argsort(of, kind="stable")
        start = np.r_[0, np.cumsum(np.bincount(of, minlength=len(src)))]
        resource, seconds = resource[order], seconds[order]
        first = start[:-1][start[1:] > start[:-1]]
        overheads = np.array([0.0, self.levels["module"].overhead, self.levels["node"].overhead, 0.0])
        seconds[first] += overheads[level[of[order][first]]]
        return Services(level, latency, floor, start, resource, seconds, self.resources)

    def _ports(self, src: Array, dst: Array, sizes: Array, which: Array) -> list[tuple[Array, Array, Array]]:
        """Their modules' own ports, which messages to other nodes pass when they share their node's link."""
        held, links = _held(self.levels["module"], sizes[which]), len(self.inside.links)
        out, back = src[which], dst[which]
        return [
            (which, self.node[out] * links + self.end[out], held),
            (which, self.node[back] * links + self.inside.ends + self.end[back], held),
        ]


def _network(hardware: Hardware, name: str, ends: int) -> Network:
    try:
        return network(level_of(hardware, name).topology, ends)
    except ValueError as error:
        remedy = "leave it out, and it is what fits, or take other nodes"
        raise HardwareError([f"{hardware.name}: links.{name}.{error}; {remedy}"]) from None


def _ported(level: Level) -> bool:
    return level.topology is None or level.topology.kind == "full"


def _hop(level: Level) -> float:
    return level.topology.hop if level.topology is not None else 0.0


def _held(level: Level, sizes: Array) -> Array:
    return sizes / (level.bandwidth * level.share)
