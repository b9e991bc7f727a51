"""How good a plan is: what travels, how far, how evenly it is spread, and what replicas are good for.

Tokens start at every module alike, and each of their rows goes to the copy that is fewest hops away. `group
[M]` says what counts as one place: arange(M) for modules, module_to_node for nodes. Results are per layer;
layers without slots give 0.
"""

from __future__ import annotations

import numpy as np

from rayemu.placement.placement import Placement


def pairs_apart(placement: Placement, coactivation: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the share [L] of co-chosen pairs whose experts no group holds together.

    `coactivation [L, E, E]` is symmetric; this is the cut weight of graph partitioning, over all weight.
    """
    apart = np.zeros(len(coactivation))
    for layer, pairs in enumerate(coactivation):
        held = _held(placement, layer, len(pairs), group).astype(np.float32)
        if held.any():
            apart[layer] = pairs[held @ held.T == 0].sum() / max(pairs.sum() - np.trace(pairs), 1)
    return apart


def steps_apart(placement: Placement, transitions: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the share [L - 1] of steps from expert to expert of the next layer that leave every group."""
    apart = np.zeros(len(transitions))
    for layer, steps in enumerate(transitions):
        held, after = (
            _held(placement, at, len(steps), group).astype(np.float32) for at in (layer, layer + 1)
        )
        if held.any() and after.any():
            apart[layer] = steps[held @ after.T == 0].sum() / max(steps.sum(), 1)
    return apart


def messages(
    placement: Placement, choices: np.ndarray, group: np.ndarray, distances: np.ndarray
) -> np.ndarray:
    """Return to how many groups [L] other than its home's a token of `choices [T, L, K]` goes on average.

    A group gets a token once, however many of its experts are there, as from an exchange that merges rows. Of
    copies equally near, home and expert take turns. Negative choices are none.
    """
    sent = np.zeros(choices.shape[1])
    number = np.unique(group, return_inverse=True)[1]
    for layer in range(len(sent)):
        copies = _copies(placement, layer)
        token, choice = np.nonzero(choices[:, layer] >= 0)
        expert = choices[token, layer, choice]  # [R]
        for home in range(len(group)):
            nearest = np.full(max([e for e, _ in copies], default=-1) + 1, -1)
            for e, modules in copies:
                near = modules[distances[home, modules] == distances[home, modules].min()]
                nearest[e] = number[near[(home + e) % len(near)]]
            seen = np.zeros((len(choices), int(number.max()) + 1), bool)
            seen[token, nearest[expert]] = True
            seen[:, number[home]] = False
            sent[layer] += seen.sum() / max(len(choices), 1) / len(group)
    return sent


def mean_hops(placement: Placement, loads: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Return the hops [L] of a row to its nearest copy, with loads [L, E] and `distances [M, M]`."""
    hops = np.zeros(len(loads))
    for layer, rows in enumerate(loads):
        for expert, modules in _copies(placement, layer):
            hops[layer] += rows[expert] * distances[:, modules].min(axis=1).mean()
        hops[layer] /= max(rows.sum(), 1e-300)
    return hops


def load_deviation(placement: Placement, loads: np.ndarray, modules: int) -> np.ndarray:
    """Return the standard deviation [L] of the modules' loads over their mean; copies share theirs evenly."""
    each = placement.module_loads(loads, modules)  # [L, M]
    return np.asarray(each.std(axis=1) / np.maximum(each.mean(axis=1), 1e-300))


def replica_hit_rate(placement: Placement, loads: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Return the share [L] of rows for which some replica is nearer than the expert's first copy."""
    hits = np.zeros(len(loads))
    for layer, rows in enumerate(loads):
        for expert, modules in _copies(placement, layer):
            nearer = distances[:, modules].min(axis=1) < distances[:, modules[0]]  # [home]
            hits[layer] += rows[expert] * nearer.mean()
        hits[layer] /= max(rows.sum(), 1e-300)
    return hits


def ring(module_to_node: np.ndarray) -> np.ndarray:
    """Return hops [M, M] where nodes form a ring: 0 to itself, 1 in a node, 1 more for each node further."""
    nodes = int(module_to_node.max()) + 1
    steps = np.abs(module_to_node[:, None] - module_to_node)
    hops = 1 + np.minimum(steps, nodes - steps)
    np.fill_diagonal(hops, 0)
    return hops


def _held(placement: Placement, layer: int, experts: int, group: np.ndarray) -> np.ndarray:
    """Return which groups hold a copy of each expert of a layer: bool [E, groups]."""
    number = np.unique(group, return_inverse=True)[1]
    held = np.zeros((experts, int(number.max()) + 1), bool)
    mine = placement.layer == layer
    held[placement.expert[mine], number[placement.module[mine]]] = True
    return held


def _copies(placement: Placement, layer: int) -> list[tuple[int, np.ndarray]]:
    """Return each expert of a layer with the modules of its copies, the first copy first."""
    mine = np.flatnonzero(placement.layer == layer)
    experts, start = np.unique(placement.expert[mine], return_index=True)
    return (
        list(zip(experts.tolist(), np.split(placement.module[mine], start[1:]), strict=True))
        if len(mine)
        else []
    )
