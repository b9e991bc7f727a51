"""Packing copies onto the devices of a node: row by row, then without two copies of an expert on a device.

Shapes: B problems (a node in a layer), E experts, G devices, K slots per device. Slots come first, [K, B, G]:
NumPy reduces over a leading axis several times as fast as over a short last one.
"""

from __future__ import annotations

import numpy as np


def pack_rows(weight: np.ndarray, copies: np.ndarray, devices: int) -> tuple[np.ndarray, np.ndarray]:
    """Deal the copies to devices: expert [K, B, G] int64 and load [K, B, G] of every slot.

    `weight [B, E]` is load and `copies [B, E]` counts of K * G in all. Copies are sorted by load and cut into
    rows of G; in each row the heaviest copy goes to the device with the least load so far. Equal copies go by
    expert, equal devices by number.
    """
    problems = len(weight)
    share = weight / copies
    order = np.argsort(-share, axis=1, kind="stable")
    counts = np.take_along_axis(copies, order, 1).ravel()
    per_device = int(copies[0].sum()) // devices if problems else 0
    shape = (problems, per_device, devices)
    sorted_expert = np.repeat(order.ravel(), counts).reshape(shape)
    sorted_load = np.repeat(np.take_along_axis(share, order, 1).ravel(), counts).reshape(shape)
    expert = np.empty((per_device, problems, devices), dtype=np.int64)
    load = np.empty((per_device, problems, devices))
    total = np.zeros((problems, devices))
    for row in range(per_device):
        emptiest = np.argsort(total, axis=1, kind="stable")
        np.put_along_axis(expert[row], emptiest, sorted_expert[:, row], 1)
        np.put_along_axis(load[row], emptiest, sorted_load[:, row], 1)
        total += load[row]
    return expert, load


def part_copies(expert: np.ndarray, load: np.ndarray) -> None:
    """Swap copies between devices, in place, until no device holds two of the same expert.

    No expert may have more copies than there are devices. Each doubled copy is swapped with the slot that
    leaves the fuller one of the two devices emptiest; where no swap helps, the problem's copies are dealt
    round the devices anew, which always parts them.
    """
    slots, _, devices = expert.shape
    rows = np.flatnonzero(_doubled(expert).any((0, 2)))
    for _ in range(slots * devices):
        doubled = _doubled(expert[:, rows])
        rows, doubled = rows[doubled.any((0, 2))], doubled[:, doubled.any((0, 2))]
        if not len(rows):
            return
        e, x = expert[:, rows], load[:, rows]
        n = np.arange(len(rows))
        first = doubled.transpose(1, 0, 2).reshape(len(rows), -1).argmax(1)
        slot, device = np.divmod(first, devices)
        mine, moved, weight = e[:, n, device], e[slot, n, device], x[slot, n, device]
        total = x.sum(0)
        here = total[n, device]
        lacks = (e != moved[:, None]).all(0)  # [B, G]
        new = (e[None] != mine[:, None, :, None]).all(0)  # [K, B, G]
        cost = np.maximum((here - weight)[:, None] + x, (total + weight[:, None]) - x)
        cost = np.where(lacks & new, cost, np.inf).transpose(1, 0, 2).reshape(len(rows), -1)
        other_slot, other = np.divmod(cost.argmin(1), devices)
        swappable = np.isfinite(cost.min(1))
        for stuck in rows[~swappable]:
            _deal(expert, load, stuck)
        r, s, d, t, f = (v[swappable] for v in (rows, slot, device, other_slot, other))
        swap(expert, r, (s, d), (t, f))
        swap(load, r, (s, d), (t, f))


def swap(
    array: np.ndarray,
    problem: np.ndarray,
    one: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
) -> None:
    """Exchange the values of pairs of (slot, device) in `array [K, B, G]`, all pairs disjoint, in place."""
    (s, d), (t, f) = one, other
    array[s, problem, d], array[t, problem, f] = array[t, problem, f], array[s, problem, d]


def _doubled(expert: np.ndarray) -> np.ndarray:
    """Slots whose expert an earlier slot of the device holds already [K, B, G]."""
    found = np.zeros(expert.shape, dtype=bool)
    for slot in range(1, len(expert)):
        found[slot] = (expert[:slot] == expert[slot]).any(0)
    return found


def _deal(expert: np.ndarray, load: np.ndarray, problem: int) -> None:
    """Copies in order of their expert, one device after the other."""
    order = np.argsort(expert[:, problem].ravel(), kind="stable")
    shape = expert[:, problem].shape
    expert[:, problem] = expert[:, problem].ravel()[order].reshape(shape)
    load[:, problem] = load[:, problem].ravel()[order].reshape(shape)
