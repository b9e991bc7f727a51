"""What each process notes in the record: the frames that it sends, and the work that it does."""

from __future__ import annotations

from collections.abc import Callable

from rayemu.drivers.record import (
    COMBINE,
    CONTROL,
    DECODE,
    DISPATCH,
    ENCODE,
    FORWARD,
    GEMM,
    REPLY,
    RESULT,
    ROUTE,
    ROUTE_REPLY,
    ROUTE_REQUEST,
    SLICE,
    SUBMIT,
    Recorder,
)
from rayemu.model.spec import ModelSpec
from rayemu.protocol.config import LEVELS, TOTALS
from rayemu.protocol.home import COMBINED
from rayemu.protocol.messages import (
    Dispatch,
    Message,
    Reply,
    Result,
    RouteReply,
    RouteRequest,
    Send,
    Slice,
    Submit,
)
from rayemu.protocol.module import ModuleMachine
from rayemu.protocol.relay import INCARNATION_SHIFT
from rayemu.protocol.server import SHARED, Job
from rayemu.protocol.slices import Unit

_BYTES_PER_CHOICE = 8  # expert and weight
_CARRYING = {
    Submit: SUBMIT,
    Slice: SLICE,
    RouteRequest: ROUTE_REQUEST,
    RouteReply: ROUTE_REPLY,
    Result: RESULT,
}


class ActorRecord:
    """Notes what one actor sends.

    `clock` gives the time in seconds; what has no end of its own has ended when it is noted.
    """

    def __init__(
        self, recorder: Recorder, me: int, incarnation: int, spec: ModelSpec, clock: Callable[[], float]
    ) -> None:
        self._append, self._clock, self._on = recorder.append, clock, recorder.on
        self._me, self._incarnation, self._spec = me, incarnation, spec

    def frame(
        self, message: Message, to: int, size: int, queued_s: float, start_s: float, level: int = 0
    ) -> None:
        """Note that a frame of `size` bytes was sent; that of a dispatch or reply is `ModuleRecord.sent`."""
        if not self._on:
            return
        kind = _CARRYING.get(type(message), CONTROL)
        facts: dict[str, int] = {}
        rows = 0
        if kind != CONTROL:
            if isinstance(message, RouteReply):
                rows = len(message.experts)
                facts["raw_bytes"] = message.experts.size * _BYTES_PER_CHOICE
            else:
                rows, facts["raw_bytes"] = len(message.rows), message.rows.nbytes  # type: ignore[union-attr]
            facts["batch"] = message.batch  # type: ignore[union-attr]
            if kind != SUBMIT:
                facts["slice"] = message.slice  # type: ignore[union-attr]
                facts["home"] = self._me if self._me >= 0 else to
            if isinstance(message, (RouteRequest, RouteReply)):
                facts["micro"], facts["layer"] = message.micro, message.layer
            elif isinstance(message, Slice) and message.experts is not None:
                facts["raw_bytes"] += message.experts.size * _BYTES_PER_CHOICE
        self._append(
            kind,
            self._me,
            to,
            rows,
            start_s,
            self._clock(),
            queued_s=queued_s,
            incarnation=self._incarnation,
            level=level,
            sent_bytes=size,
            **facts,
        )

    def control(self, to: int, size: int, start_s: float, end_s: float) -> None:
        """Note a frame of the protocol's own that another thread sent."""
        self._append(CONTROL, self._me, to, 0, start_s, end_s, incarnation=self._incarnation, sent_bytes=size)

    def routed(self, sends: list[Send], start_s: float) -> None:
        """Note the routing of what the coordinator is about to send, which took it from `start_s` to now."""
        if not self._on:
            return
        chosen: list[tuple[RouteReply | Slice, int, int]] = []  # with the rows and their home
        for send in sends:
            m = send.message
            if isinstance(m, (RouteReply, Slice)) and m.experts is not None:
                chosen.append((m, len(m.experts), send.to))
        if not chosen:
            return
        took_s = (self._clock() - start_s) / sum(rows for _, rows, _ in chosen)
        began_s = start_s
        for m, rows, home in chosen:
            ended_s = began_s + took_s * rows
            micro, layer = (m.micro, m.layer) if isinstance(m, RouteReply) else (-1, 0)
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
        self._append(
            ROUTE,
            self._me,
            self._me,
            rows,
            start_s,
            end_s,
            queued_s=queued_s,
            incarnation=self._incarnation,
            batch=batch,
            slice=slice,
            micro=micro,
            layer=layer,
            home=home,
            flops=2.0 * rows * self._spec.d_model * self._spec.experts,
            raw_bytes=rows * self._spec.d_model * 4,
        )


