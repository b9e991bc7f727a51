"""The home: owns token slices, routes and dispatches their rows, combines the replies.

A *unit* is one micro-batch of a slice on its way through the layers. Every request is kept until a valid
reply is in. What a lost frame, a dead or a slow module leaves open is asked for again, first where it
was, then at another replica; the first valid reply for a row counts, and all of them are equal.
"""

from __future__ import annotations

import numpy as np

from rayemu.alltoall import Parcel, View, plan_parcels
from rayemu.compression import WireError
from rayemu.model.model import Model
from rayemu.model.reference import (
    combine_from,
    drop_choices,
    expert_input,
    finish,
    prepare,
)
from rayemu.protocol.answers import Answers
from rayemu.protocol.choosing import Choices, Chooser, Chosen
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.lending import LEAST_LENT, carried_bytes
from rayemu.protocol.messages import (
    CLIENT,
    COORDINATOR,
    DROPPED,
    Failure,
    Probe,
    Refusal,
    Reply,
    Send,
    Slice,
    SliceProbe,
    SliceStatus,
    Status,
    Suspect,
)
from rayemu.protocol.parked import Parked, ParkingLot
from rayemu.protocol.requests import Request, Requests
from rayemu.protocol.server import ExpertServer
from rayemu.protocol.slices import COMBINED, HeldSlice, Unit, Work, dispatch_of, hold, widened
from rayemu.protocol.wire import Clock, no_clock

PROBES = 3  # unanswered ones before the rows go elsewhere


