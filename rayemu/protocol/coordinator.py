"""The coordinator's protocol: ledger, membership and, by choice, routing. Sans-IO."""

from __future__ import annotations

from collections.abc import Container, Iterable
from itertools import islice

import numpy as np

from rayemu.alltoall import ALIVE, DEAD
from rayemu.model.model import Model
from rayemu.model.reference import open_groups, prepare, route
from rayemu.placement import Placement
from rayemu.protocol.config import TOTALS, ProtocolConfig
from rayemu.protocol.decisions import Decider, padded
from rayemu.protocol.epochs import placement_of, slots_of, text_of
from rayemu.protocol.ledger import Ledger
from rayemu.protocol.membership import MemberChange, Membership
from rayemu.protocol.messages import (
    CLIENT,
    Accepted,
    Ack,
    Epoch,
    Failure,
    GroupsReply,
    Heartbeat,
    Join,
    Loaded,
    Message,
    Move,
    Notice,
    RouteReply,
    RouteRequest,
    Scores,
    Send,
    Slice,
    SliceStatus,
    Submit,
    Suspect,
    Totals,
)
from rayemu.protocol.mover import Mover

MOST_WAITING = 8  # overdue slices that a report names
ANNOUNCE_AGAIN = 0.5  # an epoch is repeated after this many retry times to members that lag behind


