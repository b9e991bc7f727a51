"""How the tables of an epoch travel: as arrays, so that those of thousands of modules and slots fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayemu.alltoall import View
from rayemu.placement import Placement
from rayemu.protocol.messages import Epoch


def slots_of(placement: Placement, *slot_state: np.ndarray) -> np.ndarray:
    """Write a table of slots, and if given their states [S], as one array [4 or 5, S]."""
    columns = placement.layer, placement.expert, placement.part, placement.module, *slot_state
    return np.array(columns, np.uint16)


def placement_of(slots: np.ndarray) -> Placement:
    """Read a table of slots [4 or 5, S]."""
    return Placement(*slots[:4])


def text_of(endpoints: Sequence[str]) -> np.ndarray:
    """Write the endpoints of all modules as one array (uint8): a line each."""
    return np.frombuffer("\n".join(endpoints).encode(), np.uint8)


def endpoints_of(epoch: Epoch) -> list[str]:
    """Return the endpoint of each module [M], "" where it has none; an empty list if the epoch has none."""
    return [] if epoch.endpoints is None else epoch.endpoints.tobytes().decode().split("\n")


def view_of(epoch: Epoch, module_to_node: np.ndarray, size: tuple[int, int]) -> View:
    """Build the view that an epoch message describes; `size` is (L, E)."""
    states = epoch.state, epoch.incarnations
    slot_state = epoch.slots[4].astype(np.uint8)
    return View(epoch.epoch, module_to_node, *states, placement_of(epoch.slots), slot_state, *size)
