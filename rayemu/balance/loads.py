"""Loads of devices from loads of experts under a plan.

W windows or batches, L layers, E experts, R slots per layer, S slots in all, G devices. A plan is a
`Placement` or `phy2log [L, R]` as EPLB has it: slot r is on device r // (R / G), and -1 is an empty slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from rayemu.placement import Placement, from_columns

Plan: TypeAlias = np.ndarray | Placement


def as_placement(plan: Plan, devices: int) -> Placement:
    """The plan as a slot table.

    Raises ValueError when `devices` does not divide R, or a slot names a device out of range.
    """
    if isinstance(plan, np.ndarray):
        if plan.ndim != 2 or devices < 1 or plan.shape[1] % devices:
            raise ValueError(
                f"plan: {plan.shape} is not allowed; allowed: [layers, slots] with slots a multiple of the "
                f"{devices} devices"
            )
        layer, slot = np.nonzero(plan >= 0)
        return from_columns(layer, plan[layer, slot], slot // (plan.shape[1] // devices))
    bad = plan.module[(plan.module < 0) | (plan.module >= devices)]
    if bad.size:
        raise ValueError(f"plan: module {bad[0]} is not allowed; allowed: 0 to {devices - 1}")
    return plan


def checked_copies(plan: Placement, layers: int, experts: int) -> np.ndarray:
    """Copies per expert [L, E]; ValueError where a slot names a layer or expert out of range."""
    for name, given, limit in (("layer", plan.layer, layers), ("expert", plan.expert, experts)):
        bad = given[(given < 0) | (given >= limit)]
        if bad.size:
            raise ValueError(f"plan: {name} {bad[0]} is not allowed; allowed: 0 to {limit - 1}")
    return plan.counts(layers, experts)


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
    slots = as_placement(plan, devices)
    copies = checked_copies(slots, layers, experts)
    windows = array.reshape(-1, layers, experts)
    homeless = np.argwhere((copies == 0) & (windows > 0).any(axis=0))
    if homeless.size:
        layer, expert = homeless[0]
        raise ValueError(f"plan: layer {layer}, expert {expert} has rows but no slot; give it one")
    per_slot = windows[:, slots.layer, slots.expert] / copies[slots.layer, slots.expert]  # [W, S]
    cell = slots.layer * devices + slots.module  # [S]
    summed = [np.bincount(cell, weights=rows, minlength=layers * devices) for rows in per_slot]
    return np.reshape(summed, (*array.shape[:-1], devices))
