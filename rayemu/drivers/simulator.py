"""A deterministic simulation: the real state machines over a seeded network and a virtual clock.

The same objects that the actors drive exchange the same encoded frames, but delays, losses, duplicates,
corruption, crashes and hangs come from a seed, so every failure can be replayed. It is also the
`memory` transport: a run without Ray.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

from rayemu.alltoall import DEAD, View
from rayemu.compression import WireError
from rayemu.drivers.causes import collected
from rayemu.drivers.notes import ActorRecord
from rayemu.drivers.pump import CoordinatorPump
from rayemu.drivers.record import VIRTUAL_RECORD, Recorder, totals_report
from rayemu.drivers.simulated_module import SimulatedModule
from rayemu.drivers.world import Network, SimulationStuck, World
from rayemu.faults import ActiveFaults, kind_of
from rayemu.model.model import Model
from rayemu.placement import Placement
from rayemu.protocol.bounds import Bounds
from rayemu.protocol.client import BatchResult, ClientMachine
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.coordinator import CoordinatorMachine
from rayemu.protocol.epochs import view_of
from rayemu.protocol.memory import fresh_rows
from rayemu.protocol.messages import CLIENT, COORDINATOR, Join, Moved, Notice, Send
from rayemu.protocol.wire import Wire


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
        record: bool = True,
    ) -> None:
        self.config, self.model = config, model
        self.heartbeat, self.start_up = heartbeat, start_up
        self.world = world = World(network or Network(), np.random.default_rng(seed))
        self.at, self.counters = world.at, world.counters
        self.clock = self.record_clock = world.clock  # for the coordinator's pump
        self.send, self.shares = world.send, world.shares
        self.wire = Wire(config.codecs, Bounds.of(model.spec, len(module_to_node)))
        self.recorder = Recorder(on=record)
        self._first = placement
        self.coordinator = CoordinatorMachine(config, model, placement, module_to_node)
        notes = ActorRecord(self.recorder, COORDINATOR, 0, model.spec, world.clock)
        self.pump = CoordinatorPump(self, self.coordinator, self.wire, notes, ActiveFaults(world.rng))
        self.client_record = ActorRecord(self.recorder, CLIENT, 0, model.spec, world.clock)
        self.client = ClientMachine(model.spec, config.retry_after, config.stall_after)
        world.receivers.update({COORDINATOR: self._to_coordinator, CLIENT: self._to_client})
        view = self._view()  # all have the first one in common
        self.modules = [self._boot(module, 0, view) for module in range(len(module_to_node))]
        self.at(0.0, self._tick)
        world.run_until(lambda: bool((self.coordinator.membership.view.state != DEAD).all()), 60.0)

    # -- for whoever runs it ----------------------------------------------------------------------------
    new_rows = staticmethod(fresh_rows)

    def settle(self) -> None:
        """Run until every module knows of all others: before, some look dead, and relays are passed by."""
        epoch = self.coordinator.membership.view.epoch
        self.world.run_until(lambda: all(m.machine.view.epoch >= epoch for m in self.modules), 60.0)

    def submit(self, x: np.ndarray) -> int:
        """Submit a batch x [T, D]; return its number."""
        number, sends = self.client.submit(x, self.now)
        self._send_of_client(sends)
        return number

    def result(self, number: int, timeout_s: float = 600.0) -> BatchResult:
        """Run until a batch is finished. StalledError after `stall_after` virtual seconds without progress.

        SimulationStuck after `timeout_s`.
        """
        client = self.client
        try:
            self.world.run_until(
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

    def move(self, placement: Placement) -> int:
        """Have the experts brought to other slots; return the move's number."""
        number, sends = self.client.move(placement, self.now)
        self._send_of_client(sends)
        return number

    def moved(self, number: int) -> Moved | None:
        """How far a move is, as last told."""
        return self.client.moved(number)

    @property
    def placement(self) -> Placement:
        """Where the experts are, also those that are on their way there or leave, as last told."""
        return self.client.placement or self._first

    def abandon(self, numbers: Iterable[int]) -> None:
        """Forget batches that nobody waits for any more."""
        self._send_of_client(self.client.abandon(numbers))

    @property
    def now(self) -> float:
        """The virtual time, in seconds."""
        return self.world.now

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
        for module in self.modules:
            self.coordinator.totals[module.machine.me] = dict(module.record.totals)
        return totals_report(self.coordinator.report())

    def poll(self) -> None:
        """Handle what is due now."""
        self.world.run_what_is_due()

    def wait(self, seconds: float) -> None:
        """Let virtual time pass."""
        passed: list[bool] = []
        self.at(seconds, lambda: passed.append(True))
        self.world.run_until(lambda: bool(passed), seconds + 1.0)

    def record(self) -> np.ndarray:
        """Return the record so far (VIRTUAL_RECORD rows). Codecs take no virtual time."""
        return collected(self.recorder.rows().view(VIRTUAL_RECORD))

    def close(self) -> None:
        """Forget everything that is under way. Another thread's call ends with SimulationStuck."""
        self.world.close()

    def inject(self, fault: dict[str, Any], module: int | None) -> None:
        """Begin a fault at a module, or at all: what is not of a module hits the coordinator, too."""
        if module is None and not kind_of(fault).of_module:
            self.pump.inject(fault)
        for one in self.modules if module is None else [self.modules[module]]:
            if one.up:
                one.pump.inject(fault)

    def crash(self, module: int, noticed_after: float | None = None) -> None:
        """Kill a module now. Its process is seen dead after a while, or (None) only by its silence."""
        self.modules[module].crash(noticed_after)

    def hang(self, module: int, duration: float) -> None:
        """Freeze a module for a while: nothing is handled or sent; messages wait."""
        self.modules[module].stop(duration)

    # -- what the coordinator's pump asks for -----------------------------------------------------------
    def meet(self, join: Join) -> None:
        """An address is all that is needed here."""

    def kill(self, module: int, incarnation: int) -> None:
        """End an evicted module before its replacement starts."""
        if self.modules[module].machine.incarnation == incarnation:
            self.modules[module].up = False

    def replace(self, module: int, incarnation: int) -> None:
        """Start another module in the place of one that has ended."""
        self.at(self.start_up, partial(self._replace, module, incarnation))

    # -- events -----------------------------------------------------------------------------------------
    def _view(self) -> View:
        nodes = self.coordinator.membership.view.module_to_node
        size = self.model.spec.layers, self.model.spec.experts
        return view_of(self.coordinator.epoch(), nodes, size)

    def _boot(self, module: int, incarnation: int, view: View) -> SimulatedModule:
        return SimulatedModule(
            self.world,
            module,
            incarnation,
            self.config,
            self.model,
            view,
            self.wire,
            self.recorder,
            self.heartbeat,
            partial(self.pump.down, signal="process"),
        )

    def _replace(self, module: int, incarnation: int) -> None:
        self.modules[module] = self._boot(module, incarnation, self._view())

    def _tick(self) -> None:
        self.pump.tick()
        self._send_of_client(self.client.tick(self.now))
        self.at(self.coordinator.membership.tick_every, self._tick)

    def _to_coordinator(self, frame: bytes) -> None:
        self.counters.refused += not self.pump.on_frame(frame)

    def _to_client(self, frame: bytes) -> None:
        try:
            self._send_of_client(self.client.receive(self.wire.decode(frame), self.now))
        except WireError:
            self.counters.refused += 1

    def _send_of_client(self, sends: Iterable[Send]) -> None:
        for send in sends:
            pieces = self.wire.encode_pieces(send.message)
            self.send(send.to, pieces, [0.0], self.now)
            self.client_record.frame(send.message, send.to, sum(map(len, pieces)), self.now, self.now)
