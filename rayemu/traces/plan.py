"""A plan of other systems: which expert lies in which slot of which layer.

Shapes: L layers, R slots per layer, E routed experts, X most copies of one expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayemu.traces.errors import TraceError

EMPTY = -1  # a slot that holds no expert


@dataclass(frozen=True, eq=False)
class Plan:
    """Experts by slot, as EPLB, vLLM, SGLang and TensorRT-LLM write them; a device has R / devices in a row.

    `phy2log` [L, R] int32 are experts, EMPTY where a slot is free; ids from `num_experts` on are those of
    `shared` shared experts. `layers` [L] are the model's numbers of the layers. `num_devices` is None where
    a file does not say. Make one with `make_plan`, which checks it.
    """

    phy2log: np.ndarray
    num_experts: int
    num_devices: int | None = None
    layers: np.ndarray | None = None
    shared: int = 0
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def layer_numbers(self) -> list[int]:
        """The model's numbers of the layers; 0 to L - 1 where a file has none."""
        return list(range(len(self.phy2log))) if self.layers is None else self.layers.tolist()

    @property
    def logcnt(self) -> np.ndarray:
        """Copies of each routed expert [L, E] int64."""
        return np.stack([np.bincount(row[row >= 0], minlength=self.num_experts) for row in self.phy2log])[
            :, : self.num_experts
        ]

    @property
    def log2phy(self) -> np.ndarray:
        """Slots of each routed expert [L, E, X] int64, padded with -1."""
        copies = self.logcnt
        slots = np.full((*copies.shape, copies.max()), -1, np.int64)
        for layer, row in enumerate(self.phy2log):
            for expert in range(self.num_experts):
                found = np.flatnonzero(row == expert)
                slots[layer, expert, : len(found)] = found
        return slots


def make_plan(
    phy2log: np.ndarray | Sequence[Sequence[int]],
    num_experts: int | None = None,
    num_devices: int | None = None,
    layers: Sequence[int] | None = None,
    shared: int | None = None,
    source: str = "",
) -> Plan:
    """A checked plan from slots [L, R].

    Without `num_experts` it is what most layers cover without a gap. Without `shared`, ids beyond the routed
    experts are those of shared experts when every device has a slot of each; where devices are unknown, when
    every layer has as many slots of it, and at least two. Raises TraceError that names the layer and the
    expert when one has no slot or does not exist.
    """
    slots = np.asarray(phy2log)
    if slots.ndim == 1 and slots.size:
        slots = slots[None]
    if slots.ndim != 2 or not slots.size or slots.dtype.kind not in "iu":
        raise TraceError(
            f"a plan of shape {list(slots.shape)} and type {slots.dtype}; expected integers [L, R]"
        )
    numbers = list(range(len(slots))) if layers is None else [int(n) for n in layers]
    if len(numbers) != len(slots) or len(set(numbers)) < len(numbers):
        raise TraceError(f"layers: expected {len(slots)} different numbers, found {numbers}")
    if num_devices is not None and (num_devices < 1 or slots.shape[1] % num_devices):
        raise TraceError(f"{slots.shape[1]} slots cannot be shared out evenly to {num_devices} devices")
    if slots.min() < EMPTY or slots.max() > 1 << 20:
        layer, slot = (int(n) for n in np.argwhere((slots < EMPTY) | (slots > 1 << 20))[0])
        raise TraceError(
            f"layer {numbers[layer]} names expert {slots[layer, slot]} in slot {slot}: out of range"
        )
    slots = slots.astype(np.int32)
    experts = _covered(slots) if num_experts is None else num_experts
    if experts < 1:
        raise TraceError(f"{experts} experts; expected at least 1")
    beyond = _shared_ids(slots, experts, num_devices) if shared is None else shared
    outside = slots >= experts + beyond
    if outside.any():
        layer, slot = (int(n) for n in np.argwhere(outside)[0])
        raise TraceError(
            f"layer {numbers[layer]} names expert {slots[layer, slot]} in slot {slot}; "
            f"the model's are 0 to {experts - 1}"
        )
    for number, row in zip(numbers, slots, strict=True):
        held = np.bincount(row[row >= 0], minlength=experts)[:experts]
        if not held.all():
            more = int((held == 0).sum()) - 1
            also = f" and {more} more" if more else ""
            raise TraceError(f"layer {number} leaves expert {int(held.argmin())}{also} without a slot")
    slots.flags.writeable = False
    kept = None if layers is None else np.asarray(numbers, np.int64)
    notes = (f"{beyond} shared experts, from id {experts} on",) if beyond else ()
    return Plan(slots, experts, num_devices, kept, beyond, source, notes)


def refuse_empty_slots(plan: Plan, name: str) -> None:
    """Raise TraceError where a format cannot say that a slot is empty."""
    for layer, slot in np.argwhere(plan.phy2log < 0).tolist():
        raise TraceError(
            f"{name} has no empty slots; slot {slot} of layer {plan.layer_numbers[layer]} is one"
        )


def _covered(slots: np.ndarray) -> int:
    """How many experts most layers cover without a gap; at a tie the larger number."""
    whole = [len(found) for row in slots if (found := np.unique(row[row >= 0])).size == row.max() + 1]
    if not whole:
        return int(slots.max()) + 1
    numbers, times = np.unique(whole, return_counts=True)
    return int(numbers[times == times.max()].max())


def _shared_ids(slots: np.ndarray, experts: int, devices: int | None) -> int:
    """How many ids from `experts` on are those of shared experts."""
    number = 0
    while (held := slots == experts + number).any():
        if devices is not None:
            fine = held.reshape(len(slots), devices, -1).any(axis=2).all()
        else:
            times = held.sum(axis=1)
            fine = times.min() >= 2 and (times == times[0]).all()
        if not fine:
            return number
        number += 1
    return number
