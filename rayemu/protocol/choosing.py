"""How a home comes by the choices for a unit's rows: made here, asked for, or put together.

What is asked for and does not come is asked for again; what comes twice or late is not taken.
"""

from __future__ import annotations

from rayemu.alltoall import View
from rayemu.compression import WireError
from rayemu.model.model import Model
from rayemu.model.reference import route, route_within, scored
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.decisions import Part, padded
from rayemu.protocol.messages import (
    COORDINATOR,
    GroupsReply,
    OfferReply,
    RouteReply,
    RouteRequest,
    Scores,
    Send,
)
from rayemu.protocol.offers import OfferCollector
from rayemu.protocol.requests import Requests
from rayemu.protocol.slices import MERGED, ROUTED, HeldSlice, Unit, Work
from rayemu.protocol.wire import Clock
from rayemu.routing import Routing

ASK_AGAIN, ASK_LATER = 2, 8  # retry times after which a home asks again for choices: of rows, of a batch
Choices = RouteReply | GroupsReply | OfferReply
Chosen = tuple[Unit, Routing]


class Chooser:
    """The choices that a home waits for. What it wants sent is in `out` until it is taken."""

    def __init__(
        self,
        me: int,
        config: ProtocolConfig,
        model: Model,
        requests: Requests,
        clock: Clock,
        worked: list[Work],
    ) -> None:
        self.me, self.config, self.model, self.clock, self.worked = me, config, model, clock, worked
        self.out: list[Send] = []
        self.waiting: dict[tuple[int, int, int], Unit] = {}
        patience = ASK_AGAIN * config.retry_after
        self.offers = OfferCollector(me, model, requests, patience, clock, self.out, worked)
        self._wake = float("inf")

    @property
    def wake(self) -> float:
        """When `tick` has something to do."""
        return min(self._wake, self.offers.wake)

    def begin(self, unit: Unit, view: View, now: float) -> Routing | None:
        """Return the choices for a unit's layer, or ask for them."""
        layer = self.model.layers[unit.layer]
        if self.config.place in ("coordinator", "hybrid") or layer.router.scope == "batch":
            self._ask(unit, now)
            return None
        assert unit.x is not None
        if self.config.place == "distributed":
            return self._merged(unit) if self.offers.ask(unit, view, now) else None
        began_s = self.clock()
        return self._noted(unit, padded(route(layer, unit.x)), began_s)

    def on_choices(self, m: Choices) -> Chosen | None:
        """Take an answer; returns the choices that it makes whole. WireError for what cannot be one."""
        if isinstance(m, OfferReply):
            whole = self.offers.on_offer(m)
            return None if whole is None else (whole, self._merged(whole))
        unit = self.waiting.get((m.batch, m.slice, m.micro))
        if unit is None or unit.layer != m.layer:
            return None
        rows = unit.high - unit.low
        if isinstance(m, GroupsReply):
            return self._within(unit, m) if len(m.groups) == rows else None
        if len(m.experts) != rows:
            return None
        del self.waiting[m.batch, m.slice, m.micro]
        routing = Routing(m.experts, m.weights)
        if m.order >= 0:
            held, choices = unit.slice, m.experts.shape[1]
            made = m.order, m.asked_by, m.epoch, int(m.own)
            part = Part(m.layer, held.start + unit.low, rows, choices, *made)
            held.decided.append((part, routing))
        return unit, routing

    def on_view(self, view: View, now: float) -> list[Chosen]:
        """Ask others for what modules that are gone were asked for; returns choices that this makes whole."""
        return [(unit, self._merged(unit)) for unit in self.offers.on_view(view, now)]

    def tick(self, now: float) -> list[Chosen]:
        """Ask again for what is overdue; returns as `on_view`."""
        for unit in list(self.waiting.values()):
            if unit.route_deadline <= now:
                self._ask(unit, now)
        whole = [(unit, self._merged(unit)) for unit in self.offers.tick(now)]
        self._wake = min((u.route_deadline for u in self.waiting.values()), default=float("inf"))
        return whole

    def forget(self, held: HeldSlice) -> None:
        """Drop what the units of a slice wait for."""
        for unit in held.units:
            self.waiting.pop((held.batch, held.slice, unit.micro), None)
        self.offers.forget(held.units)

    def _ask(self, unit: Unit, now: float) -> None:
        held = unit.slice
        self.waiting[held.batch, held.slice, unit.micro] = unit
        layer = self.model.layers[unit.layer]
        of_batch = layer.router.scope == "batch"  # then it waits for others
        unit.route_deadline = now + (ASK_LATER if of_batch else ASK_AGAIN) * self.config.retry_after
        self._wake = min(self._wake, unit.route_deadline)
        assert unit.x is not None
        where = self.me, held.batch, held.slice, unit.micro, unit.layer
        if not of_batch:
            self.out.append(Send(COORDINATOR, RouteRequest(*where, unit.x)))
            return
        began_s = self.clock()
        scores = scored(layer, unit.x)
        self.worked.append((ROUTED, unit, unit.layer, 0, began_s, self.clock()))
        self.out.append(Send(COORDINATOR, Scores(*where, held.start + unit.low, scores)))

    def _within(self, unit: Unit, m: GroupsReply) -> Chosen:
        """Choose among the experts of the groups that the coordinator has opened."""
        layer = self.model.layers[unit.layer]
        limit = layer.router.group_limit
        if limit is None or m.groups.shape[1] != limit[1] or m.groups.max(initial=0) >= limit[0]:
            raise WireError(f"groups {m.groups.shape}: layer {m.layer} has and opens {limit}")
        del self.waiting[m.batch, m.slice, m.micro]
        assert unit.x is not None
        began_s = self.clock()
        return unit, self._noted(unit, padded(route_within(layer, unit.x, m.groups)), began_s)

    def _merged(self, unit: Unit) -> Routing:
        """Choose from all offers for a unit's rows."""
        began_s = self.clock()
        routing = padded(self.model.layers[unit.layer].router.merge(unit.offers))
        unit.offers = []
        return self._noted(unit, routing, began_s, MERGED)

    def _noted(self, unit: Unit, routing: Routing, began_s: float, what: str = ROUTED) -> Routing:
        self.worked.append((what, unit, unit.layer, 0, began_s, self.clock()))
        return routing
