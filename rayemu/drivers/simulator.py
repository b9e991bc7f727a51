"""A deterministic simulation: the real state machines over a seeded network and a virtual clock.

The same objects that the actors drive exchange the same encoded frames, but delays, losses, duplicates,
corruption, crashes and hangs come from a seed, so every failure can be replayed. It is also the
`memory` transport: a run without Ray.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from rayemu.alltoall import DEAD, View
from rayemu.compression import CodecError, WireError
from rayemu.drivers.record import VIRTUAL_RECORD, ModuleRecord, Recorder, in_order, totals_report
from rayemu.model.model import Model
from rayemu.placement import Placement
from rayemu.protocol.bounds import Bounds
from rayemu.protocol.client import CLOSED, BatchResult, ClientMachine, StalledError
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.coordinator import CoordinatorMachine
from rayemu.protocol.faults import MESSAGE_FAULTS, MessageFaults
from rayemu.protocol.memory import fresh_rows
from rayemu.protocol.messages import (
    CLIENT,
    COORDINATOR,
    Dispatch,
    Heartbeat,
    Join,
    Message,
    Notice,
    Reply,
    Send,
)
from rayemu.protocol.module import ModuleMachine, view_of
from rayemu.protocol.server import Job, run_job
from rayemu.protocol.wire import Wire


@dataclass(frozen=True)
class Network:
    """What happens to frames: probabilities per frame, delays in virtual seconds.

    Delays are exponential around `delay`, so frames overtake each other.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0001
    straggle: float = 0.0  # probability of a hundredfold delay


@dataclass
class Counters:
    """What the network and the faults did."""

    frames: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    refused: int = 0  # frames that nobody could make sense of
    crashes: int = 0
    hangs: int = 0


class SimulationStuck(StalledError):
    """The virtual time limit passed before the run was done, or the emulator was closed."""


class _Module:
    def __init__(self, machine: ModuleMachine, record: ModuleRecord, rng: np.random.Generator) -> None:
        self.machine = machine
        self.record = record
        self.faults = MessageFaults(rng)
        self.up = True
        self.frozen_until = 0.0
        self.slow_until, self.slow_factor = 0.0, 1.0
        self.busy = False
        self.wake_at = float("inf")


