"""The module's event loop: drives the state machine with real frames, a real clock and real GEMMs."""

from __future__ import annotations

import gc
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from rayemu.alltoall import ALIVE, DEAD
from rayemu.cluster.faults import LocalProcess
from rayemu.cluster.host import own_host
from rayemu.cluster.link import Link, QueueLink, ZmqLink
from rayemu.cluster.port import Port
from rayemu.cluster.pulse import Pulses, machine_busy_s, next_beat
from rayemu.cluster.setup import MESSAGE_FAULT_DRAWS, RANDOM_FRAMES, Setup
from rayemu.cluster.turns import Turns
from rayemu.drivers.notes import ModuleRecord
from rayemu.drivers.pump import ModulePump
from rayemu.drivers.record import Recorder
from rayemu.faults import ActiveFaults, Process
from rayemu.machine import cores
from rayemu.model.model import Model
from rayemu.numerics import keep_denormals, set_blas_threads
from rayemu.protocol.bounds import Bounds
from rayemu.protocol.epochs import endpoints_of, view_of
from rayemu.protocol.messages import CLIENT, COORDINATOR, Epoch, Heartbeat, Join, Message
from rayemu.protocol.module import ModuleMachine
from rayemu.protocol.server import TURN_FLOPS, Job, run_job
from rayemu.protocol.wire import Wire, no_clock

GAUGE_EVERY_S = 0.5
INLINE_FLOPS = 5e7  # jobs below this are computed in the loop: handing them to a thread costs more
TOTALS_EVERY = 10  # heartbeats by frame between two with running totals


