"""Loads of devices from loads of experts, and plans as flat tables of slots.

W windows or batches, L layers, E experts, R slots per layer, S slots in all, G devices.
A plan is either `phy2log [L, R]` as EPLB has it (slot r is on device r // (R / G), -1 is an empty slot) or a
slot table with `layer`, `expert` and `module`, each [S], such as `rayemu.placement.Placement`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np


class SlotTable(Protocol):
    """What a placement has: one entry per slot."""

    @property
    def layer(self) -> np.ndarray: ...
    @property
    def expert(self) -> np.ndarray: ...
    @property
    def module(self) -> np.ndarray: ...


Plan: TypeAlias = np.ndarray | SlotTable


class Slots(NamedTuple):
    """A plan as flat arrays, slots of a layer in order."""

    layer: np.ndarray  # [S] int64
    expert: np.ndarray  # [S] int64
    module: np.ndarray  # [S] int64


def slots_of(plan: Plan, devices: int) -> Slots:
    """The slots of a plan that hold an expert, whichever form it has.

    Raises ValueError when `devices` does not divide R, or a slot names a device out of range.
    """
    if isinstance(plan, np.ndarray):
        if plan.ndim != 2 or devices < 1 or plan.shape[1] % devices:
            raise ValueError(
                f"plan: {plan.shape} is not allowed; allowed: [layers, slots] with slots a multiple of the "
                f"{devices} devices"
            )
        layer, slot = np.nonzero(plan >= 0)
        return Slots(layer, plan[layer, slot].astype(np.int64), slot // (plan.shape[1] // devices))
    slots = Slots(*(np.asarray(a, np.int64) for a in (plan.layer, plan.expert, plan.module)))
    if slots.module.size and not 0 <= slots.module.min() <= slots.module.max() < devices:
        bad = slots.module[(slots.module < 0) | (slots.module >= devices)][0]
        raise ValueError(f"plan: module {bad} is not allowed; allowed: 0 to {devices - 1}")
    return slots


def copies_of(slots: Slots, layers: int, experts: int) -> np.ndarray:
    """Copies per expert [L, E] int64; ValueError where a slot names a layer or expert out of range."""
    for name, given, limit in (("layer", slots.layer, layers), ("expert", slots.expert, experts)):
        bad = given[(given < 0) | (given >= limit)]
        if bad.size:
            raise ValueError(f"plan: {name} {bad[0]} is not allowed; allowed: 0 to {limit - 1}")
    counted = np.bincount(slots.layer * experts + slots.expert, minlength=layers * experts)
    return counted.reshape(layers, experts)


def checked_loads(
    loads: np.ndarray | Sequence, dimensions: tuple[int, ...], name: str = "loads"
) -> np.ndarray:
    """The loads as float64, or a ValueError: they must be finite and not negative."""
    array = np.asarray(loads, np.float64)
    if array.ndim not in dimensions:
        allowed = " or ".join(map(str, dimensions))
        raise ValueError(f"{name}: {array.ndim} dimensions are not allowed; allowed: {allowed}")
    if not np.all(np.isfinite(array)) or (array.size and array.min() < 0):
        raise ValueError(f"{name}: negative or infinite values are not allowed; allowed: 0 and above")
    return array


def device_loads(loads: np.ndarray | Sequence, plan: Plan, devices: int) -> np.ndarray:
    """Load per device [L, G] or [W, L, G] that `plan` gives to expert loads [L, E] or [W, L, E].

    An expert's rows are shared out evenly over its copies, as EPLB assumes. The unit stays that of `loads`.
    Raises ValueError when an expert with rows has no slot, naming layer and expert.
    """
    array = checked_loads(loads, (2, 3))
    layers, experts = array.shape[-2:]
    slots = slots_of(plan, devices)
    copies = copies_of(slots, layers, experts)
    windows = array.reshape(-1, layers, experts)
    homeless = np.argwhere((copies == 0) & (windows > 0).any(axis=0))
    if homeless.size:
        layer, expert = homeless[0]
        raise ValueError(f"plan: layer {layer}, expert {expert} has rows but no slot; give it one")
    per_slot = windows[:, slots.layer, slots.expert] / copies[slots.layer, slots.expert]  # [W, S]
    cell = slots.layer * devices + slots.module  # [S]
    summed = [np.bincount(cell, weights=rows, minlength=layers * devices) for rows in per_slot]
    return np.reshape(summed, (*array.shape[:-1], devices))
