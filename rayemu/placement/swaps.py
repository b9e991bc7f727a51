"""Rounds of swaps between full and empty devices, for many problems at once.

Shapes: B problems (a node in a layer), G devices, K slots per device; slots come first, [K, B, G].
"""

from __future__ import annotations

import numpy as np

from rayemu.placement.packing import swap

CLOSE = 1e-4  # of the target: a problem this near to it is done


def even_out(
    expert: np.ndarray, load: np.ndarray, target: np.ndarray, rounds: int, patience: int = 6
) -> tuple[np.ndarray, np.ndarray]:
    """Swap copies between devices until the fullest one of each problem is within CLOSE of its `target [B]`.

    Takes and returns expert [K, B, G] and load [K, B, G] of every slot; the devices of a problem come back in
    another order. In each round the devices over the target are paired with emptier ones, other ones in every
    round, and each pair swaps the two copies whose difference is nearest to half of its own, if that helps
    and puts no expert twice on a device. A problem is left as it is after `patience` rounds without a swap.
    Equal swaps: the one of the last slots; equal devices: the lower number.
    """
    expert, load = expert.copy(), load.copy()
    slots, _, devices = expert.shape
    half = devices // 2
    limit = target * (1 + CLOSE)
    at = np.arange(len(target))  # problems still worked on, and their slots
    e, x, idle = expert, load, np.zeros(len(target), dtype=np.int64)
    choices = np.arange(slots * slots)[:, None, None].astype(np.min_scalar_type(slots * slots))
    for turn in range(rounds if half else 0):
        total = x.sum(0)
        go = (total.max(1) > limit[at]) & (idle < patience)
        if not go.all():
            expert[:, at[~go]], load[:, at[~go]] = e[:, ~go], x[:, ~go]
            at, e, x, idle, total = at[go], e[:, go], x[:, go], idle[go], total[go]
        n = len(at)
        if not n:
            break
        order = (np.argsort(-total, axis=1, kind="stable") + np.arange(n)[:, None] * devices).ravel()
        total = total.ravel()[order].reshape(n, devices)  # [B, G], fullest first
        e = np.take(e.reshape(slots, -1), order, axis=1).reshape(slots, n, devices)
        x = np.take(x.reshape(slots, -1), order, axis=1).reshape(slots, n, devices)
        over = total > limit[at, None]
        full = min(int(over.sum(1).max()), half)
        partner = devices - 1 - (np.arange(full) + int(_spread(turn) * half)) % half
        want = (total[:, :full] - total[:, partner]) / 2  # [B, full]
        gap = np.abs(x[:, None, :, :full] - (x[None, :, :, partner] + want)).reshape(-1, n, full)
        least = gap.min(0)
        choice = np.where(gap == least, choices, 0).max(0)
        b, device = np.nonzero((least < want * (1 - 1e-9)) & over[:, :full])
        slot, other_slot = np.divmod(choice[b, device].astype(np.int64), slots)
        other = partner[device]
        twice = (e[:, b, other] == e[slot, b, device]) | (e[:, b, device] == e[other_slot, b, other])
        b, slot, device, other_slot, other = (v[~twice.any(0)] for v in (b, slot, device, other_slot, other))
        swap(e, b, (slot, device), (other_slot, other))
        swap(x, b, (slot, device), (other_slot, other))
        idle += 1
        idle[b] = 0
    expert[:, at], load[:, at] = e, x
    return expert, load


def _spread(turn: int) -> float:
    """Numbers between 0 and 1 that lie far from the ones before: 0, 1/2, 1/4, 3/4, 1/8 (van der Corput)."""
    value, step = 0.0, 0.5
    while turn:
        value += step * (turn & 1)
        turn >>= 1
        step /= 2
    return value
