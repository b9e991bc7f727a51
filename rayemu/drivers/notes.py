"""What each process notes in the record: the frames that it sends, and the work that it does."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from rayemu.drivers.record import (
    COMBINE,
    CONTROL,
    DECODE,
    DISPATCH,
    ENCODE,
    FORWARD,
    GEMM,
    GROUPS,
    OFFER,
    OFFER_REPLY,
    OFFER_REQUEST,
    REPLY,
    RESULT,
    ROUTE,
    ROUTE_REPLY,
    ROUTE_REQUEST,
    SCORES,
    SLICE,
    SUBMIT,
    Recorder,
)
from rayemu.model.spec import ModelSpec
from rayemu.protocol.config import LEVELS, TOTALS
from rayemu.protocol.lending import carried, carried_bytes
from rayemu.protocol.messages import (
    Dispatch,
    GroupsReply,
    Message,
    OfferReply,
    OfferRequest,
    Reply,
    Result,
    RouteReply,
    RouteRequest,
    Scores,
    Send,
    Slice,
    Submit,
)
from rayemu.protocol.module import ModuleMachine
from rayemu.protocol.relay import INCARNATION_SHIFT
from rayemu.protocol.server import Job
from rayemu.protocol.slices import COMBINED, MERGED, OFFERED, Unit

_BYTES_PER_CHOICE = 8  # expert and weight


_CARRYING = {
    Submit: SUBMIT,
    Slice: SLICE,
    RouteRequest: ROUTE_REQUEST,
    RouteReply: ROUTE_REPLY,
    Scores: SCORES,
    GroupsReply: GROUPS,
    OfferRequest: OFFER_REQUEST,
    OfferReply: OFFER_REPLY,
    Result: RESULT,
}


class ActorRecord:
    """Notes what one actor sends.

    `clock` gives the time in seconds; what has no end of its own has ended when it is noted.
    """

    def __init__(
        self, recorder: Recorder, me: int, incarnation: int, spec: ModelSpec, clock: Callable[[], float]
    ) -> None:
        self._write = recorder.write
        self._clock, self._on = clock, recorder.on
        self._me, self._incarnation, self._spec = me, incarnation, spec

    def frame(
        self, message: Message, to: int, size: int, queued_s: float, start_s: float, level: int = 0
    ) -> None:
        """Note that a frame of `size` bytes was sent; that of a dispatch or reply is `ModuleRecord.sent`."""
        if not self._on:
            return
        kind = _CARRYING.get(type(message), CONTROL)
        if kind == CONTROL:
            self.control(to, size, queued_s, start_s, self._clock(), level)
            return
        me = self._me
        home = me if me >= 0 else to
        batch: int = message.batch  # type: ignore[union-attr]
        slice = micro = layer = request = -1
        if isinstance(message, Submit):
            home = -1
        else:
            slice = message.slice  # type: ignore[union-attr]
        if isinstance(message, (RouteRequest, RouteReply, Scores, GroupsReply, OfferRequest, OfferReply)):
            micro, layer = message.micro, message.layer
        if isinstance(message, (OfferRequest, OfferReply)):
            home, request = message.home, message.request
        if isinstance(message, (RouteReply, OfferReply)):
            rows, carried = len(message.experts), message.experts.size * _BYTES_PER_CHOICE
        elif isinstance(message, Scores):
            rows, carried = len(message.scores), message.scores.nbytes
        elif isinstance(message, GroupsReply):
            rows, carried = len(message.groups), message.groups.nbytes
        else:
            rows, carried = len(message.rows), message.rows.nbytes  # type: ignore[union-attr]
            if isinstance(message, Slice) and message.experts is not None:
                carried += message.experts.size * _BYTES_PER_CHOICE
        where = (kind, level, 0, me, to, self._incarnation, home, layer, micro, batch, slice, -1, -1)
        times = queued_s, start_s, self._clock()
        self._write((*where, rows, -1, -1, request, -1, 0.0, carried, size, *times))

    def control(
        self, to: int, size: int, queued_s: float, start_s: float, end_s: float, level: int = 0
    ) -> None:
        """Note a frame of the protocol's own."""
        # fmt: off
        self._write((
            CONTROL, level, 0, self._me, to, self._incarnation, -1, -1, -1, -1, -1, -1, -1,
            0, -1, -1, -1, -1, 0.0, 0, size, queued_s, start_s, end_s,
        ))
        # fmt: on

    def routed(self, sends: list[Send], start_s: float) -> None:
        """Note the routing of what the coordinator is about to send, which took it from `start_s` to now.

        A decision for a whole batch is one row, of no home; who asks for it later is told again.
        """
        if not self._on:
            return
        chosen: list[tuple[RouteReply | GroupsReply | Slice, int, int]] = []  # with rows and their home
        decided: dict[tuple[int, int], int] = {}  # batch and layer: rows
        for send in sends:
            m = send.message
            if isinstance(m, RouteReply) and m.order >= 0:
                decided[m.batch, m.layer] = decided.get((m.batch, m.layer), 0) + len(m.experts)
            elif isinstance(m, GroupsReply):
                chosen.append((m, len(m.groups), send.to))
            elif isinstance(m, (RouteReply, Slice)) and m.experts is not None:
                chosen.append((m, len(m.experts), send.to))
        for (batch, layer), rows in decided.items():
            where = (ROUTE, 0, 0, self._me, self._me, self._incarnation, -1, layer, -1, batch, -1, -1, -1)
            flops, size = float(rows * self._spec.experts), 4 * rows * self._spec.experts
            times = start_s, start_s, self._clock()
            self._write((*where, rows, -1, -1, -1, -1, flops, size, 0, *times))
        if not chosen:
            return
        took_s = (self._clock() - start_s) / sum(rows for _, rows, _ in chosen)
        began_s = start_s
        for m, rows, home in chosen:
            ended_s = began_s + took_s * rows
            micro, layer = (-1, 0) if isinstance(m, Slice) else (m.micro, m.layer)
            self._route(m.batch, m.slice, micro, layer, home, rows, start_s, began_s, ended_s)
            began_s = ended_s

    def _route(
        self,
        batch: int,
        slice: int,
        micro: int,
        layer: int,
        home: int,
        rows: int,
        queued_s: float,
        start_s: float,
        end_s: float,
    ) -> None:
        me, d_model = self._me, self._spec.d_model
        where = (ROUTE, 0, 0, me, me, self._incarnation, home, layer, micro, batch, slice, -1, -1)
        flops = 2.0 * rows * d_model * self._spec.experts
        self._write((*where, rows, -1, -1, -1, -1, flops, rows * d_model * 4, 0, queued_s, start_s, end_s))


