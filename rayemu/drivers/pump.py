"""The pumps: what the cluster's runtimes and the simulator do alike with frames, jobs and changes.

A pump drives one state machine: it decodes what arrives, encodes and sends what the machine wants sent, and
notes both. Whoever has a clock, a link and something to compute with is its *driver*, and supplies these.
What codecs cost is measured by the clocks of the wire, which may be none.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Protocol

import numpy as np

from rayemu.alltoall import DEAD
from rayemu.compression import CodecError, WireError
from rayemu.drivers.notes import ActorRecord, ModuleRecord, sender_of
from rayemu.faults import ActiveFaults, Process, fault_of
from rayemu.protocol.coordinator import CoordinatorMachine
from rayemu.protocol.lending import frame_bytes
from rayemu.protocol.messages import Dispatch, Epoch, Inject, Join, Reply, Send
from rayemu.protocol.module import ModuleMachine
from rayemu.protocol.server import Job
from rayemu.protocol.wire import Wire


class Driver(Protocol):
    """What every pump asks of its driver."""

    def clock(self) -> float:
        """The time that deadlines are in, in seconds."""

    def record_clock(self) -> float:
        """The time that the record is in, in seconds."""

    def send(self, address: int, frame: list[np.ndarray], delays: list[float], now: float) -> None:
        """Send a frame in pieces to an address: a copy after each of these delays, in seconds from now."""

    def shares(self, address: int) -> bool:
        """Whether an address reads large pieces where they lie, in shared memory."""


class ModuleDriver(Driver, Protocol):
    """What a module's pump asks besides."""

    def compute(self, job: Job) -> None:
        """Compute a job, and call `ModulePump.finished` with it: before this returns, or later."""

    def meet(self, epoch: Epoch) -> None:
        """Learn where the others are."""

    @property
    def process(self) -> Process:
        """What faults strike."""


class CoordinatorDriver(Driver, Protocol):
    """What the coordinator's pump asks besides. Neither `kill` nor `replace` may wait for a process."""

    def meet(self, join: Join) -> None:
        """Learn where a module is that says that it is ready."""

    def kill(self, module: int, incarnation: int) -> None:
        """See to it that this incarnation of a module has ended."""

    def replace(self, module: int, incarnation: int) -> None:
        """Start a new incarnation of a module."""


class ModulePump:
    """Drives one module's machine: frames in, frames out, one job at a time."""

    def __init__(
        self,
        driver: ModuleDriver,
        machine: ModuleMachine,
        wire: Wire,
        record: ModuleRecord,
        faults: ActiveFaults,
    ) -> None:
        self.machine, self.wire, self.record, self.faults = machine, wire, record, faults
        self._clock, self._record_clock, self._send = driver.clock, driver.record_clock, driver.send
        self._shares = driver.shares
        self._compute, self._meet, self._process = driver.compute, driver.meet, driver.process
        self.busy = False  # a job is under way

    # -- frames -----------------------------------------------------------------------------------------
    def on_frame(self, frame: Any) -> bool:
        """Handle a frame; False if it made no sense: it is damaged, or of another run or request."""
        start = self._record_clock()
        try:
            message = self.wire.decode(frame)
        except WireError:
            return False
        if isinstance(message, Inject):
            self.inject(message.fault)
            return True
        if isinstance(message, (Dispatch, Reply)):
            if message.sent_at:
                self._gauge(message, frame, start)
            if self.wire.decoded_by:
                self._note_coder(self.wire.decoded_by, message, True)
                self.record.decoded(message, self.wire.decoded_by, start)
        if isinstance(message, Epoch) and message.epoch >= self.machine.view.epoch:
            self._meet(message)
        try:
            sends = self.machine.receive(message, self._clock())
        except WireError:  # a reply to something else
            return False
        self.emit(sends, start)
        return True

    def emit(self, sends: list[Send], start_s: float) -> None:
        """Encode and send; record that, and what the home did since `start_s`."""
        self.record.worked(start_s)
        for send in sends:
            message, to = send.message, send.to
            began, shared = self._record_clock(), self._shares(to)
            try:
                pieces = self.wire.encode_pieces(message, send.codec, timed=send.timed, shared=shared)
            except CodecError:  # a value that this codec cannot carry
                self.machine.refuse_codec(send)
                pieces = self.wire.encode_pieces(message)
            if send.codec and isinstance(message, (Dispatch, Reply)):
                self._note_coder(send.codec, message, False)
                self.record.encoded(message, to, send.codec, began)
            now = self._clock()
            frame, delays = self.faults.through(pieces, now, shared)
            self._send(to, frame, delays, now)
            size = sum(map(len, pieces))
            if isinstance(message, (Dispatch, Reply)):
                size = size if send.codec else frame_bytes(message, pieces)
                self.record.sent(message, to, send.codec, size, start_s, began)
            else:
                self.record.frame(message, to, size, start_s, began, self.machine.level(to))

    def _gauge(self, message: Dispatch | Reply, frame: list[Any], start_s: float) -> None:
        """Take in what a frame with rows tells of the link."""
        gauge = self.machine.gauges.get(self.machine.level(sender_of(message)))
        if gauge is not None:
            gauge.arrived(sum(map(len, frame)), start_s - message.sent_at)

    def _note_coder(self, codec: int, message: Dispatch | Reply, decoding: bool) -> None:
        """Take in how long the codec of a message's rows took just now."""
        coders, wire = self.machine.coders, self.wire
        coders.used(wire.codecs[codec], message.rows.nbytes, wire.coder_s, decoding)

    # -- time and jobs ----------------------------------------------------------------------------------
    def wake(self) -> float:
        """When there is something to do if nothing comes before: `tick`, or `work`, or neither after all."""
        return self.machine.wake if self.busy else self.machine.deadline()

    def tick(self) -> None:
        """Handle the passing of time."""
        start = self._record_clock()
        self.emit(self.machine.tick(self._clock()), start)

    def work(self) -> None:
        """Begin jobs, until one is under way or none is worth beginning."""
        while not self.busy:
            job = self.machine.next_job(self._clock())
            if job is None:
                return
            self.busy = True
            self._compute(job)

    def finished(self, job: Job, start_s: float, end_s: float) -> None:
        """Handle a job computed between these times of the record's clock."""
        self.busy = False
        start, now = self._record_clock(), self._clock()
        self.record.computed(job, start_s, end_s, start - now)
        self.emit(self.machine.finish(job, now), start)

    # -- life -------------------------------------------------------------------------------------------
    def has_joined(self) -> bool:
        """Whether the module knows that it is a member: until then it asks to join."""
        view, me = self.machine.view, self.machine.me
        return bool(view.state[me] != DEAD and view.incarnations[me] == self.machine.incarnation)

    def inject(self, told: dict[str, Any]) -> None:
        """Begin a fault at this module. ValueError where it makes no sense: see `fault_of`."""
        fault, seconds = fault_of(told)
        self.faults.begin(fault, self._clock() + seconds)
        fault.strike(self._process, seconds)


