"""Views and placements for tests that need some, of one layer where nothing else is said."""

from collections.abc import Sequence

import numpy as np

from rayemu.alltoall import ALIVE, READY, View
from rayemu.model.holdings import Holdings
from rayemu.model.model import Model
from rayemu.placement import Placement, from_columns


def placed_on(experts: Sequence[int] | np.ndarray, modules: Sequence[int] | np.ndarray) -> Placement:
    """Slots of layer 0 that hold these experts on these modules."""
    return from_columns(np.zeros(len(experts), int), np.asarray(experts), np.asarray(modules))


def in_every_layer(placed: Placement, layers: int) -> Placement:
    """The slots of layer 0, in every layer."""
    number = np.repeat(np.arange(layers), len(placed))
    return from_columns(number, np.tile(placed.expert, layers), np.tile(placed.module, layers))


def a_view(
    placed: Placement,
    nodes: Sequence[int] | np.ndarray,
    experts: int,
    states: Sequence[int] | np.ndarray | None = None,
    incarnations: Sequence[int] | np.ndarray | None = None,
    epoch: int = 1,
    slot_states: Sequence[int] | np.ndarray | None = None,
) -> View:
    """A view where all modules live and all slots are ready, if nothing else is said."""
    nodes = np.asarray(nodes, np.int32)
    modules, layers = len(nodes), int(placed.layer.max(initial=0)) + 1
    return View(
        epoch,
        nodes,
        np.full(modules, ALIVE, np.uint8) if states is None else np.asarray(states, np.uint8),
        np.zeros(modules, np.int32) if incarnations is None else np.asarray(incarnations, np.int32),
        placed,
        np.full(len(placed), READY, np.uint8) if slot_states is None else np.asarray(slot_states, np.uint8),
        layers,
        experts,
    )


def everything(layers: int = 1, experts: int = 4) -> np.ndarray:
    """What a module holds that holds all [2, n]: layers and experts."""
    return np.indices((layers, experts), np.uint16).reshape(2, -1)


def lots_of(*lots: list[int]) -> np.ndarray:
    """Lots [m, 3] as a dispatch has them: (module, expert, pairs) each."""
    return np.array(lots, np.int32)


def holding_all(model: Model) -> Holdings:
    """Every expert of a model."""
    holdings = Holdings(model.make_expert)
    for layer in model.layers:
        for expert in range(len(layer.experts)):
            holdings.put((layer.index, expert), layer.experts[expert])
    return holdings
