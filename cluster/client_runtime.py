"""The client's event loop: a thread that handles what arrives, for all the threads that wait for batches."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from rayemu.alltoall import DEAD
from rayemu.cluster.link import Link
from rayemu.compression import WireError
from rayemu.drivers.notes import ActorRecord
from rayemu.drivers.record import Recorder
from rayemu.model.spec import ModelSpec
from rayemu.placement import Placement
from rayemu.protocol.bounds import Bounds
from rayemu.protocol.client import CLOSED, BatchResult, ClientMachine
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.epochs import endpoints_of
from rayemu.protocol.messages import CLIENT, Epoch, Message, Notice, Send
from rayemu.protocol.wire import Wire

LOOK_EVERY_S = 0.5  # whoever waits looks this often whether anything still goes on
LONGEST_S = 3600.0  # that the link is waited for


class ClusterError(RuntimeError):
    """The cluster could not be started, or its coordinator died."""


class ClientRuntime:
    """Drives the client's machine. Any thread may call anything but `close`.

    What arrives is handled at once, whether or not someone waits: nothing piles up. No interrupt ends that
    in the middle of a message, since interrupts go to a process's main thread.
    """

    def __init__(
        self, config: ProtocolConfig, spec: ModelSpec, modules: int, link: Link, recorder: Recorder
    ) -> None:
        self.link = link
        self.record = ActorRecord(recorder, CLIENT, 0, spec, time.time)
        self.machine = ClientMachine(spec, config.retry_after, config.stall_after)
        self.wire = Wire(config.codecs, Bounds.of(spec, modules))
        self.pids: dict[int, tuple[int, str]] = {}  # module -> (pid, host)
        self.failure = ""  # why nothing will come any more
        self.submitted_bytes = 0  # of batches
        # Guards the machine and what is sent. Told of every finished batch, of notices, and of the end.
        self.changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)

    def start(self) -> None:
        """Begin to handle what arrives."""
        self._thread.start()

    def close(self) -> None:
        """End the thread, and the waiting of all others, and close the link."""
        self.fail(CLOSED)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self.link.close()

    def submit(self, x: np.ndarray) -> int:
        """Submit a batch x [T, D] float32, T > 0; return its number. CodecError if no frame holds it."""
        with self.changed:
            self.check()
            number, sends = self.machine.submit(x, time.monotonic())
            try:
                self.send(sends)
            except BaseException:
                self.machine.abandon([number])
                raise
            self.submitted_bytes += x.nbytes
        self.link.wake()  # there is a deadline now
        return number

    def result(self, number: int, timeout_s: float = float("inf")) -> BatchResult:
        """Wait for a batch, whose result can be had once.

        Raises StalledError where nothing goes on, TimeoutError, and ClusterError where the cluster is lost.
        """
        with self.changed:
            if not self.wait(partial(self._settled, number), timeout_s):
                raise TimeoutError(f"batch {number} was not finished within {timeout_s:g} s")
            result = self.machine.take(number)
            if result is None:
                stalled = self.machine.stalled(number, time.monotonic())
                raise stalled or LookupError(f"batch {number} is not under way")
        return result

    def abandon(self, numbers: Iterable[int]) -> None:
        """Forget batches that nobody waits for any more."""
        with self.changed:
            sends = self.machine.abandon(numbers)
            if not self.failure:
                self.send(sends)

    def move(self, placement: Placement) -> int:
        """Have the experts brought to other slots; return the move's number."""
        with self.changed:
            self.check()
            number, sends = self.machine.move(placement, time.monotonic())
            self.send(sends)
        self.link.wake()  # there is a deadline now
        return number

    def take_notices(self) -> list[Notice]:
        """Return and forget what the coordinator reported."""
        with self.changed:
            return self.machine.take_notices()

    def wait(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait, holding the lock, until `done()`; False after the timeout. ClusterError at the end of all."""
        deadline = time.monotonic() + timeout_s
        while not done():
            self.check()
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.changed.wait(min(left, LOOK_EVERY_S))
        return True

    def pause(self, seconds: float) -> None:
        """Wait for so long. Raises ClusterError as soon as nothing will come any more."""
        with self.changed:
            self.wait(lambda: False, seconds)

    def check(self) -> None:
        """Raise ClusterError if nothing will come any more."""
        if self.failure:
            raise ClusterError(self.failure)

    def fail(self, why: str) -> None:
        """Let all that wait, now and later, end with a ClusterError."""
        with self.changed:
            self.failure = self.failure or why
            self.changed.notify_all()
        self.link.wake()

    def send(self, sends: Iterable[Send]) -> None:
        """Send messages; the caller holds the lock."""
        for send in sends:
            start, shared = time.time(), self.link.shares(send.to)
            pieces = self.wire.encode_pieces(send.message, shared=shared)
            self.link.send(send.to, pieces)
            self.record.frame(send.message, send.to, sum(map(len, pieces)), start, start)

    def _settled(self, number: int) -> bool:
        """Whether waiting for a batch is over: it is finished, unknown, or makes no progress."""
        machine = self.machine
        return number not in machine.pending or machine.stalled(number, time.monotonic()) is not None

    def _run(self) -> None:
        try:
            while not self.failure:
                self._step()
        except Exception as error:
            self.fail(f"the client failed: {type(error).__name__}: {error}")

    def _step(self) -> None:
        machine = self.machine
        with self.changed:
            wake = machine.deadline()
        frames = self.link.receive(max(0.0, min(LONGEST_S, wake - time.monotonic())))
        messages = [message for frame in frames if (message := self._decode(frame)) is not None]
        now = time.monotonic()
        with self.changed:
            finished, notices = len(machine.finished), len(machine.notices)
            for message in messages:
                with contextlib.suppress(WireError):  # rows of no batch
                    self.send(machine.receive(message, now))
                if isinstance(message, Epoch) and message.endpoints is not None:
                    for module, endpoint in enumerate(endpoints_of(message)):
                        self.link.admit(module, endpoint if message.state[module] != DEAD else "")
                if isinstance(message, Notice):
                    self._note_process(message.facts if message.kind == "joined" else {})
            if machine.deadline() <= now:
                self.send(machine.tick(now))
            if len(machine.notices) > notices or len(machine.finished) != finished:
                self.changed.notify_all()

    def _decode(self, frame: Any) -> Message | None:
        try:
            return self.wire.decode(frame)
        except WireError:
            return None

    def _note_process(self, facts: dict[str, Any]) -> None:
        if facts:
            self.pids[int(facts["module"])] = int(facts["pid"]), str(facts["host"])