class Home:
    """All slices of one module and their outstanding requests."""

    def __init__(
        self,
        me: int,
        incarnation: int,
        config: ProtocolConfig,
        model: Model,
        server: ExpertServer,
        view: View,
        clock: Clock = no_clock,
    ) -> None:
        self.me = me
        self.clock = clock  # of whoever records
        self.new_rows = server.new_rows  # makes what is sent
        self.config = config
        self.model = model
        self.server = server
        self.view = view
        self.slices: dict[tuple[int, int], HeldSlice] = {}
        self.parking = ParkingLot(config.retry_after)
        self.complete_below = 0
        self.out: list[Send] = []
        self.requests = Requests(incarnation, config)
        self.worked: list[Work] = []
        self.chooser = Chooser(me, config, model, self.requests, clock, self.worked)
        self._wake = float("inf")  # for what is parked

    @property
    def wake(self) -> float:
        """When `tick` has something to do."""
        return min(self._wake, self.requests.wake, self.chooser.wake)

    def take_sends(self) -> list[Send]:
        """Return and forget what is to be sent."""
        sends = self.out + self.requests.out + self.chooser.out
        for taken in (self.out, self.requests.out, self.chooser.out):
            taken.clear()
        return sends

    # -- slices ---------------------------------------------------------------------------------------
    def on_slice(self, m: Slice, now: float) -> None:
        """Take on a slice; one that is known already is not started again."""
        self.forget_below(m.complete_below, now)
        key = (m.batch, m.slice)
        if key in self.slices or m.batch < self.complete_below:
            return
        held = self.slices[key] = hold(m, self.model, self.config, self.new_rows)
        for unit in held.units:
            given = None
            if m.experts is not None and m.weights is not None:
                given = (m.experts[unit.low : unit.high], m.weights[unit.low : unit.high])
            self._begin_layer(unit, now, given)

    def on_slice_probe(self, m: SliceProbe) -> None:
        """Answer the coordinator; a result that the client may have missed is sent again."""
        held = self.slices.get((m.batch, m.slice))
        if held is not None and held.result is not None:
            self.out.append(Send(CLIENT, held.result))
        self.out.append(Send(COORDINATOR, SliceStatus(m.batch, m.slice, self.me, held is not None)))

    def forget_below(self, batch: int, now: float) -> None:
        """Drop everything that belongs to completed batches."""
        if batch <= self.complete_below:
            return
        self.complete_below = batch
        for key in [k for k in self.slices if k[0] < batch]:
            self._drop(self.slices.pop(key), now)

    def _drop(self, held: HeldSlice, now: float) -> None:
        for unit in held.units:
            self.requests.close(unit, now)
        self.chooser.forget(held)
        held.units.clear()  # they refer to the slice: its memory would wait for the garbage collector
        self.parking.forget(held)

    # -- one layer of a unit --------------------------------------------------------------------------
    def _begin_layer(
        self, unit: Unit, now: float, given: tuple[np.ndarray, np.ndarray] | None = None
    ) -> None:
        layer = self.model.layers[unit.layer]
        unit.x = prepare(layer, unit.h, self.new_rows)
        unit.shared, unit.awaits_shared = None, False
        if layer.shared is not None:
            unit.awaits_shared = True
            self.server.accept_shared(unit.layer, unit.x, unit, now)
        if not layer.has_experts:
            unit.left = 0
            self._advance(unit, now)
        elif given is not None:
            self._dispatch(unit, *given, now)
        else:
            routing = self.chooser.begin(unit, self.view, now)
            if routing is not None:
                self._dispatch(unit, *routing, now)

    def on_choices(self, m: Choices, now: float) -> None:
        """Go on with a unit whose choices came, from wherever. Raises WireError for what cannot be some."""
        chosen = self.chooser.on_choices(m)
        if chosen is not None:
            self._go_on([chosen], now)

    def _go_on(self, chosen: list[Chosen], now: float) -> None:
        for unit, routing in chosen:
            self._dispatch(unit, *routing, now)

    def _dispatch(self, unit: Unit, experts: np.ndarray, weights: np.ndarray, now: float) -> None:
        pairs = experts.size
        nowhere = experts.ravel() < 0
        assert unit.x is not None
        layer = self.model.layers[unit.layer]
        unit.x, unit.weights = expert_input(layer, unit.x, weights)
        if (layer.norm is None or layer.spec.weigh_input) and unit.x.nbytes > LEAST_LENT:
            unit.x = self._ours(unit.x)
        unit.experts = experts
        unit.answers = Answers(pairs, experts.shape[1], unit.h.shape[1])
        chosen = np.arange(pairs)
        if nowhere.any():
            chosen = chosen[~nowhere]
        unit.have = nowhere
        unit.left = len(chosen)
        counts = np.bincount(experts.ravel()[chosen], minlength=self.view.experts)
        unit.slice.expert_tokens[unit.layer] += counts.astype(np.int32)
        if unit.left:
            self._plan(unit, chosen, now)
        else:
            self._advance(unit, now)

    def _ours(self, rows: np.ndarray) -> np.ndarray:
        """A copy of rows in memory that others may read."""
        ours = self.new_rows(*rows.shape)
        ours[...] = rows
        return ours

    def _plan(self, unit: Unit, pairs: np.ndarray, now: float, direct: bool = False) -> None:
        """Choose replicas for the pairs and send them; `direct` skips relays (when asking again)."""
        assert unit.experts is not None
        view = self.view
        experts = unit.experts.ravel()[pairs]
        slots = self.config.replicas.choose(
            unit.layer, experts[:, None], view, self.me, self.requests.load(view.modules)
        )[:, 0]
        modules = view.slot_to_module[slots]
        if (modules < 0).any():
            held = modules >= 0
            for expert in np.unique(experts[~held]).tolist():
                self._park(unit, expert, pairs[~held & (experts == expert)], now)
            pairs, experts, modules = pairs[held], experts[held], modules[held]
        hops = modules if direct else self.config.exchange.first_hops(modules, view, self.me)
        chunk = max(1, self.config.chunk_bytes // (unit.h.shape[1] * 4))
        parcels = plan_parcels(pairs, hops, modules, experts, chunk)
        for parcel in self.config.order(parcels, self.me, view.modules):
            self._open(unit, parcel, now, direct)

    def _park(self, unit: Unit, expert: int, pairs: np.ndarray, now: float) -> None:
        """Ask the coordinator about an expert without copies; our view may be old."""
        parked = self.parking.add(unit, expert, pairs, now)
        self._report(parked)
        self._wake = min(self._wake, parked.deadline)

    def _report(self, parked: Parked) -> None:
        held, layer = parked.unit.slice, parked.unit.layer
        self.out.append(Send(COORDINATOR, Failure(held.batch, held.slice, layer, parked.expert, self.me)))

    def on_failure(self, m: Failure, now: float) -> None:
        """The expert is lost and the scenario says to go on without it: drop its choices, and note it.

        That may be old news: what waits for a copy that we know of, which refused it, is not dropped.
        """
        if len(self.view.copies.of(m.layer, m.expert)):
            return
        lost = self.parking.of(m.layer, m.expert)
        for parked in lost:
            nothing = np.zeros((len(parked.pairs), parked.unit.h.shape[1]), np.float32)
            self._settle(parked.unit, parked.pairs, nothing, None, DROPPED, 0)
        for unit in {id(p.unit): p.unit for p in lost}.values():
            self._advance(unit, now)

    def _settle(
        self,
        unit: Unit,
        pairs: np.ndarray,
        rows: np.ndarray,
        index: np.ndarray | None,
        dispatch_path: int,
        combine_path: int,
    ) -> None:
        """Take the rows [n, D], or those at `index` [n] of `rows`, that came for pairs [n].

        Each pair is settled once: whatever comes for it later, as late replies do, changes nothing.
        """
        assert unit.answers is not None and unit.have is not None
        had = unit.have[pairs]
        if had.any():
            new = np.flatnonzero(~had)
            pairs, index = pairs[new], new if index is None else index[new]
        if len(pairs):
            unit.answers.take(pairs, rows, index)
        unit.have[pairs] = True
        unit.left -= len(pairs)
        if dispatch_path or combine_path:
            unit.slice.note(unit, pairs, dispatch_path, combine_path)
        self.parking.settled(unit)

    # -- requests -------------------------------------------------------------------------------------
    def _open(self, unit: Unit, parcel: Parcel, now: float, alone: bool) -> None:
        """Send a parcel; `alone` says that others need not be expected with it."""
        number = self.requests.number()
        message = dispatch_of(unit, parcel, self.me, number, self.view.epoch)
        message.slices = 1 if alone else message.slices
        active = np.ones(len(parcel.pairs), bool)
        request = Request(unit, parcel, self.view, carried_bytes(message), active, message)
        self.requests.add(number, request, now)

    def on_reply(self, m: Reply, now: float) -> None:
        """Take the rows that are still missing. Raises WireError if they are not of the request."""
        request = self.requests.by_number.get(m.request)
        if request is None:
            return
        unit, asked = request.unit, request.parcel.pairs
        if any(start + count > len(asked) for start, count, *_ in m.spans):
            raise WireError(f"reply: spans {m.spans} of a request for {len(asked)} pairs")
        low = 0
        for start, count, *paths in m.spans:
            rows, index = m.rows, m.row_of_pair
            if index is None:
                rows = rows[low : low + count]
            else:
                index = index[low : low + count]
            self._settle(unit, asked[start : start + count], rows, index, *paths)
            low += count
        self.requests.answered(m.request, now)
        if unit.left == 0:
            self._advance(unit, now)

    def on_shared(self, unit: Unit, rows: np.ndarray, now: float) -> None:
        """Take the output of the unit's shared expert."""
        unit.shared, unit.awaits_shared = rows, False
        self._advance(unit, now)

    def _advance(self, unit: Unit, now: float) -> None:
        """Combine and go to the next layer, once everything of this layer is in."""
        layer = self.model.layers[unit.layer]
        if unit.awaits_shared or unit.left or (unit.experts is None and layer.has_experts):
            return
        held = unit.slice
        if (held.batch, held.slice) not in self.slices:
            return
        last = unit.layer + 1 == len(self.model.layers)
        out = held.y[unit.low : unit.high] if last else None
        self.requests.close(unit, now)
        began_s = self.clock()
        outputs = len(unit.h)  # of a dense FFN
        if unit.experts is not None:
            assert unit.weights is not None and unit.answers is not None
            weights, outputs = unit.weights, int(np.count_nonzero(unit.experts >= 0))
            if held.dispatch_paths is not None and self.config.drop_lost_experts:
                choices = weights.shape[1]  # more than were noted of other layers, it may be
                paths = widened(held.dispatch_paths[:, unit.low : unit.high], choices)
                weights = drop_choices(weights, paths[unit.layer, :, :choices] != DROPPED)
            y = np.empty_like(unit.h) if out is None else out
            combine_from(unit.answers.terms, weights, unit.shared, y)
        else:
            assert unit.shared is not None
            y = unit.shared
        unit.h = finish(layer, unit.h, y, out=out)
        self.worked.append((COMBINED, unit, unit.layer, outputs, began_s, self.clock()))
        unit.experts = unit.weights = unit.x = unit.answers = None
        unit.layer += 1
        if not last:
            self._begin_layer(unit, now)
            return
        if unit.h is not out:
            held.y[unit.low : unit.high] = unit.h
        held.units_left -= 1
        if not held.units_left:
            held.result = held.finished(self.me, self.view.epoch)
            self.out.append(Send(CLIENT, held.result))

    # -- what goes wrong ------------------------------------------------------------------------------
    def on_view(self, view: View, now: float) -> None:
        """Re-plan what a dead or hanging module leaves open, to live replicas, directly."""
        self.view = view
        again: dict[int, tuple[Unit, list[np.ndarray]]] = {}
        for parked in self.parking.take_all():
            again.setdefault(id(parked.unit), (parked.unit, []))[1].append(parked.pairs)
        for request in list(self.requests.by_number.values()):
            missing = self.requests.orphans(request, view)
            if missing.any():
                self.requests.let_go(request, missing, now)
                again.setdefault(id(request.unit), (request.unit, []))[1].append(
                    request.parcel.pairs[missing]
                )
        for unit, parts in again.values():
            pairs = np.unique(np.concatenate(parts))
            assert unit.have is not None
            self._plan(unit, pairs[~unit.have[pairs]], now, direct=True)
        self._go_on(self.chooser.on_view(view, now), now)

    def on_status(self, m: Status, now: float) -> None:
        """A module answered a probe: wait on, or send it again what it does not know."""
        request = self.requests.by_number.get(m.request)
        if request is None:
            return
        request.silent_probes = 0
        if m.known:
            self.requests.wait_on(request, now)
            return
        parcel, missing = request.parcel, request.open()
        if m.module != parcel.hop:
            missing &= parcel.modules == m.module
        self._reassign(request, missing, now)

    def on_refusal(self, m: Refusal, now: float) -> None:
        """A module lacks experts that our view says it has: wait for a newer view, or plan again later.

        What else it was asked for goes out anew.
        """
        request = self.requests.by_number.get(m.request)
        if request is None:
            return
        parcel, missing = request.parcel, request.open() & (request.parcel.modules == m.module)
        if not missing.any():
            return
        self.requests.let_go(request, missing, now)
        unit, pairs = request.unit, parcel.pairs[missing]
        assert unit.experts is not None
        experts = unit.experts.ravel()[pairs]
        for expert in m.experts:
            if (experts == expert).any():
                self._park(unit, expert, pairs[experts == expert], now)
        rest = pairs[~np.isin(experts, m.experts)]
        if len(rest):
            self._plan(unit, rest, now, direct=True)

    def _reassign(self, request: Request, missing: np.ndarray, now: float) -> None:
        if missing.any():
            self.requests.let_go(request, missing, now)
            self._plan(request.unit, request.parcel.pairs[missing], now, direct=True)

    def tick(self, now: float) -> None:
        """Probe what is overdue; give up on a module that answers no probe."""
        if now < self.wake:
            return
        self._go_on(self.chooser.tick(now), now)
        for number, request in self.requests.overdue(now):
            hop = request.parcel.hop
            request.silent_probes += 1
            self.requests.wait_on(request, now, min(request.silent_probes, 3))
            if request.silent_probes > PROBES:
                self.out.append(Send(COORDINATOR, Suspect(hop, int(request.view.incarnations[hop]), self.me)))
                self._reassign(request, request.open(), now)
            else:
                self.out.append(Send(hop, Probe(self.me, number)))
        for parked in self.parking.take_served(self.view, now):
            self._plan(parked.unit, parked.missing(), now, direct=True)
        for parked in self.parking.overdue(now):
            parked.deadline = now + self.config.retry_after
            self._report(parked)
        self._wake = self.parking.deadline
