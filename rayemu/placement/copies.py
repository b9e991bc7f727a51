"""Copy counts: how many copies each expert gets when a node has more slots than experts.

Shapes: B problems (a node in a layer), E experts of one node.
"""

from __future__ import annotations

import numpy as np


def copy_counts(weight: np.ndarray, slots: int, most: np.ndarray, halvings: int = 14) -> np.ndarray:
    """Copies per expert [B, E] that make the heaviest copy lightest, `slots` in all.

    `weight [B, E]` is load, with every row from heaviest to lightest, and `most [B, E]` the most copies that
    an expert may have (1 and up, `slots` in all at least). The load per copy is found by bisection; what is
    left of the slots then goes one by one to the expert with the heaviest copies, of equals to the first.
    """
    heaviest = weight[:, 0]
    low = np.where(most == most.max(1, keepdims=True), weight, 0.0).sum(1) / slots
    heavy = max(int((weight > low[:, None]).sum(1).max(initial=0)), 1)  # the others need no second copy
    w, cap = weight[:, :heavy], most[:, :heavy]
    room = slots - (weight.shape[1] - heavy)
    low, high = np.maximum(low, np.finfo(float).tiny), np.maximum(heaviest, np.finfo(float).tiny)
    for _ in range(halvings):
        middle = (low + high) / 2
        fits = np.minimum(np.ceil(w / middle[:, None]), cap).clip(1).sum(1) <= room
        high, low = np.where(fits, middle, high), np.where(fits, low, middle)
    copies = np.ones(weight.shape, dtype=np.int64)
    copies[:, :heavy] = np.minimum(np.ceil(w / high[:, None]), cap).clip(1)
    _hand_out(weight, copies, slots, most)
    return copies


def _hand_out(weight: np.ndarray, copies: np.ndarray, slots: int, most: np.ndarray) -> None:
    left = slots - copies.sum(1)
    rows = np.flatnonzero(left > 0)
    while len(rows):
        share = np.where(copies[rows] < most[rows], weight[rows] / copies[rows], -1.0)
        equal = share == share.max(1, keepdims=True)  # all at once: equal loads would take a turn each
        chosen = equal & (equal.cumsum(1) <= left[rows, None])
        copies[rows] += chosen
        left[rows] -= chosen.sum(1)
        rows = rows[left[rows] > 0]


def replica_bound(weight: np.ndarray, slots: int, devices: int) -> np.ndarray:
    """Least possible load of the heaviest copy [B], with `slots` copies, of one expert at most `devices`.

    `weight [B, E]` has every row from heaviest to lightest.
    """
    most = np.full(weight.shape, max(devices, -(-slots // weight.shape[1])))
    return (weight / copy_counts(weight, slots, most, halvings=50)).max(1)