class ModuleRecord(ActorRecord):
    """Notes what one module does: in a recorder, and as running totals for live views."""

    def __init__(self, recorder: Recorder, machine: ModuleMachine, clock: Callable[[], float]) -> None:
        super().__init__(recorder, machine.me, machine.incarnation, machine.model.spec, clock)
        self._machine = machine
        self._jobs = (machine.incarnation << INCARNATION_SHIFT) - 1  # number of the last one
        self.totals = dict.fromkeys(TOTALS, 0.0)

    def frame(
        self, message: Message, to: int, size: int, queued_s: float, start_s: float, level: int = 0
    ) -> None:
        """Note that a frame was sent; what goes to another module counts for live views, too."""
        if isinstance(message, OfferRequest):
            self._count(message.rows.nbytes, size, level)
        elif isinstance(message, OfferReply):
            self._count(message.experts.size * _BYTES_PER_CHOICE, size, level)
        super().frame(message, to, size, queued_s, start_s, level)

    def _count(self, raw: int, sent: int, level: int) -> None:
        self.totals["raw_bytes"] += raw
        self.totals["sent_bytes"] += sent
        self.totals[f"sent_{LEVELS[level]}"] += sent

    def worked(self, queued_s: float) -> None:
        """Note what the home has routed and combined since the last call, for what came at `queued_s`."""
        spec = self._spec
        for done in self._machine.worked():
            if not self._on:
                continue
            me, rows, began_s, ended_s = self._me, done.rows, done.began_s, done.ended_s
            batch, slice, micro, layer = done.batch, done.slice, done.micro, done.layer
            if done.what == OFFERED:
                home, request = done.home, done.request
                where = (OFFER, 0, 0, me, me, self._incarnation, home, layer, micro, batch, slice, -1, -1)
                flops, size = 2.0 * rows * spec.d_model * done.outputs, rows * spec.d_model * 4
                times = queued_s, began_s, ended_s
                self._write((*where, rows, -1, -1, request, -1, flops, size, 0, *times))
                continue
            if done.what == MERGED:
                where = (ROUTE, 0, 0, me, me, self._incarnation, me, layer, micro, batch, slice, -1, -1)
                flops, size = float(rows * spec.experts), rows * spec.experts * 4
                self._write((*where, rows, -1, -1, -1, -1, flops, size, 0, queued_s, began_s, ended_s))
                continue
            if done.what != COMBINED:
                self._route(batch, slice, micro, layer, me, rows, queued_s, began_s, ended_s)
                continue
            where = (COMBINE, 0, 0, me, me, self._incarnation, me, layer, micro, batch, slice, -1, -1)
            flops = 2.0 * done.outputs * spec.d_model
            size = rows * spec.d_model * 4
            self._write((*where, rows, -1, -1, -1, -1, flops, size, 0, queued_s, began_s, ended_s))

    def encoded(self, message: Dispatch | Reply, to: int, codec: int, start_s: float) -> None:
        """Note that a codec encoded a message's rows, to be sent to another module."""
        if self._on:
            self._rows(ENCODE, self._machine.level(to), codec, self._me, to, message, start_s, start_s)

    def decoded(self, message: Dispatch | Reply, codec: int, start_s: float) -> None:
        """Note that a codec decoded a message's rows, which another module sent."""
        if self._on:
            sender = sender_of(message)
            level = self._machine.level(sender)
            self._rows(DECODE, level, codec, sender, self._me, message, start_s, start_s)

    def sent(
        self,
        message: Dispatch | Reply,
        to: int,
        codec: int,
        size: int,
        queued_s: float,
        start_s: float,
    ) -> None:
        """Note that a frame of `size` bytes was sent."""
        level = self._machine.level(to)
        self._count(carried_bytes(message), size, level)
        if not self._on:
            return
        if isinstance(message, Dispatch):
            kind = DISPATCH if message.home == self._me else FORWARD
            expert = int(message.lots[0, 1]) if len(message.lots) == 1 else -1
            slice, epoch = message.slice, message.epoch
        else:
            kind, slice, epoch, expert = REPLY, -1, -1, -1
        self._rows(kind, level, codec, self._me, to, message, queued_s, start_s, size, slice, epoch, expert)

    def computed(self, job: Job, start_s: float, end_s: float, ahead_s: float = 0.0) -> None:
        """Note a job's GEMMs: a row for each lot, with the share of the time that its rows have.

        `ahead_s` is by how much the record's clock is ahead of that by which the lots came.
        """
        self.totals["rows"] += job.rows
        self.totals["busy_s"] += end_s - start_s
        if not self._on:
            return
        # As they were computed: expert, rows, since when, home, request, batch, slice, micro.
        lots: list[tuple[Any, ...]] = []
        if job.own is not None:
            unit = job.own.tag
            assert isinstance(unit, Unit)
            where = self._me, -1, unit.slice.batch, unit.slice.slice, unit.micro
            lots.append((-1, job.rows, job.own.since, *where))
        for work in job.works:
            d = work.dispatch
            where = d.home, d.request, d.batch, d.slice, d.micro
            lots += [(expert, rows, work.since, *where) for _, expert, rows in d.lots.tolist()]
        lots.sort(key=itemgetter(0))
        me, layer, width = self._me, job.layer, self._spec.d_model * 4
        flops, took_s = job.flops / max(1, job.rows), (end_s - start_s) / max(1, job.rows)
        done, began_s, last = 0, start_s, None
        for expert, rows, since, home, request, batch, slice, micro in lots:
            self._jobs += expert != last  # all lots of an expert are one GEMM
            last = expert
            done += rows
            ended_s = start_s + took_s * done if done < job.rows else end_s
            # fmt: off
            self._write((
                GEMM, 0, 0, me, me, self._incarnation, home, layer, micro, batch, slice, -1, expert,
                rows, -1, -1, request, self._jobs, flops * rows, rows * width, 0,
                min(since + ahead_s, began_s), began_s, ended_s,
            ))
            # fmt: on
            began_s = ended_s

    def _rows(
        self,
        kind: int,
        level: int,
        codec: int,
        src: int,
        dst: int,
        m: Dispatch | Reply,
        queued_s: float,
        start_s: float,
        size: int = 0,
        slice: int = -1,
        epoch: int = -1,
        expert: int = -1,
    ) -> None:
        rows = carried(m)
        # fmt: off
        self._write((
            kind, level, codec, src, dst, self._incarnation, m.home, m.layer, m.micro, m.batch, slice,
            epoch, expert, rows, -1, -1, m.request, -1, 0.0, rows * m.rows.shape[1] * 4, size,
            queued_s, start_s, self._clock(),
        ))
        # fmt: on


def sender_of(message: Dispatch | Reply) -> int:
    """The module whose frame brought a message."""
    if isinstance(message, Reply):
        return message.sender
    return message.via if message.via >= 0 else message.home