class Simulator:
    """All actors of one run in one thread. Seeded: the same arguments give the same run."""

    def __init__(
        self,
        config: ProtocolConfig,
        model: Model,
        placement: Placement,
        module_to_node: np.ndarray,
        seed: int = 0,
        network: Network | None = None,
        heartbeat: float = 0.04,
        start_up: float = 0.05,
    ) -> None:
        self.config, self.model = config, model
        self.size = model.spec.layers, model.spec.experts
        self.rng = np.random.default_rng(seed)
        self.network = network or Network()
        self.heartbeat, self.start_up = heartbeat, start_up
        self.wire = Wire(config.codecs, Bounds.of(model.spec, len(module_to_node)))
        self.recorder = Recorder()
        self.now = 0.0
        self.counters = Counters()
        self.coordinator = CoordinatorMachine(config, model, placement, module_to_node)
        self.client = ClientMachine(model.spec, config.retry_after, config.stall_after)
        self.coordinator_faults, self.client_faults = MessageFaults(self.rng), MessageFaults(self.rng)
        self.modules: list[_Module | None] = [None] * len(module_to_node)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._closed = False
        first = view_of(self.coordinator.epoch(), module_to_node, self.size)
        for module in range(len(module_to_node)):
            self._boot(module, 0, first)
        self.at(0.0, self._tick_coordinator)
        self._run_until(lambda: bool((self.coordinator.membership.view.state != DEAD).all()), 60.0)

    # -- for whoever runs it ----------------------------------------------------------------------------
    new_rows = staticmethod(fresh_rows)

    def submit(self, x: np.ndarray) -> int:
        """Submit a batch x [T, D]; return its number."""
        number, sends = self.client.submit(x, self.now)
        self._send(CLIENT, sends)
        return number

    def result(self, number: int, timeout_s: float = 600.0) -> BatchResult:
        """Run until a batch is finished. StalledError after `stall_after` virtual seconds without progress.

        SimulationStuck after `timeout_s`.
        """
        client = self.client
        try:
            self._run_until(
                lambda: number in client.finished or bool(client.stalled(number, self.now)), timeout_s
            )
        except SimulationStuck as error:
            if number in self.client.pending:
                waits = self.client.waits_for(number, self.now)
                raise SimulationStuck(f"batch {number}: {error}: {waits}") from None
            raise
        result = client.take(number)
        if result is None:
            stalled = client.stalled(number, self.now)
            assert stalled is not None
            raise stalled
        return result

    def abandon(self, numbers: Iterable[int]) -> None:
        """Forget batches that nobody waits for any more."""
        self._send(CLIENT, self.client.abandon(numbers))

    # The rest makes it the `memory` transport, in place of a cluster's session.
    pids: dict[int, tuple[int, str]] = {}  # noqa: RUF012  there are no processes

    def take_notices(self) -> list[Notice]:
        """Return and forget what the coordinator reported."""
        return self.client.take_notices()

    @property
    def duplicate_results(self) -> int:
        """Slice results that came again and were not taken."""
        return self.client.duplicate_results

    @property
    def totals(self) -> dict[str, object]:
        """Running totals, as the coordinator of a cluster reports them."""
        for state in self.modules:
            if state is not None:
                self.coordinator.totals[state.machine.me] = dict(state.record.totals)
        return totals_report(self.coordinator.report())

    def poll(self) -> None:
        """Handle what is due now."""
        self._run_until(lambda: not self._queue or self._queue[0][0] > self.now, 1.0)

    def record(self) -> np.ndarray:
        """Return the record so far (VIRTUAL_RECORD rows). Codecs take no virtual time."""
        return in_order(self.recorder.rows().view(VIRTUAL_RECORD))

    def close(self) -> None:
        """Forget everything that is under way. Another thread's call ends with SimulationStuck."""
        self._closed = True

    def inject(self, fault: dict[str, Any], module: int | None) -> None:
        """Begin a fault at a module, or at all; message faults without a module also hit the coordinator."""
        kind = fault["kind"]
        if module is None and kind in MESSAGE_FAULTS:
            self.coordinator_faults.begin(fault, self.now)
        for number in range(len(self.modules)) if module is None else [module]:
            state = self.modules[number]
            if state is None or not state.up:
                continue
            if kind in MESSAGE_FAULTS:
                state.faults.begin(fault, self.now)
            elif kind == "kill":
                self.crash(number, noticed_after=0.006)
            elif kind == "hang":
                self.hang(number, fault["for"])
            elif kind == "slow":
                state.slow_until, state.slow_factor = self.now + fault["for"], fault["factor"]
            else:
                raise ValueError(f"fault {kind!r} is none that the memory transport knows")

    def crash(self, module: int, noticed_after: float | None = None) -> None:
        """Kill a module now. Its process is seen dead after a while, or (None) only by its silence."""
        state = self.modules[module]
        if state is None or not state.up:
            return
        state.up = False
        self.counters.crashes += 1
        incarnation = state.machine.incarnation
        if noticed_after is not None:
            self.at(noticed_after, lambda: self._down(module, incarnation))

    def hang(self, module: int, duration: float) -> None:
        """Freeze a module for a while: nothing is handled or sent; messages wait."""
        state = self.modules[module]
        if state is not None and state.up:
            self.counters.hangs += 1
            state.frozen_until = self.now + duration

    def at(self, delay: float, action: Callable[[], None]) -> None:
        """Do something after a virtual delay; equal times keep the order of these calls."""
        self._order += 1
        heapq.heappush(self._queue, (self.now + delay, self._order, action))

    # -- the kernel -------------------------------------------------------------------------------------
    def _run_until(self, done: Callable[[], bool], limit: float) -> None:
        end = self.now + limit
        while not done():
            if self._closed:
                raise SimulationStuck(CLOSED)
            if not self._queue or self._queue[0][0] > end:
                raise SimulationStuck(f"nothing finished within {limit:g} virtual seconds")
            self.now, _, action = heapq.heappop(self._queue)
            action()

    def _send(self, sender: int, sends: list[Send]) -> None:
        for send in sends:
            frame = self._encode(sender, send)
            self._note(sender, send, len(frame))
            self.counters.frames += 1
            (arriving,), delays = self._faults(sender).through([frame], self.now)
            if not delays:
                self.counters.lost += 1
                continue
            self.counters.duplicated += len(delays) - 1
            self.counters.corrupted += arriving is not frame
            frame, copies = arriving, 1
            draw = self.rng.random(4)
            if draw[0] < self.network.loss:
                self.counters.lost += 1
                continue
            if draw[1] < self.network.duplicate:
                self.counters.duplicated += 1
                copies = 2
            if draw[2] < self.network.corrupt:
                self.counters.corrupted += 1
                frame = frame.copy()
                frame[self.rng.integers(len(frame))] ^= np.uint8(1 << self.rng.integers(8))
            for held in delays * copies:
                delay = float(self.rng.exponential(self.network.delay))
                if draw[3] < self.network.straggle:
                    delay *= 100
                self._deliver(send.to, frame, held + delay)

    def _faults(self, sender: int) -> MessageFaults:
        state = self.modules[sender] if sender >= 0 else None
        if state is not None:
            return state.faults
        return self.coordinator_faults if sender == COORDINATOR else self.client_faults

    def _note(self, sender: int, send: Send, size: int) -> None:
        """Record a frame with rows."""
        message, state = send.message, self.modules[sender] if sender >= 0 else None
        if state is not None and isinstance(message, (Dispatch, Reply)):
            if send.codec:
                state.record.encoded(message, send.to, send.codec, self.now)
            state.record.sent(message, send.to, send.codec, size, self.now)

    def _deliver(self, to: int, frame: np.ndarray, delay: float) -> None:
        incarnation = self._incarnation(to)
        self.at(delay, lambda: self._arrive(to, incarnation, frame))

    def _incarnation(self, address: int) -> int:
        state = self.modules[address] if address >= 0 else None
        return state.machine.incarnation if state is not None else 0

    def _encode(self, sender: int, send: Send) -> np.ndarray:
        try:
            return self.wire.encode(send.message, send.codec)
        except CodecError:  # a value that this codec cannot carry
            state = self.modules[sender]
            assert state is not None
            state.machine.refuse_codec(send)
            return self.wire.encode(send.message)

    def _arrive(self, to: int, incarnation: int, frame: np.ndarray) -> None:
        if to >= 0:
            state = self.modules[to]
            if state is None or not state.up or state.machine.incarnation != incarnation:
                return
            if state.frozen_until > self.now:
                self.at(state.frozen_until - self.now, lambda: self._arrive(to, incarnation, frame))
                return
        try:
            self._handle(to, self.wire.decode(frame.tobytes()))
        except WireError:
            self.counters.refused += 1

    def _handle(self, to: int, message: Message) -> None:
        if to == CLIENT:
            self._send(CLIENT, self.client.receive(message, self.now))
        elif to == COORDINATOR:
            self._coordinate(self.coordinator.receive(message, self.now))
        else:
            state = self.modules[to]
            assert state is not None
            if self.wire.decoded_by and isinstance(message, (Dispatch, Reply)):
                state.record.decoded(message, self.wire.decoded_by, self.now)
            self._after(state, state.machine.receive(message, self.now))

    # -- modules ----------------------------------------------------------------------------------------
    def _boot(self, module: int, incarnation: int, view: View) -> None:
        machine = ModuleMachine(module, incarnation, self.config, self.model, view, self.rng)
        state = _Module(machine, ModuleRecord(self.recorder, machine, lambda: self.now), self.rng)
        self.modules[module] = state
        self._beat(state)

    def _beat(self, state: _Module) -> None:
        machine = state.machine
        if not state.up or self.modules[machine.me] is not state:
            return
        if state.frozen_until <= self.now:
            view = machine.view
            message: Message
            if view.state[machine.me] == DEAD or view.incarnations[machine.me] != machine.incarnation:
                message = Join(machine.me, machine.incarnation, "memory")
            else:
                message = Heartbeat(machine.me, machine.incarnation, view.epoch)
            self._send(machine.me, [Send(COORDINATOR, message)])
        self.at(self.heartbeat, lambda: self._beat(state))

    def _after(self, state: _Module, sends: list[Send]) -> None:
        """Send what a machine wants sent, give it work, and wake it when its next deadline comes."""
        machine = state.machine
        state.record.combines(self.now)
        self._send(machine.me, sends)
        if not state.busy:
            job = machine.next_job(self.now)
            if job is not None:
                state.busy = True
                run_job(self.model, job)
                began, duration = self.now, job.flops / 1e9 + float(self.rng.exponential(0.0002))
                duration *= state.slow_factor if began < state.slow_until else 1.0
                self.at(duration, lambda: self._finished(state, job, began))
        wake = machine.home.wake if state.busy else machine.deadline()
        if wake < state.wake_at:
            state.wake_at = wake
            self.at(max(wake - self.now, 0.0), lambda: self._wake(state))

    def _finished(self, state: _Module, job: Job, began: float) -> None:
        if not state.up:
            return
        if state.frozen_until > self.now:
            self.at(state.frozen_until - self.now, lambda: self._finished(state, job, began))
            return
        state.busy = False
        state.record.computed(job, began, self.now)
        self._after(state, state.machine.finish(job, self.now))

    def _wake(self, state: _Module) -> None:
        state.wake_at = float("inf")
        if not state.up:
            return
        if state.frozen_until > self.now:
            state.wake_at = state.frozen_until
            self.at(state.frozen_until - self.now, lambda: self._wake(state))
            return
        self._after(state, state.machine.tick(self.now))

    # -- coordinator ------------------------------------------------------------------------------------
    def _down(self, module: int, incarnation: int) -> None:
        self._coordinate(self.coordinator.down(module, incarnation, "process", self.now))

    def _coordinate(self, sends: list[Send]) -> None:
        self._send(COORDINATOR, sends)
        changes, self.coordinator.changes = self.coordinator.changes, []
        for change in changes:
            if change.kind == "dead":
                state = self.modules[change.module]
                if state is not None and state.machine.incarnation == change.incarnation:
                    state.up = False  # an evicted module is killed before its replacement starts
            elif change.kind == "replace":
                module, incarnation = change.module, change.incarnation
                self.at(self.start_up, partial(self._replace, module, incarnation))

    def _replace(self, module: int, incarnation: int) -> None:
        nodes = self.coordinator.membership.view.module_to_node
        self._boot(
            module,
            incarnation,
            view_of(self.coordinator.epoch(), nodes, (self.model.spec.layers, self.model.spec.experts)),
        )

    def _tick_coordinator(self) -> None:
        self._coordinate(self.coordinator.tick(self.now))
        self._send(CLIENT, self.client.tick(self.now))
        self.at(self.coordinator.membership.tick_every, self._tick_coordinator)
