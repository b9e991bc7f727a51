"""What a placement is: physical expert slots and the modules that hold them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Placement(NamedTuple):
    """Which expert each physical slot holds and where the slot lives.

    Slots of one expert are its replicas; no module holds two of the same expert.
    """

    slot_to_expert: np.ndarray  # [P] int32
    slot_to_module: np.ndarray  # [P] int32

    def experts_on(self, module: int) -> list[int]:
        """Return the logical experts that `module` holds, in slot order."""
        return [int(e) for e in self.slot_to_expert[self.slot_to_module == module]]


def from_homes(first: np.ndarray, copies: np.ndarray, modules: int) -> Placement:
    """Spread the replicas of each expert evenly around the ring, starting at its first module.

    `first [E]` is the module of copy 0 and `copies [E]` the number of replicas (1..modules). Copy c of
    an expert lands `c * modules // copies` modules further on, so two copies of one expert on two nodes
    of equal size never share a node.
    """
    slot_to_expert = np.repeat(np.arange(len(first), dtype=np.int32), copies)  # [P]
    copy = np.concatenate([np.arange(c) for c in copies]) if len(copies) else np.zeros(0, int)  # [P]
    shift = copy * modules // np.repeat(copies, copies)
    slot_to_module = ((np.repeat(first, copies) + shift) % modules).astype(np.int32)
    return Placement(slot_to_expert, slot_to_module)