class CoordinatorPump:
    """Drives the coordinator's machine: frames in, frames out, processes killed and replaced."""

    def __init__(
        self,
        driver: CoordinatorDriver,
        machine: CoordinatorMachine,
        wire: Wire,
        record: ActorRecord,
        faults: ActiveFaults,
    ) -> None:
        self.machine, self.wire, self.record, self.faults = machine, wire, record, faults
        self._clock, self._record_clock = driver.clock, driver.record_clock
        self._send, self._shares, self._meet = driver.send, driver.shares, driver.meet
        self._kill, self._replace = driver.kill, driver.replace

    def on_frame(self, frame: Any) -> bool:
        """Handle a frame; False if it made no sense."""
        start = self._record_clock()
        try:
            message = self.wire.decode(frame)
        except WireError:
            return False
        if isinstance(message, Inject):
            self.inject(message.fault)
            return True
        if isinstance(message, Join):
            self._meet(message)
        try:
            sends = self.machine.receive(message, self._clock())
        except WireError:  # scores of other rows
            return False
        self.emit(sends, start)
        return True

    def inject(self, told: dict[str, Any]) -> None:
        """Begin a fault. Those of a module's process do not concern the coordinator."""
        fault, seconds = fault_of(told)
        self.faults.begin(fault, self._clock() + seconds)

    def down(self, module: int, incarnation: int, signal: str, reason: str = "") -> None:
        """Handle the death of a module's process, as seen by `signal`."""
        start = self._record_clock()
        self.emit(self.machine.down(module, incarnation, signal, self._clock(), reason), start)

    def suspect(self, module: int, incarnation: int, signal: str) -> None:
        """Handle a sign that a module hangs."""
        start, now = self._record_clock(), self._clock()
        changes = self.machine.membership.suspect(module, incarnation, signal, now)
        self.emit(self.machine.apply(changes, now), start)

    def tick(self, running: Container[int] = ()) -> None:
        """Handle the passing of time; `running` are modules whose processes were just seen to run."""
        start = self._record_clock()
        self.emit(self.machine.tick(self._clock(), running), start)

    def emit(self, sends: list[Send], start_s: float) -> None:
        """Encode and send; record that, and what was routed since `start_s`, when that which led to it came.

        Then end and replace modules as the machine wants it.
        """
        self.record.routed(sends, start_s)
        last, sharing = None, False
        for send in sends:
            began = self._record_clock()
            shared = self._shares(send.to)
            if send.message is not last or shared is not sharing:  # an epoch goes to everyone
                last, sharing = send.message, shared
                pieces = self.wire.encode_pieces(send.message, shared=shared)
            now = self._clock()
            frame, delays = self.faults.through(pieces, now, shared)
            self._send(send.to, frame, delays, now)
            size = sum(map(len, pieces))
            self.record.frame(send.message, send.to, size, start_s, began)
        changes, self.machine.changes = self.machine.changes, []
        for change in changes:
            if change.kind in ("dead", "replacement_failed"):
                self._kill(change.module, change.incarnation)
            elif change.kind == "replace":
                self._replace(change.module, change.incarnation)
