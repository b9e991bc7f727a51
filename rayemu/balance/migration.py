"""Which experts have to move for a new plan, and how to choose so that little moves.

L layers, E experts, G devices (modules), N nodes; `module_to_node [G]`. An expert that a device lacks is
fetched from the nearest device that holds it at present: one hop within the node, two across nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.placement import Placement, from_columns

REBUILT = -1  # source of an expert that no device holds: from the seed or a checkpoint


@dataclass(frozen=True, eq=False)
class Moves:
    """Experts to load, one entry each, sorted by layer, expert and destination; and how many are dropped."""

    layer: np.ndarray  # [n] int64
    expert: np.ndarray  # [n] int64
    source: np.ndarray  # [n] int64, a device, or `REBUILT`
    destination: np.ndarray  # [n] int64
    hops: np.ndarray  # [n] int64: 1 within a node, 2 across nodes and where it is rebuilt
    dropped: int  # slots whose expert leaves its device

    def __len__(self) -> int:
        """Return the number of loads."""
        return len(self.layer)

    def bytes(self, expert_bytes: int) -> int:
        """Bytes that are loaded, when every expert has `expert_bytes`."""
        return len(self) * expert_bytes


def count_moves(present: Placement, new: Placement) -> int:
    """How many experts have to be loaded by devices that lack them; `len(moves_between(...))`, but quick."""
    devices = 1 + max(int(p.module.max(initial=0)) for p in (present, new))
    held, wanted = _held(present, new, devices)
    return int((wanted & ~held).sum())


def moves_between(present: Placement, new: Placement, module_to_node: np.ndarray) -> Moves:
    """What has to be loaded to get from the present plan to the new one.

    Each load comes from the nearest holder; among equally near ones from that which has given least so far,
    then from the lower id.
    """
    held, wanted = _held(present, new, len(module_to_node))
    layer, expert, destination = np.nonzero((wanted & ~held).swapaxes(1, 2))  # by layer, expert, destination
    given = np.zeros(len(module_to_node), np.int64)
    source = np.full(len(layer), REBUILT)
    hops = np.full(len(layer), 2)
    for n, (at, e, to) in enumerate(zip(layer, expert, destination, strict=True)):
        holders = np.flatnonzero(held[at, :, e])
        if holders.size:
            away = 1 + (module_to_node[holders] != module_to_node[to])
            best = np.lexsort((holders, given[holders], away))[0]
            source[n], hops[n] = holders[best], away[best]
            given[holders[best]] += 1
    return Moves(layer, expert, source, destination, hops, int((held & ~wanted).sum()))


def match_devices(present: Placement, new: Placement, module_to_node: np.ndarray) -> Placement:
    """Give the new plan's devices, layer by layer, to those physical devices for which the fewest hops move.

    Planners number devices as they like; which of equal devices is which does not matter for the balance.
    Sets of experts stay together on a device, and sets of devices on a node, so whatever a planner arranged
    within nodes stays. Least cost by two levels of assignment (Hungarian method): devices within every pair
    of nodes, then nodes. Only nodes with equally many devices change places. Devices are taken to be alike.
    """
    nodes = [np.flatnonzero(module_to_node == n) for n in np.unique(module_to_node)]
    held, wanted = _held(present, new, len(module_to_node))
    near = np.zeros_like(held)
    for mine in nodes:
        near[:, mine] = held[:, mine].any(axis=1, keepdims=True)
    fetch = np.where(held, 0, np.where(near, 1, 2)).astype(np.int64)  # [L, G, E] hops to get it there
    cost = wanted.astype(np.int64) @ fetch.swapaxes(1, 2)  # [L, G of the plan, G]
    module = new.module.astype(np.int64)
    for layer, hops in enumerate(cost):
        physical = _assign(hops, nodes)  # [G]
        if hops[np.arange(len(hops)), physical].sum() < np.trace(hops):
            mine = new.layer == layer
            module[mine] = physical[module[mine]]
    return Placement(new.layer, new.expert, new.part, module)


def balancing_flow(loads: np.ndarray, distances: np.ndarray, ceiling: int | None = None) -> np.ndarray:
    """Rows [G, G] to shift from device to device, for the fewest row-hops, so that none is above the ceiling.

    Whole `loads [G]`; `distances [G, G]` in hops, above 0 between devices. The least `ceiling` is the mean,
    rounded up; that is the default. A transport problem, solved by HiGHS's dual simplex: its matrix is
    totally unimodular, so the flow is whole.
    """
    rows = np.rint(loads).astype(np.int64)
    if not np.array_equal(rows, loads):
        raise ValueError("loads: fractions are not allowed; allowed: whole rows")
    level = -(-int(rows.sum()) // len(rows))
    ceiling = level if ceiling is None else ceiling
    if ceiling < level:
        raise ValueError(f"ceiling: {ceiling} is not allowed; allowed: the mean, {level}, and above")
    flow = np.zeros((len(rows), len(rows)), np.int64)
    giving, taking = np.flatnonzero(rows > ceiling), np.flatnonzero(rows < ceiling)
    if not giving.size:
        return flow
    edges = np.arange(len(giving) * len(taking))
    from scipy.optimize import linprog  # slow to import, and scenarios need none of it
    from scipy.sparse import coo_array

    give = coo_array((np.ones(len(edges)), (edges // len(taking), edges)), (len(giving), len(edges)))
    take = coo_array((np.ones(len(edges)), (edges % len(taking), edges)), (len(taking), len(edges)))
    found = linprog(
        distances[np.ix_(giving, taking)].ravel(),
        A_eq=give.tocsr(),
        b_eq=rows[giving] - ceiling,
        A_ub=take.tocsr(),
        b_ub=ceiling - rows[taking],
        method="highs-ds",
    )
    if not found.success:
        raise RuntimeError(f"the flow between devices was not found: {found.message}")
    flow[np.ix_(giving, taking)] = np.rint(found.x).astype(np.int64).reshape(len(giving), len(taking))
    return flow


def flow_plan(
    loads: np.ndarray, present: Placement, distances: np.ndarray, slack: float = 0.02, rounds: int = 16
) -> Placement:
    """A plan near the present one: exchanges of experts that follow the min-cost flow between devices.

    For each layer of expert `loads [L, E]`, until no device is above the mean by more than `slack`, no
    exchange helps, or `rounds` are over: the flow from devices above to those below is found, and along its
    edges, largest first, the pair of slots changes places whose loads differ most nearly by the flow, if that
    lowers the busier of both devices and leaves no device with two copies of an expert. Every device keeps
    its number of slots, and every expert its copies. Ties go to the lower slots.
    """
    devices = len(distances)
    copies = np.maximum(present.counts(*loads.shape), 1)
    module = present.module.astype(np.int64)
    for layer in range(len(loads)):
        slots = np.flatnonzero(present.layer == layer)
        expert = present.expert[slots]
        load = loads[layer, expert] / copies[layer, expert]  # [P]
        where = module[slots]
        ceiling = _ceiling(load, where, devices, slack)
        for _ in range(rounds):
            busy = np.rint(np.bincount(where, weights=load, minlength=devices))
            flow = balancing_flow(busy, distances, max(ceiling, -(-int(busy.sum()) // devices)))
            edges = np.argwhere(flow)
            order = np.argsort(-flow[tuple(edges.T)], kind="stable")
            if not any([_exchange(load, expert, where, a, b, flow[a, b]) for a, b in edges[order]]):
                break
        module[slots] = where
    return from_columns(present.layer, present.expert, module)


def _ceiling(load: np.ndarray, where: np.ndarray, devices: int, slack: float) -> int:
    """Rows that a device may have: the mean and the slack, or the heaviest slot with the lightest company."""
    if not len(load):
        return 0
    fewest = int(np.bincount(where, minlength=devices).min())
    ordered = np.sort(load)
    return int(
        np.ceil(max(load.sum() / devices * (1 + slack), ordered[-1] + ordered[: max(fewest - 1, 0)].sum()))
    )


def _exchange(
    load: np.ndarray, expert: np.ndarray, where: np.ndarray, giver: int, taker: int, flow: int
) -> bool:
    """Let the best pair of slots change places in `where [P]`, if one lowers the busier device."""
    mine, theirs = np.flatnonzero(where == giver), np.flatnonzero(where == taker)
    gap = load[mine].sum() - load[theirs].sum()
    shift = load[mine][:, None] - load[theirs]  # [giver's slots, taker's slots]
    allowed = (shift > 0) & (shift < gap)
    allowed &= ~np.isin(expert[mine], expert[theirs])[:, None] & ~np.isin(expert[theirs], expert[mine])
    if not allowed.any():
        return False
    best = np.argmin(np.where(allowed, np.abs(shift - flow), np.inf))
    a, b = mine[best // len(theirs)], theirs[best % len(theirs)]
    where[a], where[b] = taker, giver
    return True


def _held(present: Placement, new: Placement, devices: int) -> tuple[np.ndarray, np.ndarray]:
    """What each device holds under both plans, [L, G, E] bool."""
    layers = 1 + max(int(p.layer.max(initial=-1)) for p in (present, new))
    experts = 1 + max(int(p.expert.max(initial=-1)) for p in (present, new))
    both = []
    for plan in (present, new):
        held = np.zeros((layers, devices, experts), bool)
        held[plan.layer, plan.module, plan.expert] = True
        both.append(held)
    return both[0], both[1]


def _assign(cost: np.ndarray, nodes: list[np.ndarray]) -> np.ndarray:
    """Physical device [G] of each device of a plan for the least cost [G, G], nodes staying together."""
    from scipy.optimize import linear_sum_assignment

    between = np.full((len(nodes), len(nodes)), np.iinfo(np.int32).max, np.int64)
    inside: dict[tuple[int, int], np.ndarray] = {}
    for a, mine in enumerate(nodes):
        for b, theirs in enumerate(nodes):
            if len(mine) == len(theirs):
                block = cost[np.ix_(mine, theirs)]
                _, column = linear_sum_assignment(block)
                inside[a, b] = theirs[column]
                between[a, b] = block[np.arange(len(mine)), column].sum()
    physical = np.zeros(len(cost), np.int64)
    for a, b in zip(*linear_sum_assignment(between), strict=True):
        physical[nodes[a]] = inside[a, b]
    return physical