class ModuleRuntime:
    """One module: its loop thread, its compute thread, its heartbeat thread."""

    def __init__(self, setup: Setup, module: int, incarnation: int, epoch: Epoch, link: Link) -> None:
        self.setup = setup
        self.me, self.incarnation = module, incarnation
        self.config = setup.config
        self.link, self.shares = link, link.shares
        model = Model(setup.spec)
        for layer in model.layers:
            layer.norm, layer.gate, layer.shared  # noqa: B018
        self.model = model
        view = view_of(epoch, setup.module_to_node, (model.spec.layers, model.spec.experts))
        rng = np.random.default_rng([setup.seed, RANDOM_FRAMES, module, incarnation])
        self.machine = ModuleMachine(
            module,
            incarnation,
            self.config,
            model,
            view,
            rng,
            link.new_rows,
            time.thread_time,
            record_s=time.time if setup.record else no_clock,
            lends=self._lends,
        )
        bounds = Bounds.of(setup.spec, setup.modules)
        self.wire = Wire(self.config.codecs, bounds, time.time, time.thread_time)
        self.port = Port(link, self._pace if setup.links else None)
        self.send = self.port.send  # itself: another call for each frame is felt
        recorder = Recorder(Path(setup.scratch()) / f"record-{module}.{incarnation}", setup.record)
        self.record = ModuleRecord(recorder, self.machine, time.time)
        self.failed: tuple[str, BaseException] | None = None  # a thread, and what went wrong in it
        shared = self.config.modules_per_core > 1
        self.turns = Turns(Path(setup.scratch()), cores() if shared else 0)
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.done: deque[tuple[Job, float, float]] = deque()
        self.beaten: deque[tuple[int, float, float]] = deque()  # size, start and end of heartbeats' frames
        self.unfilled: Job | None = None  # what has its turn and waits for the loop to fill it
        self.filled = threading.Event()
        self.gauged = time.monotonic(), time.process_time(), machine_busy_s()
        self.process: Process = LocalProcess(os.getpid())
        faults = ActiveFaults(np.random.default_rng([setup.seed, MESSAGE_FAULT_DRAWS, module, incarnation]))
        self.pump = ModulePump(self, self.machine, self.wire, self.record, faults)

    def serve(self, coordinator: str, client: str, host: str) -> None:
        """Run until the process is killed. Raises whatever goes wrong in any of the module's threads.

        That tells the coordinator, which then kills the process: until then the heartbeat goes on, whose end
        would be seen first, as a death without a reason.
        `host` is the coordinator's: on the same one, shared memory carries the heartbeats.
        """
        keep_denormals()  # Ray need not call from the thread that made this object
        self.link.connect(COORDINATOR, coordinator)
        self.link.connect(CLIENT, client)
        self._start_thread("compute", self._compute)
        self._start_thread("heartbeat", partial(self._beat, coordinator, host))
        set_blas_threads(self.setup.blas_threads or 1)
        gc.freeze()  # looking through what Ray and we have made so far, again and again, took 3 % of a stream
        self._loop()

    def _start_thread(self, name: str, work: Callable[[], None]) -> None:
        """Start a thread whose failure is the module's."""

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self.failed = name, error
                self.link.wake()
                threading.Event().wait()  # until the process is killed: see `serve`

        threading.Thread(target=run, name=name, daemon=True).start()

    def _pace(self, to: int) -> tuple[int, float] | None:
        level = self.machine.level(to)
        rate = self.setup.links.get(level)
        return None if rate is None else (level, rate)

    # -- the loop ---------------------------------------------------------------------------------------
    def _loop(self) -> None:
        machine, pump, clock = self.machine, self.pump, time.monotonic
        while True:
            now = clock()
            if self.failed is not None:
                name, error = self.failed
                raise RuntimeError(f"its {name} thread failed: {type(error).__name__}: {error}") from error
            wake = min(pump.wake(), self.port.release(now), now + 1.0)
            if machine.gauges and now - self.gauged[0] > GAUGE_EVERY_S:
                self._gauge_load(now)
            for frame in self.link.receive(max(0.0, wake - now)):
                pump.on_frame(frame)
                frame = None  # it may lie in memory that its sender wants back
            if self.unfilled is not None:
                machine.fill(self.unfilled)
                self.unfilled = None
                self.filled.set()
            while self.done:
                pump.finished(*self.done.popleft())
            while self.beaten:
                size, start_s, end_s = self.beaten.popleft()
                self.record.control(COORDINATOR, size, start_s, start_s, end_s)
            pump.work()
            if machine.wake <= clock():
                pump.tick()

    def _gauge_load(self, now: float) -> None:
        """Tell the policies how busy the cores are, or this module, which may have but a share of one."""
        then, used, worked = self.gauged
        self.gauged = now, time.process_time(), machine_busy_s()
        own = (self.gauged[1] - used) * max(1.0, self.config.modules_per_core)
        busy = max(own, self.gauged[2] - worked) / (now - then)
        for gauge in self.machine.gauges.values():
            gauge.measured(now - then, min(1.0, busy))

    def _lends(self, to: int, rows: np.ndarray) -> bool:
        """Whether a module can read rows where they lie; not over a link that has a rate of its own."""
        return self.link.lends(to, rows) and self._pace(to) is None

    # -- what the pump asks for -------------------------------------------------------------------------
    clock = staticmethod(time.monotonic)
    record_clock = staticmethod(time.time)

    def meet(self, epoch: Epoch) -> None:
        """Connect to all others that are not dead."""
        for address, endpoint in enumerate(endpoints_of(epoch)):
            if address != self.me:
                self.link.connect(address, endpoint if epoch.state[address] != DEAD else "")

    def compute(self, job: Job) -> None:
        """Compute a small job now; leave others to the compute thread."""
        if job.flops >= INLINE_FLOPS:
            self.jobs.put(job)
        else:
            self.pump.finished(job, *self._run(job))

    # -- the compute thread -----------------------------------------------------------------------------
    def _compute(self) -> None:
        set_blas_threads(self.setup.blas_threads or 1)
        while True:
            job = self.jobs.get()
            if job.flops < TURN_FLOPS:
                self.done.append((job, *self._run(job)))
            else:
                with self.turns.one(self._in_trouble):
                    self._take_what_came(job)
                    self.done.append((job, *self._run(job)))
            del job  # it has rows that others lend, and answers: they would stay until the next one comes
            self.link.wake()

    def _take_what_came(self, job: Job) -> None:
        """Have the loop add to a job that waited for a turn: more may have come for its layer."""
        self.filled.clear()
        self.unfilled = job
        self.link.wake()
        self.filled.wait()

    def _in_trouble(self) -> bool:
        """Tell whether a module is dead or hangs: it may hold a turn."""
        return bool((self.machine.view.state != ALIVE).any())

    def _run(self, job: Job) -> tuple[float, float]:
        """Compute a job; return when that began and ended."""
        start, began = time.time(), time.monotonic()
        run_job(self.model, job, self.link.new_rows)
        slowness = self.pump.faults.slowness(began)
        if slowness > 1.0:
            time.sleep((time.monotonic() - began) * (slowness - 1.0))
        return start, time.time()

    # -- the heartbeat thread ---------------------------------------------------------------------------
    def _beat(self, coordinator: str, host: str) -> None:
        interval = self.setup.heartbeat
        pulses = Pulses(self.setup.scratch(), self.setup.modules) if host == own_host() else None
        if isinstance(self.link, ZmqLink):
            channel = self.link.pusher(coordinator)
            push = lambda frame: channel.send(frame[0])  # noqa: E731
        else:
            assert isinstance(self.link, QueueLink)
            push = lambda frame: self.link.send(COORDINATOR, frame)  # noqa: E731

        def send(message: Message) -> None:
            start, frame = time.time(), self.wire.encode_pieces(message)
            push(frame)
            self.beaten.append((sum(map(len, frame)), start, time.time()))

        thread = threading.get_native_id()
        holds = self.machine.holdings.table()
        join = Join(self.me, self.incarnation, self.link.endpoint, holds, os.getpid(), thread, own_host())
        known, joined, count = None, False, 0
        while True:
            view = self.machine.view
            if known is not view:
                known, joined = view, self.pump.has_joined()
            if pulses is not None:
                pulses.beat(self.me, self.incarnation, view.epoch, self.record.totals)
            if not joined:
                send(join)
            elif pulses is None:
                totals = {} if count % TOTALS_EVERY else dict(self.record.totals)
                send(Heartbeat(self.me, self.incarnation, view.epoch, totals))
            count += 1
            now = time.monotonic()
            time.sleep(next_beat(now, interval) - now)
