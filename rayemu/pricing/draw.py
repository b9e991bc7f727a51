"""The graph of a run that nobody made: a scenario's policies on given choices, without actors or arithmetic.

Batches are cut and dealt to homes as the ledger does, slices into micro-batches as the home does; copies,
relays and parcels are those that every home would choose. The expert server is taken to compute when all
requests of a batch for an expert are in, which it waits for. What depends on time is left out: windows of
bytes under way, what other batches have outstanding at the copies, faults, and experts that move.

B batches of T tokens, K choices, M modules; U units as in `rayemu.alltoall.all_homes`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayemu.alltoall import ALIVE, LEAST_ROWS, READY, View, cut_micro_batches, cut_slices
from rayemu.alltoall.all_homes import (
    Exchange,
    Units,
    choose_modules,
    plan_exchange,
    sending_order,
    sorted_stably,
)
from rayemu.model.spec import ModelSpec
from rayemu.placement import Placement
from rayemu.pricing.events import Events
from rayemu.pricing.frames import Frames
from rayemu.pricing.graph import COMBINE, DISPATCH, EXPERT, MESSAGE, OTHER, REPLY, ROUTE, EventGraph
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.messages import CLIENT, COORDINATOR
from rayemu.protocol.server import JOB_ROWS, SHARED

Array = np.ndarray
Choices = Callable[[range, int], Array]  # batches, layer -> [T of all of them, K]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be drawn: a model at the width that it would run at, its policies and its modules."""

    spec: ModelSpec
    config: ProtocolConfig
    placement: Placement
    module_to_node: Array  # [M] int32, nodes are runs of modules
    batch_tokens: int
    batches: int = 1
    in_flight: int = 1

    def view(self) -> View:
        """Return the cluster with everyone alive and every slot ready."""
        modules = len(self.module_to_node)
        return View(
            1,
            self.module_to_node,
            np.full(modules, ALIVE, np.uint8),
            np.zeros(modules, np.int32),
            self.placement,
            np.full(len(self.placement), READY, np.uint8),
            self.spec.layers,
            self.spec.experts,
        )


def draw_graph(plan: Plan, choices: Choices) -> EventGraph:
    """Draw the graph of a plan; `choices(batches, layer)` are the experts of their tokens [n * T, K].

    `in_flight` batches are under way at once: one is submitted when the one so many before it is finished.
    Raises PricingError for a codec policy that goes by measurements.
    """
    drawn = _Drawn(plan)
    results: dict[int, Array] = {}  # of each batch
    for first in range(0, plan.batches, plan.in_flight):
        wave = range(first, min(first + plan.in_flight, plan.batches))
        for batch, ids in zip(wave, drawn.wave(wave, results, choices), strict=True):
            results[batch] = ids
    return drawn.events.graph(plan.module_to_node)


def most_events(spec: ModelSpec, batches: int, batch_tokens: int, units: int) -> int:
    """Return how many events a plan has at most, with so many units in a batch and no parcel cut in chunks.

    Of a token's choice there are two messages out and two back, if no other of its unit goes the same way;
    of a unit what it asks, computes and combines; of an expert a product, or more where it has copies.
    """
    ways = min(batch_tokens * spec.top_k, units * spec.experts)
    return batches * spec.layers * (4 * ways + min(ways, 8 * spec.experts) + 6 * units)


