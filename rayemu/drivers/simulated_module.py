"""One simulated module: its process, which may crash, hang and be slow, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from rayemu.alltoall import View
from rayemu.drivers.notes import ModuleRecord
from rayemu.drivers.pump import ModulePump
from rayemu.drivers.record import Recorder
from rayemu.drivers.world import World
from rayemu.faults import ActiveFaults
from rayemu.model.model import Model
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.messages import COORDINATOR, Epoch, Heartbeat, Join, Message, Send
from rayemu.protocol.module import ModuleMachine
from rayemu.protocol.server import Job, run_job
from rayemu.protocol.wire import Wire

FLOPS_PER_S = 1e9  # of a simulated module
MEAN_JITTER_S = 0.0002  # that a job takes besides
NOTICED_AFTER_S = 0.006  # the end of a killed process


class SimulatedModule:
    """Drives a module's pump, and beats until it ends. `on_end(module, incarnation)` is told of a crash."""

    def __init__(
        self,
        world: World,
        me: int,
        incarnation: int,
        config: ProtocolConfig,
        model: Model,
        view: View,
        wire: Wire,
        recorder: Recorder,
        heartbeat: float,
        on_end: Callable[[int, int], None],
    ) -> None:
        self.world, self.model, self.heartbeat, self.on_end = world, model, heartbeat, on_end
        self.clock = self.record_clock = world.clock
        self.send, self.shares = world.send, world.shares
        make = lambda layer, expert: model.layers[layer].experts[expert]  # noqa: E731  all modules have the same
        self.machine = ModuleMachine(
            me,
            incarnation,
            config,
            model,
            view,
            world.rng,
            make=make,
            record_s=world.clock,
            lends=self._lends,
        )
        self.record = ModuleRecord(recorder, self.machine, world.clock)
        self.pump = ModulePump(self, self.machine, wire, self.record, ActiveFaults(world.rng))
        self.up = True
        self._frozen_until = 0.0
        self._wakes_at = float("inf")
        world.receivers[me] = self._arrive
        self._beat()

    # -- what the pump asks for -------------------------------------------------------------------------
    def compute(self, job: Job) -> None:
        """Compute a job now; it ends later."""
        run_job(self.model, job)
        world = self.world
        duration = job.flops / FLOPS_PER_S + float(world.rng.exponential(MEAN_JITTER_S))
        world.at(duration * self.pump.faults.slowness(world.now), partial(self._finish, job, world.now))

    def meet(self, epoch: Epoch) -> None:
        """An address is all that is needed here."""

    @property
    def process(self) -> SimulatedModule:
        """The module is its own process."""
        return self

    def _lends(self, to: int, rows: np.ndarray) -> bool:
        """To every second one rows go as they lie, as if it shared memory: both ways are to be tried."""
        return (self.machine.me + to) % 2 == 0

    # -- faults -----------------------------------------------------------------------------------------
    def crash(self, noticed_after: float | None = None) -> None:
        """End now. That is seen after a while, or (None) only by the silence."""
        if not self.up:
            return
        self.up = False
        self.world.counters.crashes += 1
        if noticed_after is not None:
            self.world.at(noticed_after, partial(self.on_end, self.machine.me, self.machine.incarnation))

    def kill(self) -> None:
        """End now, which is soon noticed."""
        self.crash(NOTICED_AFTER_S)

    def stop(self, seconds: float) -> None:
        """Freeze for a while: nothing is handled or sent; messages wait."""
        if self.up:
            self.world.counters.hangs += 1
            self._frozen_until = self.world.now + seconds

    def _can(self, act: Callable[[], None]) -> bool:
        """Whether the module can do something now; frozen, it will do so later, and dead, never."""
        if self.up and self._frozen_until > self.world.now:
            self.world.at(self._frozen_until - self.world.now, act)
            return False
        return self.up

    # -- events -----------------------------------------------------------------------------------------
    def _beat(self) -> None:
        if not self.up:
            return
        if self._frozen_until <= self.world.now:
            self.pump.emit([Send(COORDINATOR, self._sign_of_life())], self.world.now)
        self.world.at(self.heartbeat, self._beat)

    def _sign_of_life(self) -> Message:
        machine = self.machine
        if self.pump.has_joined():
            return Heartbeat(machine.me, machine.incarnation, machine.view.epoch)
        return Join(machine.me, machine.incarnation, "memory", machine.holdings.table())

    def _arrive(self, frame: bytes) -> None:
        if not self._can(partial(self._arrive, frame)):
            return
        if self.pump.on_frame(frame):
            self._go_on()
        else:
            self.world.counters.refused += 1

    def _finish(self, job: Job, began: float) -> None:
        if self._can(partial(self._finish, job, began)):
            self.pump.finished(job, began, self.world.now)
            self._go_on()

    def _wake(self) -> None:
        self._wakes_at = float("inf")
        if self._can(self._wake):
            self.pump.tick()
            self._go_on()
        else:
            self._wakes_at = self._frozen_until

    def _go_on(self) -> None:
        """Work, and wake when the next deadline comes."""
        self.pump.work()
        wake, world = self.pump.wake(), self.world
        if wake < self._wakes_at:
            self._wakes_at = wake
            world.at(max(wake - world.now, 0.0), self._wake)
