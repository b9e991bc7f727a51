"""What a placement is: a table of physical expert slots, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True, eq=False)
class Placement:
    """A table of slots: slot s is a copy of part `part[s]` of expert `expert[s]` of layer `layer[s]`.

    The arrays are read-only. Slots of one layer and expert are its copies; no module holds two of the same.
    Raises ValueError for columns of unequal lengths, and for what is no whole number of 32 bits.
    """

    layer: np.ndarray  # [S] int32
    expert: np.ndarray  # [S] int32
    part: np.ndarray  # [S] int32, 0 for whole experts
    module: np.ndarray  # [S] int32

    def __post_init__(self) -> None:
        for name in ("layer", "expert", "part", "module"):
            column = _whole_numbers(getattr(self, name), name).view()
            column.flags.writeable = False
            object.__setattr__(self, name, column)
            if len(column) != len(self.layer):
                raise ValueError(
                    f"placement.{name} has {len(column)} slots, placement.layer {len(self.layer)}"
                )

    def __len__(self) -> int:
        return len(self.layer)

    def held_by(self, module: int) -> list[tuple[int, int]]:
        """Return the (layer, expert) of each slot of a module, in slot order."""
        mine = self.module == module
        return list(zip(self.layer[mine].tolist(), self.expert[mine].tolist(), strict=True))

    def counts(self, layers: int, experts: int) -> np.ndarray:
        """Return the copies of each expert [L, E]."""
        flat = np.bincount(self.layer.astype(np.int64) * experts + self.expert, minlength=layers * experts)
        return flat.reshape(layers, experts)

    def module_loads(self, loads: np.ndarray, modules: int) -> np.ndarray:
        """Return each module's load [L, M], where that of an expert [L, E] spreads evenly over its copies."""
        layers, experts = loads.shape
        share = loads / np.maximum(self.counts(layers, experts), 1)  # [L, E]
        given = share[self.layer, self.expert]  # [S]
        flat = np.bincount(self.layer * modules + self.module, weights=given, minlength=layers * modules)
        return flat.reshape(layers, modules)


def _whole_numbers(column: npt.ArrayLike, name: str) -> np.ndarray:
    """A column [S] as int32."""
    given = np.asarray(column)
    if given.ndim != 1:
        raise ValueError(f"placement.{name} has shape {given.shape}; allowed: one number per slot")
    if given.size and given.dtype.kind not in "iu":
        raise ValueError(f"placement.{name} has dtype {given.dtype}; allowed: whole numbers")
    found = given.astype(np.int32, copy=False)
    if found is not given and len(wrong := np.flatnonzero(found != given)):
        slot = int(wrong[0])
        raise ValueError(f"placement.{name}[{slot}] is {given[slot]}; allowed: whole numbers of 32 bits")
    return found


def from_columns(layer: npt.ArrayLike, expert: npt.ArrayLike, module: npt.ArrayLike) -> Placement:
    """Make a placement of whole experts, its slots sorted by layer and expert, copies in the order given."""
    given = Placement(layer, expert, np.zeros(np.shape(layer), np.int32), module)  # type: ignore[arg-type]
    order = np.lexsort((given.expert, given.layer))
    return Placement(given.layer[order], given.expert[order], given.part, given.module[order])


def by_layer(
    problem: PlacementProblem, place: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> Placement:
    """Place layer after layer: `place` maps the copies of each expert [E] to slots' experts and modules [P].

    Layers without copies are dense: they have no slots.
    """
    layers, experts, modules = [], [], []
    for layer, copies in enumerate(problem.copies):
        if copies.any():
            slot_to_expert, slot_to_module = place(copies)
            layers.append(np.full(len(slot_to_expert), layer, np.int32))
            experts.append(slot_to_expert)
            modules.append(slot_to_module)
    none = [np.zeros(0, np.int32)]
    return from_columns(*(np.concatenate(parts or none) for parts in (layers, experts, modules)))


def around_the_ring(first: np.ndarray, copies: np.ndarray, modules: int) -> tuple[np.ndarray, np.ndarray]:
    """Spread the copies of each expert evenly around the ring, starting at its first module.

    `first [E]` is the module of copy 0 and `copies [E]` the number of copies (1..modules). Copy c of an
    expert lands `c * modules // copies` modules further on, so two copies of one expert on two nodes of equal
    size never share a node. Returns the slots' experts and modules [P].
    """
    slot_to_expert = np.repeat(np.arange(len(first), dtype=np.int32), copies)  # [P]
    copy = np.concatenate([np.arange(c) for c in copies]) if len(copies) else np.zeros(0, int)  # [P]
    shift = copy * modules // np.repeat(copies, copies)
    return slot_to_expert, ((np.repeat(first, copies) + shift) % modules).astype(np.int32)


def check_placement(placement: Placement, layers: tuple[int, int], experts: int, modules: int) -> None:
    """Refuse a placement that a run cannot have, by a ValueError that names layer, expert and module.

    Every expert of the layers from the first to before the second of `layers` needs a slot.
    """
    first, end = layers
    columns = ("layer", first, end), ("expert", 0, experts), ("module", 0, modules), ("part", 0, 1)
    for name, least, limit in columns:
        column = getattr(placement, name)
        wrong = np.flatnonzero((column < least) | (column >= limit))
        if len(wrong):
            slot = int(wrong[0])
            raise ValueError(f"placement.{name}[{slot}] is {column[slot]}; allowed: {least} to {limit - 1}")
    counts = placement.counts(end, experts)[first:]
    if not counts.all():
        layer, expert = (int(i) for i in np.argwhere(counts == 0)[0])
        raise ValueError(
            f"expert {expert} of layer {first + layer} has no slot; give each expert one or more"
        )
    key = (placement.layer.astype(np.int64) * experts + placement.expert) * modules + placement.module
    values, times = np.unique(key, return_counts=True)
    if (times > 1).any():
        rest, module = divmod(int(values[times > 1][0]), modules)
        layer, expert = divmod(rest, experts)
        raise ValueError(
            f"module {module} has {int(times.max())} slots of expert {expert} of layer {layer}; one holds it"
        )