class CoordinatorMachine:
    """State machine of the coordinator. Batches wait in the ledger until every module has joined.

    Bad news is announced at once, to everyone. Joins and recoveries can wait for the next tick, so that many
    of them are one announcement; and until all have joined for the first time only the one who joins is told,
    without the others' endpoints: M modules start with some 2 M announcements.
    """

    def __init__(
        self, config: ProtocolConfig, model: Model, placement: Placement, module_to_node: np.ndarray
    ) -> None:
        self.config = config
        self.model = model
        self.ledger = Ledger(config.min_slice_rows, config.retry_after, model.spec.top_k)
        self.membership = Membership(
            module_to_node,
            placement,
            (model.spec.layers, model.spec.experts),
            config.suspect_after,
            config.evict_after,
            config.replace_after,
            config.replace,
        )
        self.decider = Decider(model)
        self.changes: list[MemberChange] = []  # for whoever kills and starts processes
        self.totals: dict[int, dict[str, float]] = {}  # module -> its running totals
        self.processes: dict[int, tuple[int, str]] = {}  # module -> (pid, host)
        self.announced_at: dict[int, float] = {}
        self.announced = 0  # the last epoch that everyone was told of
        self.mover: Mover | None = None  # the last move
        self.known = np.zeros(len(module_to_node), np.int64)  # [M] epoch that each module is known to have
        self.complete = False  # all have joined, be it that some are dead now

    def receive(self, message: Message, now: float) -> list[Send]:
        """Handle one message. Raises WireError for scores of no batch and layer's rows."""
        if isinstance(message, RouteRequest):
            return self._route(message)
        if isinstance(message, Scores):
            return self._on_scores(message)
        if isinstance(message, Heartbeat):
            if message.totals:
                self.totals[message.module] = message.totals
            self.known[message.module] = message.epoch
            sends = self.apply(self.membership.heard(message.module, message.incarnation, now), now)
            return sends or self._announce_to_laggard(message, now)
        if isinstance(message, Submit):
            self.ledger.forget_below(message.oldest)
            self.decider.keep(self.ledger.batches)
            slices = self.ledger.submit(message.batch, message.rows, self.membership.view, now)
            return [*self._with_routing(slices), Send(CLIENT, Accepted(message.batch))]
        if isinstance(message, Ack):
            self.ledger.acknowledge(message.batch, message.slice)
            self.decider.keep(self.ledger.batches)
            return []
        if isinstance(message, SliceStatus):
            view = self.membership.view
            return self._with_routing(
                self.ledger.on_status(message.batch, message.slice, message.home, message.known, view, now)
            )
        if isinstance(message, Suspect):
            changes = self.membership.suspect(
                message.module, message.incarnation, f"silent to {message.by}", now
            )
            return self.apply(changes, now)
        if isinstance(message, Loaded):
            return self._on_loaded(message, now)
        if isinstance(message, Move):
            return self._on_move(message, now)
        if isinstance(message, Failure):
            if len(self.membership.view.copies.of(message.layer, message.expert)):
                return self._announce([message.home], now)  # the home's view is old
            if self._is_coming(message.layer, message.expert):
                return []  # it will ask again
            return [Send(message.home if self.config.drop_lost_experts else CLIENT, message)]
        if isinstance(message, Join):
            return self._on_join(message, now)
        return []

    def down(self, module: int, incarnation: int, signal: str, now: float, reason: str = "") -> list[Send]:
        """Handle the death of a module's process, as seen by `signal`."""
        return self.apply(self.membership.down(module, incarnation, signal, now, reason), now)

    def tick(self, now: float, running: Container[int] = ()) -> list[Send]:
        """Handle the passing of time; to be called when no message waits. `running`: see the membership."""
        sends = self.apply(self.membership.tick(now, running), now)
        sends += self._go_on(now)
        if self.complete and self.announced < self.membership.view.epoch:
            sends += self._publish(now)
        return sends + self.ledger.tick(self.membership.view, now)

    def deadline(self, now: float) -> float:
        """When `tick` is due."""
        return min(self.ledger.deadline(), now + self.membership.tick_every)

    # -- experts that move ----------------------------------------------------------------------------
    def _on_move(self, m: Move, now: float) -> list[Send]:
        """Begin with a move, or say how far it is."""
        mover = self.mover
        if mover is None or m.number > mover.number:
            mover = self.mover = Mover(m.number, placement_of(m.slots), self.membership.view, now)
            facts: dict[str, object] = {"move": m.number, "epoch": self.membership.view.epoch}
            return [Send(CLIENT, Notice("moving", now, facts)), *self._go_on(now)]
        return [Send(CLIENT, mover.status(now))] if m.number == mover.number else []

    def _on_loaded(self, m: Loaded, now: float) -> list[Send]:
        news = self.membership.loaded(m.module, m.incarnation, m.epoch, m.slots)
        if not news.any():
            return self._announce([m.module], now)  # it has not heard that this is known
        if self.mover is not None:
            self.mover.fetched += int(m.fetched[news].sum())
        return self._go_on(now)  # if that publishes nothing, the next tick does

    def _go_on(self, now: float) -> list[Send]:
        """Let the move go on as far as it can, and tell everyone of the new table."""
        mover = self.mover
        if mover is None or mover.idle or not self.complete:
            return []
        was_done = mover.done
        table = mover.step(self.membership.view, self.known, now)
        sends: list[Send] = []
        if table is not None:
            self.membership.set_slots(*table)
            sends += self._publish(now)
        if mover.done and not was_done:
            sends.append(Send(CLIENT, mover.status(now)))
        return sends

    def _is_coming(self, layer: int, expert: int) -> bool:
        """Tell whether a live module is loading the expert, or was to let it go and now will not."""
        view = self.membership.view
        placed = view.placement
        theirs = (placed.layer == layer) & (placed.expert == expert)
        return bool((view.state[placed.module[theirs]] != DEAD).any())

    def epoch(self, endpoints: bool = True) -> Epoch:
        """Return the current membership and placement as a message, with or without the endpoints."""
        view = self.membership.view
        return Epoch(
            view.epoch,
            self.ledger.complete_below,
            text_of(self.membership.endpoints) if endpoints else None,
            view.state,
            view.incarnations,
            slots_of(view.placement, view.slot_state),
        )

    def report(self) -> Totals:
        """Return the running totals."""
        known = sorted(module for module, totals in self.totals.items() if totals)
        counts = [[self.totals[module].get(name, 0.0) for name in TOTALS] for module in known]
        return Totals(
            int((self.membership.view.state != DEAD).sum()),
            self.ledger.reissued,
            len(self.ledger.batches),
            np.array(known, np.int32),
            np.array(counts, np.float64).reshape(len(known), len(TOTALS)),
            self._waiting(),
            dict(self.decider.counts),
        )

    def _waiting(self) -> list[list[int]]:
        """Return [batch, slice, home] of some slices that are overdue or have no home (-1)."""
        overdue = (
            [number, entry.slice, entry.home]
            for number, batch in self.ledger.batches.items()
            for entry in batch.open.values()
            if entry.probes or entry.home < 0
        )
        return list(islice(overdue, MOST_WAITING))

    def apply(self, changes: list[MemberChange], now: float) -> list[Send]:
        """Publish membership changes, good news with the next tick, and tell the client of them."""
        if not changes:
            return []
        self.changes += changes
        sends: list[Send] = []
        if any(c.kind in ("suspected", "dead") for c in changes):
            sends += self._go_on(now)  # what leaves may have become the last copy
            if self.announced < self.membership.view.epoch:
                sends += self._publish(now)
        for c in changes:
            facts: dict[str, object] = {
                "module": c.module,
                "incarnation": c.incarnation,
                "signal": c.signal,
                "epoch": self.membership.view.epoch,
            }
            if c.reason:
                facts["reason"] = c.reason
            if c.kind == "joined":
                facts["pid"], facts["host"] = self.processes[c.module]
            sends.append(Send(CLIENT, Notice(c.kind, now, facts)))
        return sends

    def _on_join(self, m: Join, now: float) -> list[Send]:
        membership = self.membership
        if m.incarnation < membership.view.incarnations[m.module]:
            return []  # late news of the one before
        self.processes[m.module] = (m.pid, m.host)
        changes = membership.join(m.module, m.incarnation, m.endpoint, m.holds, now)
        sends = self.apply(changes or membership.heard(m.module, m.incarnation, now), now)
        if not self.complete and (membership.view.state != DEAD).all():
            self.complete = True
            return self._publish(now) + sends
        if changes:
            self.known[m.module] = 0
        if changes and not self.complete:
            self.announced_at[m.module] = now
            return [Send(m.module, self.epoch(endpoints=False)), *sends]
        if not changes and self._late(m, now):
            return self._announce([m.module], now) + sends  # it does not know yet that it has joined
        return sends

    def _publish(self, now: float) -> list[Send]:
        """Tell everyone of the membership, and give away the slices of lost homes."""
        self.announced = self.membership.view.epoch
        sends = self._announce(range(self.membership.view.modules), now)
        return sends + self._with_routing(self.ledger.on_view(self.membership.view, now))

    def _announce(self, modules: Iterable[int], now: float) -> list[Send]:
        epoch = self.epoch()
        state = self.membership.view.state
        live = [m for m in modules if state[m] != DEAD]
        for m in live:
            self.announced_at[m] = now
        return [Send(CLIENT, epoch), *(Send(m, epoch) for m in live)]

    def _late(self, m: Join | Heartbeat, now: float) -> bool:
        return now - self.announced_at.get(m.module, now) > ANNOUNCE_AGAIN * self.config.retry_after

    def _announce_to_laggard(self, beat: Heartbeat, now: float) -> list[Send]:
        """Repeat the epoch to a member whose heartbeat shows an older one: its frame was lost."""
        if beat.epoch >= self.announced or not self._late(beat, now):
            return []
        return self._announce([beat.module], now)

    def _with_routing(self, sends: list[Send]) -> list[Send]:
        """Add the first layer's choices to new slices: their rows are at hand here."""
        layer = self.model.layers[0]
        here = self.config.place == "coordinator" and layer.router.scope == "row"
        if not here or not layer.has_experts:
            return sends
        for send in sends:
            if isinstance(send.message, Slice):
                routing = padded(route(layer, prepare(layer, send.message.rows)))
                send.message.experts, send.message.weights = routing.experts, routing.weights
        return sends

    def _route(self, m: RouteRequest) -> list[Send]:
        if self.membership.view.state[m.home] != ALIVE:
            return []
        layer, where = self.model.layers[m.layer], (m.batch, m.slice, m.micro, m.layer)
        if self.config.place == "hybrid":
            return [Send(m.home, GroupsReply(*where, open_groups(layer, m.rows)))]
        routing = padded(route(layer, m.rows))
        return [Send(m.home, RouteReply(*where, routing.experts, routing.weights))]

    def _on_scores(self, m: Scores) -> list[Send]:
        batch = self.ledger.batches.get(m.batch)
        if self.membership.view.state[m.home] != ALIVE:
            return []
        if batch is None:  # over; a home that is not told so would ask for ever
            return [Send(m.home, self.epoch())] if m.batch < self.ledger.complete_below else []
        return self.decider.on_scores(m, len(batch.rows), self.membership.view)
