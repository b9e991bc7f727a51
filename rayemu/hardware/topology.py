"""How the ends of a level are joined, the shortest route of every message, and what that asks of each link.

Routes are fixed: the shorter way round a ring (halves both ways where they are equal), dimension by dimension
on a torus, by the destination's digits on a fat tree (D-mod-k). `full` is a crossbar that never blocks: each
end has one link out and one in. Letters: E ends, L directed links, N messages, K = entries of all routes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rayemu.hardware.spec import Topology

Array = np.ndarray


@dataclass(frozen=True)
class Routes:
    """The links of N messages: message `of[k]` sends `part[k]` of its bytes over `link[k]`; by message."""

    of: Array  # [K] int64, rising
    link: Array  # [K] int64
    part: Array  # [K] float64: 1, or less where a message is split over equal routes
    hops: Array  # [N] int64: links from end to end; 1 on a crossbar, 0 from an end to itself


@dataclass(frozen=True)
class Network:
    """A topology with a number of ends: 0 to E - 1, switches have higher numbers. See `network`."""

    kind: str
    ends: int
    shape: tuple[int, ...]  # ring and torus: the dimensions; fat tree: half of its switches' ports
    links: Array  # [L, 2] int64: where each link begins and where it ends

    def routes(self, src: Array, dst: Array) -> Routes:
        """The route of each message [N]; one from an end to itself takes no link."""
        src, dst = np.asarray(src, np.int64), np.asarray(dst, np.int64)
        if self.kind == "full":
            return _crossbar(self.ends, src, dst)
        if self.kind == "fat_tree":
            return _up_and_down(len(self.links) // 6, self.shape[0], src, dst)
        return _round(self.ends, self.shape, src, dst)

    def hops(self) -> tuple[float, int]:
        """Average and worst number of hops over all pairs of different ends."""
        src, dst = np.divmod(np.arange(self.ends**2), self.ends)
        found = self.routes(src, dst).hops[src != dst]
        return (float(found.mean()), int(found.max())) if len(found) else (0.0, 0)

    def loads(self, sizes: Array) -> Array:
        """Bytes over each link [L] when `sizes` [E, E] go from row to column by the fixed routes."""
        src, dst = np.nonzero(sizes)
        routes = self.routes(src, dst)
        weights = np.asarray(sizes, np.float64)[src, dst][routes.of] * routes.part
        return np.bincount(routes.link, weights=weights, minlength=len(self.links))


def network(topology: Topology | None, ends: int) -> Network:
    """Join `ends` by a topology (None: full). Raises ValueError where its sizes do not fit the ends.

    A torus without dimensions is the squarest that has so many ends, a fat tree without arity the smallest
    that has room (k-ary, three levels, k^3 / 4 ends; Al-Fares et al., SIGCOMM 2008).
    """
    if topology is None or topology.kind == "full":
        each = np.arange(ends)
        hub = np.full(ends, ends)
        return Network("full", ends, (), np.stack([np.r_[each, hub], np.r_[hub, each]], 1))
    if topology.kind == "fat_tree":
        return _fat_tree(topology.arity, ends)
    shape = (ends,) if topology.kind == "ring" else topology.dimensions or _squarest(ends)
    if math.prod(shape) != ends:
        raise ValueError(f"topology.dimensions: {list(shape)} join {math.prod(shape)} ends, not {ends}")
    place = np.stack(np.unravel_index(np.arange(ends), shape))  # [dimensions, E]
    links = []
    for axis, length in enumerate(shape):
        for way in (1, -1):
            there = place.copy()
            there[axis] = (there[axis] + way) % length
            links.append(np.stack([np.arange(ends), np.ravel_multi_index(tuple(there), shape)], 1))
    return Network(topology.kind, ends, shape, np.concatenate(links))


def least_loads(net: Network, sizes: Array) -> Array:
    """Bytes over each link [L] when equal shortest routes share so that the fullest link has least.

    A linear programme over flows by destination that use links of shortest paths alone: among the cheapest
    flows in hops, the most even one. It grows with E x L: for some tens of ends. Raises ValueError for full,
    which has no two routes.
    """
    from scipy.optimize import linprog  # slow to import
    from scipy.sparse import coo_array

    sizes = np.asarray(sizes, np.float64)
    nodes, links = int(net.links.max()) + 1, net.links
    if net.kind == "full":
        raise ValueError("topology: full has one route for each pair; nothing can be shared")
    far = _distances(links, nodes, net.ends)  # [nodes, E]
    rows, columns, values, supply = [], [], [], []
    count, over = 0, []  # variables; the link of each
    for end in range(net.ends):
        use = np.flatnonzero(far[links[:, 0], end] == far[links[:, 1], end] + 1)
        begin, stop = links[use].T
        at = count + np.arange(len(use))
        rows += [end * nodes + begin, end * nodes + stop]
        columns += [at, at]
        values += [np.ones(len(use)), -np.ones(len(use))]
        need = np.zeros(nodes)
        need[: net.ends] = sizes[:, end]
        need[end] = 0
        need[end] = -need.sum()
        supply.append(need)
        over.append(use)
        count += len(use)
    link = np.concatenate(over)
    scale = sizes.max() or 1.0
    flow = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    equal = coo_array(flow, shape=(net.ends * nodes, count + 1)).tocsr()
    below = coo_array(
        (
            np.r_[np.ones(count), -np.ones(len(links))],
            (np.r_[link, np.arange(len(links))], np.r_[np.arange(count), np.full(len(links), count)]),
        ),
        shape=(len(links), count + 1),
    ).tocsr()
    cost = np.zeros(count + 1)
    cost[-1] = 1.0
    found = linprog(
        cost,
        A_ub=below,
        b_ub=np.zeros(len(links)),
        A_eq=equal,
        b_eq=np.concatenate(supply) / scale,
        method="highs",
    )
    if not found.success:
        raise RuntimeError(f"the linear programme for even loads failed: {found.message}")
    return np.bincount(link, weights=found.x[:-1], minlength=len(links)) * scale


def _distances(links: Array, nodes: int, ends: int) -> Array:
    """Links from every node to every end [nodes, E], breadth first from the ends backwards."""
    far = np.full((nodes, ends), -1)
    far[np.arange(ends), np.arange(ends)] = 0
    step = 0
    while True:
        reached = np.zeros_like(far, dtype=bool)
        np.logical_or.at(reached, links[:, 0], far[links[:, 1]] == step)
        new = reached & (far < 0)
        if not new.any():
            return far
        step += 1
        far[new] = step


def _squarest(ends: int) -> tuple[int, int]:
    side = next(side for side in range(math.isqrt(ends), 0, -1) if ends % side == 0)
    return side, ends // side


def _crossbar(ends: int, src: Array, dst: Array) -> Routes:
    away = np.flatnonzero(src != dst)
    link = np.stack([src[away], ends + dst[away]], 1).ravel()
    return Routes(np.repeat(away, 2), link, np.ones(len(link)), (src != dst).astype(np.int64))


def _round(ends: int, shape: tuple[int, ...], src: Array, dst: Array) -> Routes:
    """Round a ring, or a ring of each dimension in turn. Links: (2 dimension + way) E + where it begins."""
    start, goal = np.unravel_index(src, shape), np.unravel_index(dst, shape)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    at, total = src.copy(), np.zeros(len(src), np.int64)
    of, links, parts = [], [], []
    for axis, (length, stride) in enumerate(zip(shape, strides, strict=True)):
        forward = (goal[axis] - start[axis]) % length
        backward = (length - forward) % length
        rest = at - start[axis] * stride  # the place with this coordinate 0
        for way, mine, other in ((0, forward, backward), (1, backward, forward)):
            going = np.flatnonzero((mine > 0) & (mine <= other))
            steps = mine[going]
            first = np.repeat(np.cumsum(steps) - steps, steps)
            step = np.arange(len(first)) - first
            message = np.repeat(going, steps)
            coordinate = (start[axis][message] + (step if way == 0 else -step)) % length
            of.append(message)
            links.append((2 * axis + way) * ends + rest[message] + coordinate * stride)
            parts.append(np.where((forward == backward)[message], 0.5, 1.0))
        total += np.minimum(forward, backward)
        at += (goal[axis] - start[axis]) * stride
    order = np.argsort(np.concatenate(of), kind="stable")
    return Routes(
        np.concatenate(of)[order], np.concatenate(links)[order], np.concatenate(parts)[order], total
    )


def _fat_tree(arity: int | None, ends: int) -> Network:
    if arity is None:
        arity = next(k for k in range(2, 4096, 2) if k**3 // 4 >= ends)
    if arity % 2 or arity**3 // 4 < ends:
        raise ValueError(
            f"topology.arity: {arity} joins {arity**3 // 4} ends; it must be even and join {ends}"
        )
    half = arity // 2
    room = 2 * half**3  # ends, and links of each of three levels up, and down
    edge0, middle0, core0 = room, room + 2 * half**2, room + 4 * half**2
    place = np.arange(room)
    edge, port = np.divmod(place, half)
    pod = edge // half
    middle = middle0 + pod * half + port  # where an edge switch's port leads
    core = core0 + (edge % half) * half + port  # and that of the middle switch `edge` of its pod
    up = [
        np.stack(pair, 1) for pair in ((place, edge0 + edge), (edge0 + edge, middle), (middle0 + edge, core))
    ]
    links = np.concatenate(up)
    return Network("fat_tree", ends, (half,), np.concatenate([links, links[:, ::-1]]))


def _up_and_down(room: int, half: int, src: Array, dst: Array) -> Routes:
    """Up as far as needed by the destination's digits, and down. Links: three levels up, three down."""
    port, rail = dst % half, dst // half % half
    edges = [end // half for end in (src, dst)]
    pods = [edge // half for edge in edges]
    levels = 1 + (edges[0] != edges[1]) + (pods[0] != pods[1])
    levels[src == dst] = 0
    columns = []
    for side, end in enumerate((src, dst)):
        links = (end, edges[side] * half + port, (pods[side] * half + port) * half + rail)
        columns += [(3 * side + level) * room + link for level, link in enumerate(links)]
    used = np.tile(np.arange(3), 2)[None, :] < levels[:, None]  # [N, 6]
    of = np.repeat(np.arange(len(src)), used.sum(1))
    return Routes(of, np.stack(columns, 1)[used], np.ones(len(of)), 2 * levels)