class ModuleRecord(ActorRecord):
    """Notes what one module does: in a recorder, and as running totals for live views."""

    def __init__(self, recorder: Recorder, machine: ModuleMachine, clock: Callable[[], float]) -> None:
        super().__init__(recorder, machine.me, machine.incarnation, machine.model.spec, clock)
        self._machine = machine
        self._jobs = machine.incarnation << INCARNATION_SHIFT  # number of the next one
        self.totals = dict.fromkeys(TOTALS, 0.0)

    def worked(self, queued_s: float) -> None:
        """Note what the home has routed and combined since the last call, for what came at `queued_s`."""
        spec = self._spec
        for done in self._machine.worked():
            if not self._on:
                continue
            where = done.batch, done.slice, done.micro, done.layer
            if done.what != COMBINED:
                self._route(*where, self._me, done.rows, queued_s, done.began_s, done.ended_s)
                continue
            batch, slice, micro, layer = where
            self._append(
                COMBINE,
                self._me,
                self._me,
                done.rows,
                done.began_s,
                done.ended_s,
                queued_s=queued_s,
                incarnation=self._incarnation,
                layer=layer,
                micro=micro,
                batch=batch,
                slice=slice,
                home=self._me,
                flops=2.0 * done.rows * spec.top_k * spec.d_model,
                raw_bytes=done.rows * spec.d_model * 4,
            )

    def encoded(self, message: Dispatch | Reply, to: int, codec: int, start_s: float) -> None:
        """Note that a codec encoded a message's rows, to be sent to another module."""
        level = self._machine.level(to)
        self._rows(ENCODE, message, self._me, to, start_s, start_s, level=level, codec=codec)

    def decoded(self, message: Dispatch | Reply, codec: int, start_s: float) -> None:
        """Note that a codec decoded a message's rows, which another module sent."""
        sender = sender_of(message)
        level = self._machine.level(sender)
        self._rows(DECODE, message, sender, self._me, start_s, start_s, level=level, codec=codec)

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
        self.totals["raw_bytes"] += message.rows.nbytes
        self.totals["sent_bytes"] += size
        self.totals[f"sent_{LEVELS[level]}"] += size
        if not self._on:
            return
        if isinstance(message, Dispatch):
            kind = DISPATCH if message.home == self._me else FORWARD
            slice, epoch = message.slice, message.epoch
            expert = message.lots[0][1] if len(message.lots) == 1 else -1
        else:
            kind, slice, epoch, expert = REPLY, -1, -1, -1
        self._rows(
            kind,
            message,
            self._me,
            to,
            queued_s,
            start_s,
            slice=slice,
            epoch=epoch,
            expert=expert,
            level=level,
            codec=codec,
            sent_bytes=size,
        )

    def computed(self, job: Job, start_s: float, end_s: float, ahead_s: float = 0.0) -> None:
        """Note a GEMM: a row for each part of it, with the share of the time that its rows have.

        `ahead_s` is by how much the record's clock is ahead of that by which the parts came.
        """
        self.totals["rows"] += job.rows
        self.totals["busy_s"] += end_s - start_s
        if not self._on:
            return
        number = self._jobs
        self._jobs += 1
        shared = job.expert == SHARED
        d_model, done, began_s = self._spec.d_model, 0, start_s
        for part in job.parts:
            rows = part.count
            done += rows
            ended_s = start_s + (end_s - start_s) * done / job.rows if done < job.rows else end_s
            if part.work is not None:
                d = part.work.dispatch
                home, request, batch, slice, micro = d.home, d.request, d.batch, d.slice, d.micro
            else:
                unit = part.tag
                assert isinstance(unit, Unit)
                home, request, micro = self._me, -1, unit.micro
                batch, slice = unit.slice.batch, unit.slice.slice
            self._append(
                GEMM,
                self._me,
                self._me,
                rows,
                began_s,
                ended_s,
                queued_s=min(part.since + ahead_s, began_s),
                incarnation=self._incarnation,
                layer=job.layer,
                micro=micro,
                batch=batch,
                slice=slice,
                expert=-1 if shared else job.expert,
                home=home,
                request=request,
                job=number,
                flops=job.flops * rows / job.rows,
                raw_bytes=rows * d_model * 4,
            )
            began_s = ended_s

    def _rows(
        self,
        kind: int,
        message: Dispatch | Reply,
        src: int,
        dst: int,
        queued_s: float,
        start_s: float,
        **facts: int,
    ) -> None:
        self._append(
            kind,
            src,
            dst,
            len(message.rows),
            start_s,
            self._clock(),
            queued_s=queued_s,
            incarnation=self._incarnation,
            layer=message.layer,
            micro=message.micro,
            batch=message.batch,
            home=message.home,
            request=message.request,
            raw_bytes=message.rows.nbytes,
            **facts,
        )


def sender_of(message: Dispatch | Reply) -> int:
    """The module whose frame brought a message."""
    if isinstance(message, Reply):
        return message.sender
    return message.via if message.via >= 0 else message.home