class _Drawn:
    """One plan on its way to a graph."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.spec = plan, plan.spec
        self.view = plan.view()
        self.nodes = plan.module_to_node
        self.frames = Frames(plan.spec, plan.config, len(self.nodes))
        self.chunk = max(1, plan.config.chunk_bytes // (plan.spec.d_model * 4))
        # Each modelled module has links of its own: unless it is said otherwise, all are homes.
        cuts = cut_slices(plan.batch_tokens, len(self.nodes), plan.config.min_slice_rows or LEAST_ROWS)
        micro = [
            (number, part, low + begin)
            for number, (low, high) in enumerate(cuts)
            for part, (begin, _) in enumerate(cut_micro_batches(high - low, plan.config.micro_batches))
        ]
        self.slices = len(cuts)
        self.slice_rows = np.diff(np.array(cuts), axis=1)[:, 0]
        self.cut = np.array(micro)  # [units of a batch, 3]: slice, micro-batch, first token
        self.events = Events(most_events(plan.spec, plan.batches, plan.batch_tokens, len(micro)) + 1024)

    def wave(self, batches: range, results: dict[int, Array], choices: Choices) -> list[Array]:
        """Draw batches that are under way together; returns the results of each."""
        plan, spec, events = self.plan, self.spec, self.events
        count, modules = len(batches), len(self.nodes)
        batch = np.array(batches)
        freed = [results.get(b - plan.in_flight, np.zeros(0, np.int64)) for b in batches]
        submits = events.add(
            count,
            np.concatenate(freed),
            [len(ids) for ids in freed],
            kind=MESSAGE,
            role=OTHER,
            src=CLIENT,
            dst=COORDINATOR,
            batch=batch,
            rows=plan.batch_tokens,
            bytes=self.frames.submit(np.float64(plan.batch_tokens)),
        )
        # Slices of all batches, and their units.
        number = np.tile(np.arange(self.slices), count)
        of_batch = np.repeat(np.arange(count), self.slices)
        home = (batch[of_batch] + number * max(1, modules // self.slices)) % modules
        rows = np.tile(self.slice_rows, count)
        given = (
            plan.config.place == "coordinator" and not spec.dense_layers
        )  # with choices of the first layer
        before = submits[of_batch]
        if given:
            before = self._route(COORDINATOR, batch[of_batch], 0, rows, before)
        sent = dict(kind=MESSAGE, role=OTHER, src=COORDINATOR, dst=home, batch=batch[of_batch], rows=rows)
        slices = events.add(len(home), before, bytes=self.frames.slice(rows, given), **sent)
        parts = len(self.cut)
        slice_of = np.tile(self.cut[:, 0], count) + np.repeat(np.arange(count) * self.slices, parts)
        first = np.tile(self.cut[:, 2], count) + np.repeat(np.arange(count) * plan.batch_tokens, parts)
        start = np.append(first, count * plan.batch_tokens)
        units = Units(home[slice_of], slice_of, np.tile(self.cut[:, 1], count), start)
        wave = _Wave(units, batch[of_batch[slice_of]], np.diff(start), slices[slice_of])
        for layer in range(spec.layers):
            experts = choices(batches, layer) if layer >= spec.dense_layers else None
            self._layer(wave, layer, experts)
        done = events.add(
            len(home),
            wave.begin,
            np.bincount(slice_of, minlength=len(home)),
            kind=MESSAGE,
            role=OTHER,
            src=home,
            dst=CLIENT,
            batch=batch[of_batch],
            rows=rows,
            bytes=self.frames.result(rows),
        )
        return np.split(done, count)

    def _route(self, where: Any, batch: Array, layer: int, rows: Array, causes: Array) -> Array:
        return self.events.add(
            len(rows),
            causes,
            kind=ROUTE,
            src=where,
            dst=where,
            batch=batch,
            layer=layer,
            rows=rows,
        )

    def _layer(self, wave: _Wave, layer: int, experts: Array | None) -> None:
        """Draw one layer of all units, which goes on from `wave.begin` and leaves its combines there."""
        spec, events, rows, home = self.spec, self.events, wave.rows, wave.units.home
        width = spec.dense_d_ff if experts is None else spec.shared_d_ff
        own = dict(src=home, dst=home, batch=wave.batch, layer=layer, rows=rows)
        causes, unit = [], []  # of the combines: events and whose they are
        if width:
            causes.append(events.add(len(rows), wave.begin, kind=EXPERT, expert=SHARED, **own))
            unit.append(np.arange(len(rows)))
        if experts is not None:
            found, whose = self._experts(wave, layer, experts, self._chosen(wave, layer))
            causes.append(found)
            unit.append(whose)
        whose = np.concatenate(unit)
        order = np.argsort(whose, kind="stable") if len(unit) > 1 else np.arange(len(whose))
        each = np.bincount(whose, minlength=len(rows))
        wave.begin = events.add(len(rows), np.concatenate(causes)[order], each, kind=COMBINE, **own)

    def _chosen(self, wave: _Wave, layer: int) -> Array:
        """Draw how each unit comes by its choices; returns the event after which it has them [U]."""
        home, rows, batch = wave.units.home, wave.rows, wave.batch
        if self.plan.config.place == "modules":
            return self._route(home, batch, layer, rows, wave.begin)
        if layer == 0:
            return wave.begin  # they came with the slice
        told = dict(kind=MESSAGE, role=OTHER, batch=batch, layer=layer)
        ask, events = self.frames.route_request(rows), self.events
        asked = events.add(len(rows), wave.begin, src=home, dst=COORDINATOR, rows=rows, bytes=ask, **told)
        routed = self._route(COORDINATOR, batch, layer, rows, asked)
        answer = self.frames.route_reply(rows)
        return events.add(len(rows), routed, src=COORDINATOR, dst=home, rows=rows, bytes=answer, **told)

    def _experts(self, wave: _Wave, layer: int, experts: Array, chosen: Array) -> tuple[Array, Array]:
        """Draw dispatches, products and replies; returns what brings a unit its rows, and whose each is."""
        config, units, events, nodes = self.plan.config, wave.units, self.events, self.nodes
        of_pair = wave.of_pairs(experts.shape[1])
        wanted = experts.reshape(-1).astype(np.int64)
        modules = choose_modules(config.replicas, layer, units, of_pair, wanted, self.view)
        x = plan_exchange(
            config.exchange, units, of_pair, modules, wanted, experts.shape[1], self.chunk, self.view
        )
        home = units.home[x.parcel_unit]
        parcels, parts = len(home), len(x.part_module)
        of_part = np.repeat(np.arange(parcels), np.diff(x.part_start))  # parcel of each part
        of_lot = np.repeat(np.arange(parts), np.diff(x.lot_start))  # part of each lot
        lots = np.diff(x.lot_start)  # of each part
        away = x.parcel_hop != home  # parcels that travel
        handed = x.part_module != x.parcel_hop[of_part]  # parts that a relay hands on
        relayed = np.zeros(parcels, bool)
        relayed[of_part[handed]] = True
        batch = wave.batch[x.parcel_unit]
        told = dict(kind=MESSAGE, layer=layer)

        sent = sending_order(config.order, x, units, np.flatnonzero(away), len(nodes))
        src, dst = home[sent], x.parcel_hop[sent]
        of_lots = x.lot_start[x.part_start]  # [A + 1]
        ids = events.add(
            len(sent),
            chosen[x.parcel_unit[sent]],
            role=DISPATCH,
            src=src,
            dst=dst,
            batch=batch[sent],
            rows=x.parcel_rows[sent],
            bytes=self.frames.dispatch(
                nodes[src] != nodes[dst], x.parcel_rows[sent], x.parcel_pairs[sent], np.diff(of_lots)[sent]
            ),
            **told,
        )
        parcel_event = chosen[x.parcel_unit]  # what brings a parcel to its first hop; its own it has at once
        parcel_event[sent] = ids
        forwards = np.flatnonzero(handed)
        part_event = parcel_event[of_part]
        src, dst, parcel = x.parcel_hop[of_part[forwards]], x.part_module[forwards], of_part[forwards]
        part_event[forwards] = events.add(
            len(forwards),
            parcel_event[parcel],
            role=DISPATCH,
            src=src,
            dst=dst,
            batch=batch[parcel],
            rows=x.part_rows[forwards],
            bytes=self.frames.dispatch(
                nodes[src] != nodes[dst], x.part_rows[forwards], x.part_pairs[forwards], lots[forwards]
            ),
            **told,
        )
        lot_job = self._products(x, batch, of_part, of_lot, part_event, layer)

        # Back: every part that travelled, to the relay or the home; then what relays gathered.
        replied = np.flatnonzero(handed | (away & ~relayed)[of_part])
        parcel = of_part[replied]
        src, dst = x.part_module[replied], np.where(relayed, x.parcel_hop, home)[parcel]
        in_reply = np.zeros(parts, bool)
        in_reply[replied] = True
        part_reply = np.zeros(parts, np.int64)
        part_reply[replied] = events.add(
            len(replied),
            lot_job[in_reply[of_lot]],
            lots[replied],
            role=REPLY,
            src=src,
            dst=dst,
            batch=batch[parcel],
            rows=x.part_pairs[replied],
            bytes=self.frames.reply(nodes[src] != nodes[dst], x.part_pairs[replied], np.ones(len(replied))),
            **told,
        )
        # Of a relay's parcel it waits for the first lot's part, if that was handed on, or for its own lots.
        leads = np.zeros(len(of_lot), bool)
        leads[x.lot_start[:-1]] = True
        lot_parcel = of_part[of_lot]
        event = np.where(handed[of_lot], part_reply[of_lot], lot_job)
        gathered = relayed[lot_parcel] & (leads | ~handed[of_lot])
        relays = np.flatnonzero(relayed)
        src, dst = x.parcel_hop[relays], home[relays]
        parcel_reply = part_reply[x.part_start[:-1]]
        parcel_reply[relays] = events.add(
            len(relays),
            event[gathered],
            np.bincount(lot_parcel[gathered], minlength=parcels)[relays],
            role=REPLY,
            src=src,
            dst=dst,
            batch=batch[relays],
            rows=x.parcel_pairs[relays],
            bytes=self.frames.reply(
                nodes[src] != nodes[dst], x.parcel_pairs[relays], np.diff(x.part_start)[relays]
            ),
            **told,
        )
        first = np.zeros(len(of_lot), bool)
        first[of_lots[:-1]] = True
        kept = first | ~away[lot_parcel]  # a reply for each parcel, and of those at home every product
        brings = np.where(away[lot_parcel], parcel_reply[lot_parcel], lot_job)[kept]
        return brings, x.parcel_unit[lot_parcel[kept]]

    def _products(
        self, x: Exchange, batch: Array, of_part: Array, of_lot: Array, part_event: Array, layer: int
    ) -> Array:
        """Draw the merged products of a layer; returns the one that each lot is in."""
        modules, experts = len(self.nodes), self.spec.experts
        lot_batch = batch[of_part[of_lot]]
        module = x.part_module[of_lot]
        key = ((lot_batch - lot_batch.min(initial=0)) * modules + module) * experts + x.lot_expert
        key, order = sorted_stably(key)
        new = np.ones(len(order), bool)
        np.not_equal(key[1:], key[:-1], out=new[1:])
        rows = x.lot_pairs[order]
        first = np.flatnonzero(new)
        total = np.add.reduceat(rows, first)
        if (total > JOB_ROWS).any():  # a server cuts what is more into jobs that are alike
            jobs = -(-total // JOB_ROWS)
            group = np.cumsum(new) - 1
            before = np.cumsum(rows) - rows
            before -= before[first][group]
            job = np.minimum((before + rows / 2) * jobs[group] // total[group], jobs[group] - 1)
            new[1:] |= job[1:] != job[:-1]
            first = np.flatnonzero(new)
            total = np.add.reduceat(rows, first)
        lead = order[first]
        ids = self.events.add(
            len(first),
            part_event[of_lot[order]],
            np.diff(np.append(first, len(order))),
            kind=EXPERT,
            src=module[lead],
            dst=module[lead],
            batch=lot_batch[lead],
            layer=layer,
            expert=x.lot_expert[lead],
            rows=total,
        )
        lot_job = np.empty(len(order), np.int64)
        lot_job[order] = np.repeat(ids, np.diff(np.append(first, len(order))))
        return lot_job


@dataclass(eq=False)
class _Wave:
    """The units of batches that are under way together, and the events that each goes on from."""

    units: Units
    batch: Array  # [U]
    rows: Array  # [U]
    begin: Array  # [U]

    def of_pairs(self, top_k: int) -> Array:
        """Return the unit of each pair, looked up once."""
        if not hasattr(self, "_of_pairs"):
            self._of_pairs = self.units.of_pairs(top_k)
        return self._of_pairs
