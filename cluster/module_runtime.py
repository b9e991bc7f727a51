"""The module's event loop: drives the state machine with real frames, a real clock and real GEMMs."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rayemu.alltoall import ALIVE, DEAD
from rayemu.cluster.faults import Weather, strike
from rayemu.cluster.host import own_host
from rayemu.cluster.link import Link, QueueLink, ZmqLink
from rayemu.cluster.pulse import Pulses, machine_busy_s, next_beat
from rayemu.cluster.setup import Setup
from rayemu.cluster.turns import Turns
from rayemu.compression import CodecError, WireError
from rayemu.drivers.record import ModuleRecord, Recorder
from rayemu.machine import cores
from rayemu.model.model import Model
from rayemu.numerics import keep_denormals, set_blas_threads
from rayemu.protocol.bounds import Bounds
from rayemu.protocol.faults import MESSAGE_FAULTS
from rayemu.protocol.messages import (
    CLIENT,
    COORDINATOR,
    Dispatch,
    Epoch,
    Heartbeat,
    Inject,
    Join,
    Reply,
    Send,
    endpoints_of,
)
from rayemu.protocol.module import ModuleMachine, view_of
from rayemu.protocol.server import Job, run_job
from rayemu.protocol.wire import Wire

RANDOM_FRAMES = 4  # what a seeded generator is for: here, which frames are timed (see `run` for others)
GAUGE_EVERY_S = 0.5
INLINE_FLOPS = 5e7  # jobs below this are computed in the loop: handing them to a thread costs more
TURN_FLOPS = 1e9  # jobs below this, some 10 ms, do not wait for a turn at a core
TOTALS_EVERY = 10  # heartbeats by frame between two with running totals


class ModuleRuntime:
    """One module: its loop thread, its compute thread, its heartbeat thread."""

    def __init__(self, setup: Setup, module: int, incarnation: int, epoch: Epoch, link: Link) -> None:
        self.setup = setup
        self.me, self.incarnation = module, incarnation
        self.config = setup.config
        model = Model(setup.spec)
        for number, expert in setup.placement.held_by(module):
            model.layers[number].experts[expert]  # generate now, not at the first token
        for layer in model.layers:
            layer.norm, layer.gate, layer.shared  # noqa: B018
        self.model = model
        view = view_of(epoch, setup.module_to_node, (model.spec.layers, model.spec.experts))
        rng = np.random.default_rng([setup.seed, RANDOM_FRAMES, module, incarnation])
        self.machine = ModuleMachine(
            module, incarnation, self.config, model, view, rng, link.new_rows, time.thread_time
        )
        bounds = Bounds.of(setup.spec, setup.modules)
        self.wire = Wire(self.config.codecs, bounds, time.time, time.thread_time)
        self.link = link
        pace = self._port if setup.links else None
        self.weather = Weather(link, [setup.seed, 2, module, incarnation], pace)
        recorder = Recorder(Path(setup.scratch()) / f"record-{module}.{incarnation}")
        self.record = ModuleRecord(recorder, self.machine, time.time)
        self.refused = 0  # frames
        self.failed: tuple[str, BaseException] | None = None  # a thread, and what went wrong in it
        self.slow: tuple[float, float] = (0.0, 1.0)  # (until, factor)
        shared = self.config.modules_per_core > 1
        self.turns = Turns(Path(setup.scratch()), cores() if shared else 0)
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.done: deque[tuple[Job, float, float]] = deque()
        self.busy = False
        self.unfilled: Job | None = None  # what has its turn and waits for the loop to fill it
        self.filled = threading.Event()
        self.gauged = time.monotonic(), time.process_time(), machine_busy_s()

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

    def _port(self, to: int) -> tuple[int, float] | None:
        level = self.machine.level(to)
        rate = self.setup.links.get(level)
        return None if rate is None else (level, rate)

    # -- the loop ---------------------------------------------------------------------------------------
    def _loop(self) -> None:
        machine, clock = self.machine, time.monotonic
        while True:
            now = clock()
            if self.failed is not None:
                name, error = self.failed
                raise RuntimeError(f"its {name} thread failed: {type(error).__name__}: {error}") from error
            due = self.weather.release(now)
            wake = min(machine.home.wake if self.busy else machine.deadline(), due, now + 1.0)
            if machine.gauges and now - self.gauged[0] > GAUGE_EVERY_S:
                self._gauge_load(now)
            for frame in self.link.receive(max(0.0, wake - now)):
                self._on_frame(frame)
            if self.unfilled is not None:
                machine.fill(self.unfilled)
                self.unfilled = None
                self.filled.set()
            while self.done:
                job, start, end = self.done.popleft()
                self.busy = False
                self._finish(job, start, end)
            while not self.busy:
                job_or_none = machine.next_job(clock())
                if job_or_none is None:
                    break
                self._start(job_or_none)
            if machine.home.wake <= clock():
                self._emit(machine.tick(clock()), time.time())

    def _on_frame(self, frame: Any) -> None:
        start = time.time()
        try:
            message = self.wire.decode(frame)
        except WireError:
            self.refused += 1
            return
        if isinstance(message, Inject):
            self._inject(message.fault)
            return
        if isinstance(message, (Dispatch, Reply)):
            if message.sent_at:
                self._gauge(message, frame, start)
            if self.wire.decoded_by:
                self._note_coder(self.wire.decoded_by, message, True)
                self.record.decoded(message, self.wire.decoded_by, start)
        if isinstance(message, Epoch) and message.epoch >= self.machine.view.epoch:
            for address, endpoint in enumerate(endpoints_of(message)):
                if address != self.me:
                    self.link.connect(address, endpoint if message.state[address] != DEAD else "")
        try:
            sends = self.machine.receive(message, time.monotonic())
        except WireError:  # a reply to something else
            self.refused += 1
            return
        self._emit(sends, start)

    def _gauge(self, message: Dispatch | Reply, frame: list[Any], start: float) -> None:
        """Take in what a frame with rows tells of the link."""
        if isinstance(message, Reply):
            sender = message.sender
        else:
            sender = message.via if message.via >= 0 else message.home
        gauge = self.machine.gauges.get(self.machine.level(sender))
        if gauge is not None:
            gauge.arrived(sum(map(len, frame)), start - message.sent_at)

    def _note_coder(self, codec: int, message: Dispatch | Reply, decoding: bool) -> None:
        """Take in how long the codec of a message's rows took just now."""
        coders, wire = self.machine.coders, self.wire
        coders.used(wire.codecs[codec], message.rows.nbytes, wire.coder_s, decoding)

    def _gauge_load(self, now: float) -> None:
        """Tell the policies how busy the cores are, or this module, which may have but a share of one."""
        then, used, worked = self.gauged
        self.gauged = now, time.process_time(), machine_busy_s()
        own = (self.gauged[1] - used) * max(1.0, self.config.modules_per_core)
        busy = max(own, self.gauged[2] - worked) / (now - then)
        for gauge in self.machine.gauges.values():
            gauge.measured(now - then, min(1.0, busy))

    def _emit(self, sends: list[Send], start: float) -> None:
        """Encode and send; record rows that travel and combines that were done."""
        self.record.combines(start)
        for send in sends:
            message, to = send.message, send.to
            began = time.time()
            try:
                pieces = self.wire.encode_pieces(message, send.codec, timed=send.timed)
            except CodecError:  # a value that this codec cannot carry
                self.machine.refuse_codec(send)
                pieces = self.wire.encode_pieces(message)
            if send.codec and isinstance(message, (Dispatch, Reply)):
                self._note_coder(send.codec, message, False)
                self.record.encoded(message, to, send.codec, began)
            self.weather.send(to, pieces, time.monotonic())
            if isinstance(message, (Dispatch, Reply)):
                self.record.sent(message, to, send.codec, sum(map(len, pieces)), began)

    # -- compute ----------------------------------------------------------------------------------------
    def _start(self, job: Job) -> None:
        self.busy = True
        if job.flops >= INLINE_FLOPS:
            self.jobs.put(job)
            return
        start, end = self._run(job)
        self.busy = False
        self._finish(job, start, end)

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
            self.link.wake()

    def _take_what_came(self, job: Job) -> None:
        """Have the loop add to a job that waited for a turn: more may have come for its expert."""
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
        until, factor = self.slow
        if began < until:  # a slowed module takes `factor` times as long
            time.sleep((time.monotonic() - began) * (factor - 1.0))
        return start, time.time()

    def _finish(self, job: Job, start: float, end: float) -> None:
        self.record.computed(job, start, end)
        self._emit(self.machine.finish(job, time.monotonic()), time.time())

    # -- heartbeats and faults ----------------------------------------------------------------------------
    def _beat(self, coordinator: str, host: str) -> None:
        interval = self.setup.heartbeat
        pulses = Pulses(self.setup.scratch(), self.setup.modules) if host == own_host() else None
        if isinstance(self.link, ZmqLink):
            channel = self.link.pusher(coordinator)
            send = lambda frame: channel.send(frame[0])  # noqa: E731
        else:
            assert isinstance(self.link, QueueLink)
            send = lambda frame: self.link.send(COORDINATOR, frame)  # noqa: E731
        thread = threading.get_native_id()
        join = Join(self.me, self.incarnation, self.link.endpoint, os.getpid(), thread, own_host())
        known, joined, count = None, False, 0
        while True:
            view = self.machine.view
            if known is not view:
                known = view
                joined = bool(view.state[self.me] != DEAD and view.incarnations[self.me] == self.incarnation)
            if pulses is not None:
                pulses.beat(self.me, self.incarnation, view.epoch, self.record.totals)
            if not joined:
                send(self.wire.encode_pieces(join))
            elif pulses is None:
                totals = {} if count % TOTALS_EVERY else dict(self.record.totals)
                send(self.wire.encode_pieces(Heartbeat(self.me, self.incarnation, view.epoch, totals)))
            count += 1
            now = time.monotonic()
            time.sleep(next_beat(now, interval) - now)

    def _inject(self, fault: dict[str, Any]) -> None:
        if fault["kind"] in MESSAGE_FAULTS:
            self.weather.begin(fault, time.monotonic())
        elif fault["kind"] == "slow":
            self.slow = (time.monotonic() + float(fault["for"]), float(fault["factor"]))
        else:
            strike(os.getpid(), fault)
