"""The exchange of one layer for all homes at once, for whoever plans thousands of them.

A home plans for itself (`replicas`, `exchange`, `plan`); here the same choices, parcels and lots come out of
a few operations on the pairs of all of them. tests/alltoall/test_all_homes.py holds one against the other.

U units (a micro-batch of a slice, at home on one module), P pairs (token, choice) with the units' one after
another, K choices, M modules, E experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayemu.alltoall.exchange import Flat, Hierarchical
from rayemu.alltoall.order import ORDERS
from rayemu.alltoall.replicas import Even, Hash, LeastLoaded, Nearest
from rayemu.alltoall.view import View

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Units:
    """Who plans: units in the order of their tokens. Those of a slice are neighbours and share its load."""

    home: Array  # [U] module
    slice: Array  # [U] number of its slice, among all
    micro: Array  # [U] number among those of its slice
    start: Array  # [U + 1] its first token

    def __len__(self) -> int:
        return len(self.home)

    def of_pairs(self, top_k: int) -> Array:
        """Return the unit of each pair [P]."""
        return np.repeat(np.arange(len(self)), np.diff(self.start) * top_k)


@dataclass(frozen=True, eq=False)
class Exchange:
    """Parcels (what one frame carries to its first hop) of parts (a module's) of lots (an expert's).

    All in the order of units, modules and experts. `rows` are distinct tokens, `pairs` choices. A part whose
    module is not the parcel's hop is handed on by it.
    """

    parcel_unit: Array  # [A]
    parcel_hop: Array  # [A]
    parcel_pairs: Array  # [A]
    parcel_rows: Array  # [A]
    part_start: Array  # [A + 1] the first part of each parcel
    part_module: Array  # [B]
    part_pairs: Array  # [B]
    part_rows: Array  # [B]
    lot_start: Array  # [B + 1] the first lot of each part
    lot_expert: Array  # [C]
    lot_pairs: Array  # [C]


def choose_modules(
    strategy: Any, layer: int, units: Units, of_pair: Array, experts: Array, view: View
) -> Array:
    """Return the module [P] that computes each pair, whose unit and expert are `of_pair` and `experts` [P].

    The same as `strategy.choose` of every home, whose load is what the earlier micro-batches of its slice
    have outstanding in this layer. Every expert needs a copy.
    """
    copies = view.copies
    begin = copies.start[layer * view.experts : (layer + 1) * view.experts + 1]  # [E + 1]
    held = view.placement.module[copies.slots]  # of every usable slot
    if (begin[1:] - begin[:-1] == 1).all():
        return held[begin[experts]]
    for kind, choose in _ALL_AT_ONCE.items():
        if isinstance(strategy, kind):
            return choose(units, of_pair, experts, begin, held, view)
    return _one_by_one(strategy, layer, units, of_pair, experts, view)


def plan_exchange(
    exchange: Flat | Hierarchical,
    units: Units,
    of_pair: Array,
    modules: Array,
    experts: Array,
    top_k: int,
    chunk_pairs: int,
    view: View,
) -> Exchange:
    """Plan what `plan_parcels` of every home plans, unit after unit.

    `of_pair`, `modules` and `experts` [P]: the unit, module and expert of each pair. Nodes must be runs of
    modules.
    """
    nodes = view.module_to_node
    if (np.diff(nodes) < 0).any():
        raise ValueError("module_to_node: nodes must be runs of modules, numbered upward")
    # Within a unit modules that share a first hop are neighbours, since nodes are runs of modules.
    wide, deep = int(view.modules - 1).bit_length(), int(view.experts - 1).bit_length()
    key = (((of_pair << wide) | modules) << deep) | experts
    key, order = sorted_stably(key)
    lots = _begins(key)
    lot_key = key[lots]
    unit, module = lot_key >> (wide + deep), (lot_key >> deep) & ((1 << wide) - 1)
    hop = _first_hops(exchange, units.home[unit], module, nodes)
    parcels = lots[_begins((unit << wide) | hop)]
    cut = _chunk_cuts(parcels, len(key), chunk_pairs)
    if len(cut):  # some lots are cut in two, which belong to two parcels
        parcels = np.union1d(parcels, cut)
        source = np.searchsorted(lots, every := np.union1d(lots, cut), "right") - 1
        lots, lot_key, hop, unit, module = every, lot_key[source], hop[source], unit[source], module[source]
    first_lot = np.searchsorted(lots, parcels)  # of each parcel
    parcel = np.zeros(len(lots), np.int64)
    parcel[first_lot[1:]] = 1
    parcel = np.cumsum(parcel)  # of each lot
    part_lot = _begins((parcel << wide) | module)  # the first lot of each part
    parts = lots[part_lot]
    part_start = np.searchsorted(part_lot, np.append(first_lot, len(lots)))
    ends = len(key)
    token = order // top_k
    whole = np.diff(part_start) == 1  # parcels of one part
    part_rows = _distinct(parts, np.diff(np.append(part_lot, len(lots))) > 1, token, ends)
    parcel_rows = _distinct(parcels, ~whole, token, ends)
    parcel_rows[whole] = part_rows[part_start[:-1][whole]]
    return Exchange(
        parcel_unit=unit[first_lot],
        parcel_hop=hop[first_lot],
        parcel_pairs=np.diff(np.append(parcels, ends)),
        parcel_rows=parcel_rows,
        part_start=part_start,
        part_module=module[part_lot],
        part_pairs=np.diff(np.append(parts, ends)),
        part_rows=part_rows,
        lot_start=np.append(part_lot, len(lots)),
        lot_expert=lot_key & ((1 << deep) - 1),
        lot_pairs=np.diff(np.append(lots, ends)),
    )


def sending_order(order: Any, plan: Exchange, units: Units, parcels: Array, modules: int) -> Array:
    """Return `parcels` [n] of a plan in the order in which each unit sends its own: `order` is one of ORDERS.

    Raises ValueError for another one.
    """
    unit, longest = plan.parcel_unit[parcels], int(plan.parcel_pairs.max(initial=0))
    key = unit
    if order is ORDERS["rotation"]:
        key = key * modules + (plan.parcel_hop[parcels] - units.home[unit]) % modules
    elif order is not ORDERS["largest_first"]:
        raise ValueError(f"order: {order!r} is not allowed; allowed: {', '.join(ORDERS)}")
    return parcels[sorted_stably(key * (longest + 1) + longest - plan.parcel_pairs[parcels])[1]]


def sorted_stably(key: Array) -> tuple[Array, Array]:
    """Return keys [P] in order, and where each was. Sorting values is ten times as quick as `argsort`."""
    bits = len(key).bit_length()
    if len(key) and int(key.max()).bit_length() + bits > 62:
        order = np.argsort(key, kind="stable")
        return key[order], order
    both = np.sort((key << bits) | np.arange(len(key)))
    return both >> bits, both & ((1 << bits) - 1)


# -- pieces of a plan ---------------------------------------------------------------------------------------
def _begins(key: Array) -> Array:
    """Return where runs of equal keys begin."""
    new = np.ones(len(key), bool)
    np.not_equal(key[1:], key[:-1], out=new[1:])
    return np.flatnonzero(new)


def _first_hops(exchange: Flat | Hierarchical, home: Array, module: Array, nodes: Array) -> Array:
    """Return the first hop [n] of each lot."""
    if isinstance(exchange, Flat):
        return module
    size = np.bincount(nodes)
    first = np.cumsum(size) - size  # the first module of each node
    node = nodes[module]
    relay = first[node] + (home % size[node] if exchange.relay == "spread" else 0)
    return np.where(node == nodes[home], module, relay)


def _chunk_cuts(parcels: Array, pairs: int, chunk: int) -> Array:
    """Return where parcels longer than a chunk are cut, each evenly."""
    length = np.diff(np.append(parcels, pairs))
    parts = np.maximum(-(-length // chunk), 1)
    more = parts - 1
    step = np.arange(more.sum()) - np.repeat(np.cumsum(more) - more, more) + 1
    return np.repeat(parcels, more) - -np.repeat(length, more) * step // np.repeat(parts, more)


def _distinct(begin: Array, several: Array, token: Array, pairs: int) -> Array:
    """Return how many tokens each run of pairs has; runs without `several` lots have each token once."""
    length = np.diff(np.append(begin, pairs))
    if not several.any():
        return length
    run = np.repeat(np.arange(len(begin)), np.where(several, length, 0))
    mine = token[np.repeat(several, length)]
    bits = int(token.max()).bit_length()
    found = np.sort((run << bits) | mine)
    found = found[_begins(found)] >> bits
    return np.where(several, np.bincount(found, minlength=len(begin)), length)


# -- which copy computes ------------------------------------------------------------------------------------
def _nearest(units: Units, of_pair: Array, experts: Array, begin: Array, held: Array, view: View) -> Array:
    """The copy on the home itself, else the (home + expert)-th in turn of those in its node, else of all."""
    home, nodes = units.home[of_pair], view.module_to_node
    low, high = begin[0], begin[-1]
    count = np.diff(begin)
    of_copy, module = np.repeat(np.arange(len(count)), count), held[low:high]
    span = int(nodes.max()) + 1
    key, place = sorted_stably(of_copy * span + nodes[module])  # copies of one node keep their order
    left, right = (np.searchsorted(key, experts * span + nodes[home], side) for side in ("left", "right"))
    turn = home + experts
    near = right > left
    beside = place[np.where(near, left + turn % np.maximum(right - left, 1), 0)]
    chosen = np.where(near, module[beside], held[begin[experts] + turn % count[experts]])
    own = np.sort(of_copy * view.modules + module)
    wanted = experts * view.modules + home
    there = own[np.minimum(np.searchsorted(own, wanted), len(own) - 1)] == wanted
    return np.where(there, home, chosen)


def _hash(units: Units, of_pair: Array, experts: Array, begin: Array, held: Array, view: View) -> Array:
    """The copy that multiplicative hashing of expert and home picks."""
    home = units.home[of_pair].astype(np.uint64)
    mixed = (experts.astype(np.uint64) * np.uint64(0x9E3779B1) + home * np.uint64(0x85EBCA77)) & np.uint64(
        0xFFFFFFFF
    )
    rank = (mixed >> np.uint64(16)).astype(np.int64)
    return held[begin[experts] + rank % np.diff(begin)[experts]]


def _even(units: Units, of_pair: Array, experts: Array, begin: Array, held: Array, view: View) -> Array:
    """All copies, each for a run of the pairs that a unit has for the expert."""
    key, order = sorted_stably(of_pair * view.experts + experts)
    first = _begins(key)
    rows = np.diff(np.append(first, len(key)))
    rank = np.arange(len(key)) - np.repeat(first, rows)
    expert, count = experts[order], np.diff(begin)[experts[order]]
    run = (rank * count // np.repeat(rows, rows) + units.home[of_pair[order]] + expert) % count
    chosen = np.empty(len(key), held.dtype)
    chosen[order] = held[begin[expert] + run]
    return chosen


def _least_loaded(
    units: Units, of_pair: Array, experts: Array, begin: Array, held: Array, view: View
) -> Array:
    """Expert after expert, the busiest of each unit first: the copy whose module has least from its slice."""
    low, count = begin[0], np.diff(begin)
    used, column = np.unique(held[low : begin[-1]], return_inverse=True)
    most = int(count.max())
    place = np.arange(most)
    table = np.full((view.experts, most), len(used))  # [E, C] columns; those that are none are never least
    table[place < count[:, None]] = column.reshape(-1)
    slices = int(units.slice.max()) + 1
    load = np.zeros((slices, len(used) + 1), np.int64)
    load[:, -1] = np.iinfo(np.int64).max // (2 * most)
    chosen = np.empty(len(experts), held.dtype)
    for micro in range(int(units.micro.max()) + 1):
        mine = np.flatnonzero(units.micro == micro)  # one unit of each slice at most
        pairs = np.flatnonzero(units.micro[of_pair] == micro)
        row = np.empty(len(units), np.int64)
        row[mine] = np.arange(len(mine))
        unit, expert = row[of_pair[pairs]], experts[pairs]
        rows = np.bincount(unit * view.experts + expert, minlength=len(mine) * view.experts)
        rows = rows.reshape(len(mine), view.experts)
        order = np.argsort(-rows, axis=1, kind="stable")
        pick = np.zeros(rows.shape, np.int64)
        for step in range(int((rows > 0).sum(1).max())):
            who = np.flatnonzero(rows[np.arange(len(mine)), order[:, step]])
            what = order[who, step]
            home, theirs = units.home[mine[who]], units.slice[mine[who]]
            copy = (place - (home + what)[:, None] % count[what][:, None]) % count[what][:, None]
            at = load[theirs[:, None], table[what]] * most + np.where(place < count[what][:, None], copy, 0)
            best = at.argmin(1)
            pick[who, what] = best
            load[theirs, table[what, best]] += rows[who, what]
        chosen[pairs] = held[begin[expert] + pick[unit, expert]]
    return chosen


def _one_by_one(strategy: Any, layer: int, units: Units, of_pair: Array, experts: Array, view: View) -> Array:
    """Ask the strategy itself, for every unit."""
    chosen = np.empty(len(experts), np.int64)
    ends = np.searchsorted(of_pair, np.arange(len(units) + 1))
    load = np.zeros(view.modules, np.int64)
    for unit, (low, high) in enumerate(itertools.pairwise(ends.tolist())):
        if units.micro[unit] == 0:
            load = np.zeros(view.modules, np.int64)
        home = int(units.home[unit])
        slots = strategy.choose(layer, experts[low:high, None], view, home, load)[:, 0]
        chosen[low:high] = view.slot_to_module[slots]
        load += np.bincount(chosen[low:high], minlength=view.modules)
    return chosen


_Choose = Callable[[Units, Array, Array, Array, Array, View], Array]
_ALL_AT_ONCE: dict[type, _Choose] = {
    Nearest: _nearest,
    Hash: _hash,
    Even: _even,
    LeastLoaded: _least_loaded,
}
