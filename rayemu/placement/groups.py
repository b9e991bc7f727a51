"""Groups of experts to nodes, by what the fullest device of the best plan could hold at least.

Shapes: L layers, E experts, N nodes.
"""

from __future__ import annotations

from functools import cache
from itertools import combinations
from math import comb

import numpy as np

from rayemu.placement.copies import replica_bound
from rayemu.placement.packing import pack_rows
from rayemu.placement.swaps import even_out

MANY = 3000  # partitions; more than this are not listed, but groups packed as experts are


def groups_to_nodes(
    weight: np.ndarray, groups: int, nodes: int, slots: int, devices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the groups of every node: experts [L, N, E / N] and the bound [L] of the choice.

    `weight [L, E]` is load; `slots` and `devices` are those of all nodes. The bound is the maximum over nodes
    of the load per device and of the replica bound; with up to MANY partitions of groups to nodes the choice
    is the first of those with the least bound, which then is a lower bound on the load of any plan's fullest
    device.
    """
    layers, experts = weight.shape
    by_group = weight.reshape(layers, groups, experts // groups)
    size = groups // nodes
    node_slots, node_devices = slots // nodes, devices // nodes

    def bound(chosen: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Of sets of groups [rows, X, size]: [rows, X]."""
        w = by_group[rows[:, None, None], chosen].reshape(-1, size * by_group.shape[2])
        w = -np.sort(-w, axis=1)
        mean = w.sum(1) / node_devices
        least = mean.copy()
        enough = np.ceil(w / np.maximum(mean, np.finfo(float).tiny)[:, None]).clip(1).sum(1) <= node_slots
        least[~enough] = np.maximum(mean[~enough], replica_bound(w[~enough], node_slots, node_devices))
        return least.reshape(chosen.shape[:2])

    every = np.arange(layers)
    if _count(groups, nodes) > MANY:
        chosen = _packed(by_group.sum(2), nodes)
        least = bound(chosen, every).max(1)
    else:
        sets, partitions = _partitions(groups, nodes)
        means = by_group.sum(2)[:, sets].sum(2) / node_devices
        chosen = sets[partitions[means[:, partitions].max(2).argmin(1)]]  # [L, N, size], the best by mean
        least = bound(chosen, every).max(1)
        short = np.flatnonzero(least > means[:, partitions].max(2).min(1))
        costs = bound(np.broadcast_to(sets, (len(short), *sets.shape)), short)[:, partitions].max(2)
        chosen[short] = sets[partitions[costs.argmin(1)]]
        least[short] = costs.min(1, initial=np.inf)
    member = chosen[..., None] * by_group.shape[2] + np.arange(by_group.shape[2])
    return member.reshape(layers, nodes, experts // nodes), least


def _packed(load: np.ndarray, nodes: int) -> np.ndarray:
    """Groups packed to nodes as copies to devices are: [L, N, size]."""
    chosen, load = pack_rows(load, np.ones(load.shape, dtype=np.int64), nodes)
    chosen, _ = even_out(chosen, load, load.sum((0, 2)) / nodes, rounds=60)
    return np.sort(chosen.transpose(1, 2, 0), axis=2)


def _count(groups: int, nodes: int) -> int:
    """Ways to cut `groups` into `nodes` equal parts whose order is all the same."""
    size, ways = groups // nodes, 1
    for left in range(groups, 0, -size):
        ways *= comb(left - 1, size - 1)
    return ways


@cache
def _partitions(groups: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Sets of groups [X, size], and partitions as indices of sets [P, N]."""
    size = groups // nodes
    sets = list(combinations(range(groups), size))
    number = {members: i for i, members in enumerate(sets)}

    def cut(left: tuple[int, ...]) -> list[list[int]]:
        if not left:
            return [[]]
        found = []
        for rest in combinations(left[1:], size - 1):
            members = (left[0], *rest)
            others = tuple(g for g in left if g not in members)
            found += [[number[members], *tail] for tail in cut(others)]
        return found

    return np.array(sets), np.array(cut(tuple(range(groups))))
