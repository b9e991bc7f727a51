"""Two slots per device: the best plan, by trying all copy counts, for few experts.

Shapes: B problems (a node in a layer), E experts of the node, G devices, 2 slots per device.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations

import numpy as np


def few_ways(slots: int, experts: int, most: int) -> bool:
    """Whether there are at most so many ways to share the slots among the experts."""
    return math.comb(slots - 1, experts - 1) <= most


def best_pairs(weight: np.ndarray, slots: int, limit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least fullest plan of all, where it is below `limit [B]`: expert and load [2, B, G] of every slot.

    `weight [B, E]` is load. Where no plan is below the limit, the load of every slot is infinite. It takes
    time in proportion to the ways to share the slots: see `few_ways`.
    """
    problems, experts = weight.shape
    devices = slots // 2
    expert = np.zeros((2, problems, devices), dtype=np.int64)
    load = np.full((2, problems, devices), np.inf)
    ways = all_ways(slots, experts)
    for b in range(problems):
        useful = ways[((weight[b] < ways * limit[b]) & (ways <= devices)).all(1)]
        share = weight[b] / useful
        sizes = np.sort(np.repeat(share.ravel(), useful.ravel()).reshape(-1, slots), axis=1)
        least = (sizes[:, :devices] + sizes[:, : devices - 1 : -1]).max(1)
        best = limit[b]
        for way in np.argsort(least, kind="stable"):
            if least[way] >= best:
                break
            copies = sorted(
                (float(share[way, e]), e) for e in np.repeat(np.arange(experts), useful[way]).tolist()
            )
            fullest, pairs = _pair(copies)
            if fullest < best:
                best = fullest
                load[:, b] = np.array([[one[0], other[0]] for one, other in pairs]).T
                expert[:, b] = np.array([[one[1], other[1]] for one, other in pairs]).T
    return expert, load


Copy = tuple[float, int]  # load and expert


def _pair(copies: list[Copy]) -> tuple[float, list[tuple[Copy, Copy]]]:
    """Pair sorted copies, none with its like, so that the fullest pair is least full.

    The lightest with the heaviest, and so on, is best. Where that pairs an expert with itself, its copies,
    which are all equal, take copies next to each other from the others, which ones is tried; the rest is
    paired by itself.
    """
    half = len(copies) // 2
    pairs = list(zip(copies[:half], copies[: half - 1 : -1], strict=True)) if half else []
    doubled = next((one[1] for one, other in pairs if one[1] == other[1]), None)
    if doubled is None:
        return max((one[0] + other[0] for one, other in pairs), default=0.0), pairs
    own = [copy for copy in copies if copy[1] == doubled]
    others = [copy for copy in copies if copy[1] != doubled]
    best: tuple[float, list[tuple[Copy, Copy]]] = (math.inf, [])
    for start in range(len(others) - len(own) + 1):
        end = start + len(own)
        rest, rest_pairs = _pair(others[:start] + others[end:])
        fullest = max(rest, own[0][0] + others[end - 1][0])
        if fullest < best[0]:
            best = fullest, [*zip(own, others[start:end], strict=True), *rest_pairs]
    return best


@cache
def all_ways(slots: int, experts: int) -> np.ndarray:
    """All counts of `slots` copies for `experts`, each at least one: [X, E]."""
    cuts = np.array(list(combinations(range(1, slots), experts - 1)), dtype=np.int64).reshape(-1, experts - 1)
    edges = np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, slots)))
    return np.diff(edges, axis=1)
