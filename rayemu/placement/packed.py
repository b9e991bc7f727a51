"""A plan for the experts of nodes, each with its devices: counts, packing, swaps, and other counts tried.

Shapes: B problems (a node in a layer), E experts of the node, G devices, K slots per device.
"""

from __future__ import annotations

import numpy as np

from rayemu.placement.copies import copy_counts
from rayemu.placement.packing import pack_rows, part_copies
from rayemu.placement.pairs import all_ways, best_pairs, few_ways
from rayemu.placement.swaps import even_out

GOOD = 8e-4  # over the target: what is no better is planned again with other counts
# Copies of the heaviest `first` experts are at least `share` of the target each, where that takes fewer of
# them. The lightest copies possible are often many of a little over half a device, which pack badly.
CAPS = ((0.8, 2), (0.93, 20), (0.7, 20), (0.96, 2), (0.85, 3), (0.7, 2))
MORE = 2  # and what is POOR even so: each count from the fewest on, for each of the three heaviest experts
POOR = 1e-2
FEW, MANY = 500, 10_000  # ways to share the slots that are all tried; with two slots per device
FUNNEL = ((3, 3), (2, 7), (1, 0))  # of these tries the best so many get so many rounds of swaps
WIDE = ((5, 6), (2, 70), (1, 0))  # and of all ways, where those are tried
FIRST, LAST = 20, 70  # rounds before other counts are tried, and for what is not GOOD after it


def pack_experts(weight: np.ndarray, slots: int, devices: int, target: np.ndarray) -> np.ndarray:
    """Expert [B, G, K] of every slot, so that the fullest device of each problem is near its `target [B]`.

    `weight [B, E]` is load, `slots` a multiple of `devices`, at least E. No device holds an expert twice
    unless it has more slots than there are experts. `target` is what no plan can beat: the load per device or
    a bound above it.
    """
    problems, experts = weight.shape
    per_device = slots // devices
    if per_device >= experts:  # every device holds every expert: all are alike
        alike = np.arange(per_device) % experts
        return np.broadcast_to(alike, (problems, devices, per_device)).copy()
    order = np.argsort(-weight, axis=1, kind="stable")  # from here on experts go by rank, heaviest first
    ranked = np.take_along_axis(weight, order, 1)
    most = np.full(weight.shape, devices)
    expert, load = pack_rows(ranked, copy_counts(ranked, slots, most), devices)
    part_copies(expert, load)
    expert, load = even_out(expert, load, target, rounds=FIRST)
    if slots == 2 * devices and few_ways(slots, experts, MANY):
        rows = _far(load, target, 1e-9)
        _keep_better(expert, load, rows, *best_pairs(ranked[rows], slots, _fullest(load)[rows]))
    else:
        few = few_ways(slots, experts, FEW)
        for far, limits in ((GOOD, _all),) if few else ((GOOD, _caps), (POOR, _steps)):
            rows = _far(load, target, far)
            if len(rows):
                most = limits(ranked[rows], slots, devices, target[rows])
                best = _best(ranked[rows], slots, devices, target[rows], most, WIDE if few else FUNNEL)
                _keep_better(expert, load, rows, *best)
        rows = _far(load, target, GOOD)
        last = even_out(expert[:, rows], load[:, rows], target[rows], rounds=LAST)
        _keep_better(expert, load, rows, *last)
    flat = np.take_along_axis(order, expert.transpose(1, 2, 0).reshape(problems, slots), 1)
    return flat.reshape(problems, devices, per_device)


def _caps(weight: np.ndarray, slots: int, devices: int, target: np.ndarray) -> np.ndarray:
    """Most copies of every expert by CAPS [B, X, E]."""
    most = np.full((len(weight), len(CAPS), weight.shape[1]), devices)
    for i, (share, first) in enumerate(CAPS):
        most[:, i, :first] = _fewest(weight[:, :first], share * target, devices)
    return most


def _steps(weight: np.ndarray, slots: int, devices: int, target: np.ndarray) -> np.ndarray:
    """Most copies of every expert by MORE [B, X, E]."""
    first = min(3, weight.shape[1])
    steps = np.indices((MORE,) * first).reshape(first, -1).T  # [X, first]
    most = np.full((len(weight), len(steps), weight.shape[1]), devices)
    most[:, :, :first] = _fewest(weight[:, :first], target, devices)[:, None] + steps
    return np.minimum(most, devices)


def _all(weight: np.ndarray, slots: int, devices: int, target: np.ndarray) -> np.ndarray:
    """All ways to share the slots [B, X, E]."""
    ways = all_ways(slots, weight.shape[1])
    return np.repeat(ways[None, (ways <= devices).all(1)], len(weight), 0)


def _fewest(weight: np.ndarray, lightest: np.ndarray, devices: int) -> np.ndarray:
    """Copies for none to be over the load `lightest [B]`, 1 to `devices`."""
    return np.ceil(weight / np.maximum(lightest, np.finfo(float).tiny)[:, None]).clip(1, devices)


def _best(
    weight: np.ndarray,
    slots: int,
    devices: int,
    target: np.ndarray,
    most: np.ndarray,
    funnel: tuple[tuple[int, int], ...],
) -> tuple[np.ndarray, np.ndarray]:
    """The best plan with one of the limits `most [B, X, E]`: expert and load [K, B, G] of every slot."""
    problems, tries, experts = most.shape
    most[most.sum(2) < slots] = devices  # too few for all slots: no limits
    many = np.repeat(weight, tries, 0)
    expert, load = pack_rows(many, copy_counts(many, slots, most.reshape(-1, experts)), devices)
    for tries, rounds in funnel:
        best = np.argsort(_fullest(load).reshape(problems, -1), axis=1, kind="stable")[:, :tries]
        best += np.arange(problems)[:, None] * (load.shape[1] // problems)
        expert, load = expert[:, best.ravel()], load[:, best.ravel()]
        part_copies(expert, load)
        expert, load = even_out(expert, load, np.repeat(target, best.shape[1]), rounds)
    return expert, load


def _fullest(load: np.ndarray) -> np.ndarray:
    return load.sum(0).max(1)


def _far(load: np.ndarray, target: np.ndarray, share: float) -> np.ndarray:
    return np.flatnonzero(_fullest(load) > target * (1 + share))


def _keep_better(
    expert: np.ndarray, load: np.ndarray, rows: np.ndarray, new_expert: np.ndarray, new_load: np.ndarray
) -> None:
    """Put new plans of the problems `rows` in the place of fuller ones, in place."""
    better = _fullest(new_load) < _fullest(load)[rows]
    expert[:, rows[better]], load[:, rows[better]] = new_expert[:, better], new_load[:, better]
