"""A new plan near the present one: nearly as balanced as a fresh plan, with few slots changed.

Shapes: L layers, E experts, R slots of a layer, N nodes, G devices, K slots per device; X partitions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rayemu.placement.eplb import checked_weight, rebalance_experts
from rayemu.placement.groups import few_partitions, partitions
from rayemu.placement.moves import NodePlan

STEPS = (0.16, 0.08, 0.04, 0.03, 0.02, 0.015, 0.01, 0.006, 0.003, 0.0)  # over the fresh plan's fullest device


class Option(NamedTuple):
    """A plan for a layer: slots changed, load of the fullest device over the mean, experts [R]."""

    changes: int
    fullest: float
    plan: np.ndarray


def rebalance_incrementally(
    weight: np.ndarray,
    phy2log: np.ndarray,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    within: float = 0.01,
) -> np.ndarray:
    """Change few slots of the plan `phy2log [L, R]` so that it suits the load `weight [L, E]`.

    Returns the new plan [L, R], int64; slots that stay keep their expert. Its balance (load of the fullest
    device over the mean, averaged over layers) is at most 1 + `within` times that of the plan that
    `rebalance_experts` would make, whose rules it keeps: groups whole on nodes, no new second copy of an
    expert on a device. Layers where a change gains most are changed first. For each layer, plans are sought
    that come ever nearer to the fresh plan, by the step that lessens the squared load over a level most per
    changed slot; also with groups on other nodes, and the fresh plan laid onto the present one. That is a
    heuristic: it need not be the fewest.

    Raises:
        ValueError: an argument cannot work; the text begins with its name.
    """
    weight = checked_weight(weight)
    present = _checked_plan(phy2log, weight.shape)
    if not (within >= 0 and np.isfinite(within)):
        raise ValueError(f"within: {within} is not allowed; allowed: finite numbers from 0 on")
    fresh = rebalance_experts(weight, present.shape[1], num_groups, num_nodes, num_gpus)[0]
    groups, nodes = (num_groups, num_nodes) if num_groups % num_nodes == 0 else (1, 1)
    options = [
        _options(w, now, new, groups, nodes, num_gpus)
        for w, now, new in zip(weight, present, fresh, strict=True)
    ]
    wanted = sum(balance(w, new, num_gpus) for w, new in zip(weight, fresh, strict=True)) * (1 + within)
    chosen = choose(options, wanted)
    return np.array([option.plan for option in chosen], dtype=np.int64).reshape(present.shape)


def balance(weight: np.ndarray, plan: np.ndarray, devices: int) -> float:
    """Load of a layer's fullest device over the mean, 1 without load; copies share loads evenly."""
    mean = weight.sum() / devices
    if mean == 0:
        return 1.0
    share = weight / np.maximum(np.bincount(plan, minlength=len(weight)), 1)
    return float(share[plan].reshape(devices, -1).sum(1).max() / mean)


def choose(options: list[list[Option]], wanted: float) -> list[Option]:
    """One option of every layer, so that `fullest` sums to at most `wanted`, with few changes in all.

    Starts with the fewest changes of each layer; then the step, to any of its layer's options, that lessens
    `fullest` most per change is taken until the sum is reached or no step helps.
    """
    chosen = [min(layer, key=lambda o: (o.changes, o.fullest)) for layer in options]
    total = sum(option.fullest for option in chosen)

    def rate(now: Option, option: Option) -> float:
        return (now.fullest - option.fullest) / max(option.changes - now.changes, 0.25)

    while total > wanted * (1 + 1e-12):
        steps = [
            max((rate(now, o), i) for i, o in enumerate(layer))
            for now, layer in zip(chosen, options, strict=True)
        ]
        layer = max(range(len(steps)), key=lambda i: steps[i][0], default=-1)
        if layer < 0 or steps[layer][0] <= 0:
            break
        option = options[layer][steps[layer][1]]
        total += option.fullest - chosen[layer].fullest
        chosen[layer] = option
    return chosen


def _options(
    weight: np.ndarray, present: np.ndarray, fresh: np.ndarray, groups: int, nodes: int, devices: int
) -> list[Option]:
    """Plans of one layer between the present and the fresh one."""
    mean = weight.sum() / devices

    def option(plan: np.ndarray) -> Option:
        return Option(int((plan != present).sum()), balance(weight, plan, devices), plan)

    found = [option(laid_onto(fresh, present, nodes, devices))]
    level = balance(weight, fresh, devices) * mean
    for homes in _homes(weight, present, fresh, groups, nodes, devices, level):
        plans = _on_their_nodes(weight, present, homes, devices)
        found.append(_joined(plans, option))
        for step in STEPS:
            target = level * (1 + step)
            stuck = False
            for _, plan in plans:
                while mean > 0 and plan.load.max() > target * (1 + 1e-9):
                    if not plan.improve(target):
                        stuck = True
                        break
            found.append(_joined(plans, option))
            if stuck:
                break
    return found


def _joined(plans: list[tuple[np.ndarray, NodePlan]], option: Callable[[np.ndarray], Option]) -> Option:
    return option(np.concatenate([members[plan.plan].ravel() for members, plan in plans]))


