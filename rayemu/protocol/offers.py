"""Scores made where the experts are: each module offers the best of its own, the home takes the best of all.

Every module has the whole gate, so that any of them can score any expert: who scores which is the home's
word alone, goes by what it knows of the membership, and needs nobody's consent.

Shapes: t rows of a unit, E experts of a layer, n of them that one module scores, k that it offers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rayemu.alltoall import ALIVE, View
from rayemu.compression import WireError
from rayemu.model.model import Model
from rayemu.model.reference import gate_of
from rayemu.numerics import F32
from rayemu.protocol.messages import COORDINATOR, OfferReply, OfferRequest, Send, Suspect
from rayemu.protocol.requests import Requests
from rayemu.protocol.slices import OFFERED, Unit, Work
from rayemu.protocol.wire import Clock
from rayemu.routing import Offer, offer_top_k

ASKS = 4  # unanswered ones after which the home scores a part itself


def score(model: Model, layer: int, x: F32, experts: np.ndarray) -> Offer:
    """Score `experts` [n] of a layer for rows x [t, D]; return the best of them, for each row.

    Raises WireError where the layer's choices are not made that way.
    """
    of = model.layers[layer]
    if not of.has_experts or not of.router.merges:
        raise WireError(f"layer {layer} has no choices that can be made in parts")
    offer = offer_top_k(gate_of(of).logits_of(x, experts), experts, of.router.top_k)
    return Offer(np.ascontiguousarray(offer.experts), offer.scores)


def scorers(view: View, layer: int, home: int) -> np.ndarray:
    """The module that scores each expert [E]: of its first usable copy, or the home where none is live."""
    return view.derive(("scorers", layer), home, lambda: _scorers(view, layer, home))


def _scorers(view: View, layer: int, home: int) -> np.ndarray:
    module = np.full(view.experts, home)
    held = view.holders(layer) & (view.state == ALIVE)[:, None]  # [M, E]
    first = view.copies.start[layer * view.experts : (layer + 1) * view.experts + 1]
    there = first[1:] > first[:-1]
    slots = view.copies.slots[first[:-1][there]]
    module[there] = view.placement.module[slots]
    return np.where(held[module, np.arange(view.experts)], module, home)


@dataclass(slots=True, eq=False)
class Part:
    """Experts of a unit's layer that one module was asked to score."""

    unit: Unit
    experts: np.ndarray  # [n] int32
    module: int
    incarnation: int
    deadline: float
    asked: int = 1  # times


class OfferCollector:
    """Asks for the offers of a unit's layer, and keeps them with the unit until all are in.

    What a dead or silent module owes is asked of others. Each expert is in one open part, or in one offer:
    an answer to a part that was given away is not taken.
    """

    def __init__(
        self,
        me: int,
        model: Model,
        requests: Requests,
        patience: float,
        clock: Clock,
        out: list[Send],
        worked: list[Work],
    ) -> None:
        self.me, self.model, self.requests, self.patience, self.clock = me, model, requests, patience, clock
        self.out, self.worked = out, worked
        self.parts: dict[int, Part] = {}  # by number of the request

    @property
    def wake(self) -> float:
        """When `tick` has something to do."""
        return min((part.deadline for part in self.parts.values()), default=float("inf"))

    def ask(self, unit: Unit, view: View, now: float) -> bool:
        """Begin with a layer of a unit; True if all offers are in already."""
        unit.offers = []
        return self._ask(unit, np.arange(view.experts, dtype=np.int32), view, now)

    def on_offer(self, m: OfferReply) -> Unit | None:
        """Take an offer; returns its unit if it was the last one. WireError if it is not of the part."""
        part = self.parts.get(m.request)
        if part is None:
            return None
        unit = part.unit
        top_k = self.model.layers[unit.layer].router.top_k
        shape = unit.high - unit.low, min(top_k, len(part.experts))
        if m.experts.shape != shape or not np.isin(m.experts, part.experts).all():
            raise WireError(f"offer: {m.experts.shape} of {len(part.experts)} experts; wanted: {shape}")
        del self.parts[m.request]
        unit.offers.append(Offer(m.experts, m.scores))
        return unit if self._is_whole(unit) else None

    def on_view(self, view: View, now: float) -> list[Unit]:
        """Ask others for what is open at modules that are gone; returns units that have all their offers."""
        lost = [n for n, p in self.parts.items() if not view.serves(p.module, p.incarnation)]
        again: dict[int, tuple[Unit, list[np.ndarray]]] = {}
        for part in map(self.parts.pop, lost):
            again.setdefault(id(part.unit), (part.unit, []))[1].append(part.experts)
        return [
            unit
            for unit, parts in again.values()
            if self._ask(unit, np.sort(np.concatenate(parts)), view, now)
        ]

    def tick(self, now: float) -> list[Unit]:
        """Ask again for what is overdue, and score here what nobody answers; returns as `on_view`."""
        whole = []
        for number in [n for n, p in self.parts.items() if p.deadline <= now]:
            part = self.parts[number]
            if part.asked < ASKS:
                part.asked, part.deadline = part.asked + 1, now + self.patience
                self._send(number, part)
                continue
            del self.parts[number]
            self.out.append(Send(COORDINATOR, Suspect(part.module, part.incarnation, self.me)))
            self._score(part.unit, part.experts)
            if self._is_whole(part.unit):
                whole.append(part.unit)
        return whole

    def forget(self, units: Iterable[Unit]) -> None:
        """Drop what units have asked for."""
        gone = {id(unit) for unit in units}
        for number in [n for n, p in self.parts.items() if id(p.unit) in gone]:
            del self.parts[number]

    def _ask(self, unit: Unit, experts: np.ndarray, view: View, now: float) -> bool:
        scorer = scorers(view, unit.layer, self.me)[experts]  # [n]
        for module in np.unique(scorer[scorer != self.me]).tolist():
            number, theirs = self.requests.number(), experts[scorer == module]
            incarnation = int(view.incarnations[module])
            self.parts[number] = Part(unit, theirs, module, incarnation, now + self.patience)
            self._send(number, self.parts[number])
        if (scorer == self.me).any():
            self._score(unit, experts[scorer == self.me])
        return self._is_whole(unit)

    def _send(self, number: int, part: Part) -> None:
        unit, held = part.unit, part.unit.slice
        assert unit.x is not None
        where = self.me, number, held.batch, held.slice, unit.micro, unit.layer
        self.out.append(Send(part.module, OfferRequest(*where, unit.x, part.experts)))

    def _score(self, unit: Unit, experts: np.ndarray) -> None:
        assert unit.x is not None
        began_s = self.clock()
        unit.offers.append(score(self.model, unit.layer, unit.x, experts))
        self.worked.append((OFFERED, unit, unit.layer, len(experts), began_s, self.clock()))

    def _is_whole(self, unit: Unit) -> bool:
        return all(part.unit is not unit for part in self.parts.values())
