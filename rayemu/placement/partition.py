"""Parts of a weighted graph of experts: parts of given sizes with as much weight inside as exchanges find."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Split = Callable[[np.ndarray, np.ndarray], np.ndarray]  # weights [E, E], sizes [P] -> part [E]


def in_two_levels(
    weights: np.ndarray, sizes: np.ndarray, module_to_node: np.ndarray, split: Split
) -> np.ndarray:
    """Split experts over the nodes, then those of each node over its modules: the module of each [E].

    `weights [E, E]` is symmetric, `sizes [M]` the experts of each module. Links between nodes are the slow
    ones, so they come first.
    """
    nodes = np.bincount(module_to_node, weights=sizes).astype(np.int64)  # [N]
    node = split(weights, nodes)
    module = np.zeros(len(weights), np.int64)
    for n in np.flatnonzero(nodes).tolist():
        experts, modules = np.flatnonzero(node == n), np.flatnonzero(module_to_node == n)
        module[experts] = modules[split(weights[np.ix_(experts, experts)], sizes[modules])]
    return module


def blocks(weights: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Split consecutive experts into parts [E], then exchange what gains."""
    return exchanged(weights, np.repeat(np.arange(len(sizes)), sizes))


def exchanged(weights: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Exchange two vertices' parts [E] while that puts more weight inside parts, the best pair first.

    Kernighan and Lin's gain (1970), without their look-ahead: a local optimum, sizes kept.
    """
    part, parts = part.copy(), int(part.max(initial=0)) + 1
    every = np.arange(len(part))
    tie = 1e-9 * max(weights.max(initial=0), 1e-300)
    for _ in range(8 * len(part)):
        inside = weights @ np.eye(parts)[part]  # [E, P] weight of a vertex to each part
        move = inside[:, part] - inside[every, part][:, None]  # [u, v] gain of u when it goes to v's part
        gain = move + move.T - 2 * weights
        gain[part[:, None] == part] = 0
        u, v = np.unravel_index(gain.argmax(), gain.shape) if len(part) else (0, 0)
        if not len(part) or gain[u, v] <= tie:
            break
        part[u], part[v] = part[v], part[u]
    return part


def resized(weights: np.ndarray, part: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Move vertices from parts [E] that are too large to ones that are too small, at least loss."""
    part = part.copy()
    while True:
        over = sizes - np.bincount(part, minlength=len(sizes))  # [P] below 0: too large
        if not (over < 0).any():
            return part
        inside = weights @ np.eye(len(sizes))[part]  # [E, P]
        gain = inside - inside[np.arange(len(part)), part][:, None]
        gain[over[part] >= 0] = -np.inf
        gain[:, over <= 0] = -np.inf
        u, p = np.unravel_index(gain.argmax(), gain.shape)
        part[u] = p