def _homes(
    weight: np.ndarray,
    present: np.ndarray,
    fresh: np.ndarray,
    groups: int,
    nodes: int,
    devices: int,
    level: float,
) -> list[np.ndarray]:
    """Nodes of groups [groups]: ever better bounds for ever more slots that must change."""
    size = len(weight) // groups
    stay = np.zeros((groups, nodes), dtype=np.int64)  # slots that may keep their expert
    np.add.at(stay, (present // size, np.arange(len(present)) * nodes // len(present)), 1)
    load = weight.reshape(groups, size).sum(1)
    if few_partitions(groups, nodes):
        sets, cuts = partitions(groups, nodes)
        candidates = [sets[cut] for cut in cuts]
    else:
        node = np.arange(len(present)) * nodes // len(present)
        candidates = [
            np.array([np.unique(plan[node == n] // size) for n in range(nodes)])
            for plan in (present, fresh)
            if all(len(np.unique(plan[node == n] // size)) == groups // nodes for n in range(nodes))
        ]
    labelled = []
    for members in candidates:
        kept, node_of_part = _assign(stay[members].sum(1))
        home = np.empty(groups, dtype=np.int64)
        home[members.ravel()] = np.repeat(node_of_part, members.shape[1])
        bound = max(load[members].sum(1).max() * nodes / devices, level)
        labelled.append((-kept, bound, home))
    best, front = np.inf, []
    for _, bound, home in sorted(labelled, key=lambda c: c[:2]):
        if bound < best * (1 - 2e-3):
            best = bound
            front.append(home)
    return front


def _on_their_nodes(
    weight: np.ndarray, present: np.ndarray, homes: np.ndarray, devices: int
) -> list[tuple[np.ndarray, NodePlan]]:
    """Experts and plan of every node once each has the experts of its groups and no others.

    Slots whose expert leaves take the experts that come, the heaviest on the emptiest device, and then more
    copies of those with the heaviest copies.
    """
    nodes = int(homes.max()) + 1
    size = len(weight) // len(homes)
    found = []
    for node, now in enumerate(present.reshape(nodes, devices // nodes, -1)):
        members = np.flatnonzero(np.repeat(homes, size) == node)
        local = np.full(len(weight), -1)
        local[members] = np.arange(len(members))
        own, w = local[now], weight[members]  # [G, K], -1 where the expert leaves
        plan = own.copy()
        while (plan < 0).any():
            copies = np.bincount(plan[plan >= 0], minlength=len(members))
            share = w / np.maximum(copies, 1)
            load = np.append(share, 0.0)[plan].sum(1)  # [-1] is an empty slot
            lacks = (plan < 0).any(1) & ~(plan == np.arange(len(members))[:, None, None]).any(2)  # [E, G]
            comes = copies == (0 if (copies == 0).any() else copies)
            first = np.where(comes & lacks.any(1), share, -1.0)
            expert = int(first.argmax())
            room = lacks[expert] if first[expert] >= 0 else (plan < 0).any(1)
            device = int(np.where(room, load, np.inf).argmin())
            plan[device, int((plan[device] < 0).argmax())] = expert
        found.append((members, NodePlan(w, plan, own)))
    return found


def laid_onto(plan: np.ndarray, present: np.ndarray, nodes: int, devices: int) -> np.ndarray:
    """The same plan with nodes, devices of a node and slots of a device in the order nearest to `present`."""
    shape = (nodes, devices // nodes, len(plan) // devices)
    new, now = plan.reshape(shape), present.reshape(shape)
    experts = int(max(plan.max(), present.max())) + 1

    def counts(array: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(row, minlength=experts) for row in array.reshape(-1, array.shape[-1])])

    def common(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.minimum(counts(one)[:, None], counts(other)[None]).sum(2)

    _, node_at = _assign(common(new.reshape(nodes, -1), now.reshape(nodes, -1)))
    laid = np.empty(shape, dtype=plan.dtype)
    for i, node in enumerate(node_at):
        _, device_at = _assign(common(new[i], now[node]))
        for j, device in enumerate(device_at):
            laid[node, device] = _in_place(new[i, j], now[node, device])
    return laid.ravel()


def _in_place(held: np.ndarray, now: np.ndarray) -> np.ndarray:
    """The experts of a device in such slots that those it has already stay where they are."""
    left = held.tolist()
    placed = np.full(len(now), -1, dtype=held.dtype)
    for slot, expert in enumerate(now.tolist()):
        if expert in left:
            left.remove(expert)
            placed[slot] = expert
    placed[placed < 0] = left
    return placed


def _assign(common: np.ndarray) -> tuple[int, np.ndarray]:
    """Columns of rows so that the sum is greatest, and that sum."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(common, maximize=True)
    return int(common[rows, columns].sum()), columns


def _checked_plan(phy2log: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    plan = np.asarray(phy2log)
    layers, experts = shape
    if plan.ndim != 2 or len(plan) != layers or plan.dtype.kind not in "iu":
        raise ValueError(
            f"phy2log: {plan.dtype} of shape {plan.shape} is not allowed; allowed: whole numbers, "
            f"[layers, slots], {layers} layers as weight has"
        )
    plan = plan.astype(np.int64)
    outside = np.argwhere((plan < 0) | (plan >= experts))
    if len(outside):
        layer, slot = outside[0]
        raise ValueError(
            f"phy2log: expert {plan[layer, slot]} in layer {layer}, slot {slot} is not allowed; "
            f"allowed: 0 to {experts - 1}"
        )
    for layer, row in enumerate(plan):
        missing = np.setdiff1d(np.arange(experts), row)
        if len(missing):
            raise ValueError(f"phy2log: layer {layer} has no slot for expert {missing[0]}; each needs one")
    return plan
