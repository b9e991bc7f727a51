"""What a placement is: a table of physical expert slots, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rayemu.placement.problem import PlacementProblem


@dataclass(frozen=True, eq=False)
class Placement:
    """A table of slots: slot s is a copy of part `part[s]` of expert `expert[s]` of layer `layer[s]`.

    The arrays are read-only. Slots of one layer and expert are its copies; no module holds two of the same.
    """

    layer: np.ndarray  # [S] int32
    expert: np.ndarray  # [S] int32
    part: np.ndarray  # [S] int32, 0 for whole experts
    module: np.ndarray  # [S] int32

    def __post_init__(self) -> None:
        for name in ("layer", "expert", "part", "module"):
            column = np.asarray(getattr(self, name), np.int32).view()
            column.flags.writeable = False
            object.__setattr__(self, name, column)

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


def from_columns(layer: np.ndarray, expert: np.ndarray, module: np.ndarray) -> Placement:
    """Make a placement of whole experts, its slots sorted by layer and expert, copies in the order given."""
    order = np.lexsort((expert, layer))
    return Placement(layer[order], expert[order], np.zeros(len(order), np.int32), module[order])


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
