"""The coordinator's event loop: membership by several signals, the ledger, and replacements."""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rayemu.alltoall import ALIVE, DEAD
from rayemu.cluster.host import own_host
from rayemu.cluster.link import Link, ZmqLink
from rayemu.cluster.port import Port
from rayemu.cluster.pulse import Pulses, next_look, process_state, wait_for_death
from rayemu.cluster.setup import MESSAGE_FAULT_DRAWS, Setup
from rayemu.drivers.notes import ActorRecord
from rayemu.drivers.pump import CoordinatorPump
from rayemu.drivers.record import Recorder
from rayemu.faults import ActiveFaults
from rayemu.model.model import Model
from rayemu.numerics import keep_denormals, set_blas_threads
from rayemu.protocol.bounds import Bounds
from rayemu.protocol.coordinator import CoordinatorMachine
from rayemu.protocol.messages import CLIENT, COORDINATOR, Heartbeat, Join, Send
from rayemu.protocol.wire import Wire

REPORT_EVERY_S = 0.25
MOST_LETTERS = 500  # of a reason
LATE_BEATS = 1.1  # heartbeat intervals without a beat before the process is looked at


def last_line(error: BaseException) -> str:
    """Return what an error of Ray says in the end: before it is the traceback of another process."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:MOST_LETTERS]


class CoordinatorRuntime:
    """Drives the coordinator's machine. `replace` starts a new incarnation of a module, `kill` ends one."""

    def __init__(
        self,
        setup: Setup,
        link: Link,
        replace: Callable[[int, int], None],
        kill: Callable[[int, int], None],
    ) -> None:
        self.setup, self.link, self.shares = setup, link, link.shares
        self._start, self._end = replace, kill
        self.machine = CoordinatorMachine(
            setup.config, Model(setup.spec), setup.placement, setup.module_to_node
        )
        self.port = Port(link)
        self.send = self.port.send  # itself: another call for each frame is felt
        wire = Wire(setup.config.codecs, Bounds.of(setup.spec, setup.modules))
        faults = ActiveFaults(np.random.default_rng([setup.seed, MESSAGE_FAULT_DRAWS, 1 << 20]))
        recorder = Recorder(Path(setup.scratch()) / "record-coordinator", setup.record)
        record = ActorRecord(recorder, COORDINATOR, 0, setup.spec, time.time)
        self.pump = CoordinatorPump(self, self.machine, wire, record, faults)
        self.posted: deque[tuple[int, int, str, str]] = deque()
        self.watched: dict[int, int] = {}  # module -> incarnation that we are connected to
        self.reported_at, self.reported = 0.0, (0, 0)  # when, and what is told of at once
        self.pulses = Pulses(setup.scratch(), setup.modules)
        self.nearby: set[int] = set()  # modules whose heartbeats come through shared memory

    def post_down(self, module: int, incarnation: int, signal: str, reason: str = "") -> None:
        """Tell of a dead process; any thread may call it."""
        self.posted.append((module, incarnation, signal, reason))
        self.link.wake()

    def run(self, client: str) -> None:
        """Run until the process is killed."""
        keep_denormals()  # Ray need not call from the thread that made this object
        self.link.connect(CLIENT, client)
        try:
            set_blas_threads(self.setup.blas_threads or 1)
            gc.freeze()  # as in a module
            self._loop()
        finally:
            self.link.close()

    def _loop(self) -> None:
        machine, pump, clock = self.machine, self.pump, time.monotonic
        tick_at = 0.0
        while True:
            now = clock()
            wake = min(tick_at, self.port.release(now))
            frames = self.link.receive(max(0.0, wake - now))
            for frame in frames:
                pump.on_frame(frame)
            while self.posted:
                pump.down(*self.posted.popleft())
            self._check_broken()
            now = clock()
            # What waits may be a heartbeat, so that goes first; but some message always waits under load.
            if now >= tick_at + (machine.membership.tick_every if frames else 0.0):
                pump.tick(self._feel_pulses(now))
                tick_at = min(machine.deadline(now), next_look(now, self.setup.heartbeat))
            urgent = machine.ledger.reissued, self.link.copied_bytes
            if now - self.reported_at > REPORT_EVERY_S or urgent != self.reported:
                self.reported_at, self.reported = now, urgent
                self._report()

    def _feel_pulses(self, now: float) -> set[int]:
        """Take the heartbeats of the modules on this machine; see whether those that are late are stopped.

        Return those that are late and are not: they wait for a core.
        """
        running: set[int] = set()
        machine, membership = self.machine, self.machine.membership
        late, current = now - LATE_BEATS * self.setup.heartbeat, membership.view.epoch
        states = membership.view.state.tolist()
        for module, (incarnation, epoch, at) in enumerate(self.pulses.read()):
            if module not in self.nearby or states[module] == DEAD:
                continue
            if epoch == current and states[module] == ALIVE:
                machine.known[module] = epoch
                membership.heard(module, incarnation, at)
            else:  # it is welcome back, or must be told again of the epoch
                self.pump.emit(machine.receive(Heartbeat(module, incarnation, epoch), at), time.time())
            if at >= late:
                continue
            process = process_state(machine.processes[module][0])
            if process == "T":
                self.pump.suspect(module, incarnation, "process state")
            elif process not in ("", "Z", "X"):
                running.add(module)
        return running

    # -- what the pump asks for -------------------------------------------------------------------------
    clock = staticmethod(time.monotonic)
    record_clock = staticmethod(time.time)

    def meet(self, join: Join) -> None:
        """Connect to a module, and watch for its end."""
        (self.nearby.add if join.host == own_host() else self.nearby.discard)(join.module)
        if self.watched.get(join.module, -1) >= join.incarnation:
            return
        self.watched[join.module] = join.incarnation
        self.link.connect(join.module, join.endpoint)
        if isinstance(self.link, ZmqLink):
            self.link.watch(join.module)
        if join.host == own_host():
            threading.Thread(target=self._watch, args=(join,), daemon=True).start()

    def kill(self, module: int, incarnation: int) -> None:
        self._in_thread(self._end, module, incarnation)

    def replace(self, module: int, incarnation: int) -> None:
        self._in_thread(self._try_to_start, module, incarnation)

    def _in_thread(self, act: Callable[[int, int], None], module: int, incarnation: int) -> None:
        threading.Thread(target=act, args=(module, incarnation), daemon=True).start()

    def _try_to_start(self, module: int, incarnation: int) -> None:
        try:
            self._start(module, incarnation)
        except Exception as error:
            self.post_down(module, incarnation, "start", f"{type(error).__name__}: {last_line(error)}")

    def _watch(self, join: Join) -> None:
        if wait_for_death(join.pid, join.thread):
            self.post_down(join.module, join.incarnation, "process")

    def _check_broken(self) -> None:
        """A closed connection is the first sign of a dead process; the next heartbeat would refute it."""
        for module in self.link.broken() if isinstance(self.link, ZmqLink) else []:
            self.pump.suspect(module, self.watched[module], "disconnect")

    def _report(self) -> None:
        for module in self.nearby:
            self.machine.totals[module] = self.pulses.totals(module)
        totals = self.machine.report()
        totals.copied_bytes = self.link.copied_bytes
        self.pump.emit([Send(CLIENT, totals)], time.time())
