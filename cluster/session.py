"""The driver's side of a run on Ray: starts and stops everything, submits batches, takes results."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from rayemu.alltoall import ALIVE, READY
from rayemu.cluster import local_ray
from rayemu.cluster.client_runtime import ClientRuntime, ClusterError
from rayemu.cluster.coordinator_runtime import last_line
from rayemu.cluster.directory import new_directory, path_fault, room_fault
from rayemu.cluster.faults import LocalProcess
from rayemu.cluster.host import own_host
from rayemu.cluster.interrupts import interrupts_held, restore, terminate_as_interrupt
from rayemu.cluster.link import QueueLink, ZmqSettings
from rayemu.cluster.setup import ANY_MACHINE, Setup
from rayemu.cluster.turns import close_turns
from rayemu.drivers.causes import collected
from rayemu.drivers.record import Recorder, is_cut, read_records, totals_report
from rayemu.faults import fault_of, kind_of
from rayemu.machine import cores
from rayemu.model.agreement import own_arithmetic
from rayemu.model.spec import ModelSpec
from rayemu.numerics.blas import NEEDS, coretype, runnable
from rayemu.placement import Placement
from rayemu.profiling.meters import WRITE_EVERY_S, Metered, Meters, read_meters
from rayemu.profiling.processes import Used, processor_times
from rayemu.protocol.client import CLOSED, BatchResult
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.epochs import endpoints_of, slots_of
from rayemu.protocol.messages import COORDINATOR, Epoch, Inject, Moved, Notice, Send

START_S, START_OF_MODULE_S = 120.0, 8.0  # how long is waited: at least, and for each module on a core
RAY_TRANSPORT_SLOWDOWN = 5  # actor calls are dearer than frames: heartbeats and their deadlines stretch


def _read_scratch(directory: str) -> tuple[str, np.ndarray, list[str]]:
    """Read what the modules of this machine recorded; name those whose records end early."""
    files = sorted(Path(directory).glob("record-*"))
    return own_host(), read_records(files), [file.name for file in files if is_cut(file)]


def _meters(directory: str) -> tuple[str, list[Metered]]:
    """What the meters of this machine's processes have read."""
    return own_host(), read_meters(directory)


def _times(directory: str) -> tuple[str, list[Used]]:
    """What processes of this machine have used."""
    return own_host(), processor_times(directory)


def _machine_kernels() -> tuple[str, set[str]]:
    """This machine's name, and the BLAS kernels that its processor can run."""
    return platform.node(), runnable()


def _remove_scratch(directory: str) -> None:
    """Remove what a run keeps on this machine."""
    close_turns(Path(directory))
    shutil.rmtree(directory, ignore_errors=True)


class Session:
    """A running cluster: coordinator, modules and this client. Close it, or use it in a `with`."""

    def __init__(
        self,
        config: ProtocolConfig,
        spec: ModelSpec,
        placement: Placement,
        module_to_node: np.ndarray,
        *,
        transport: str = "zmq",
        sockets: str = "auto",
        address: str | None = None,
        seed: int = 0,
        heartbeat: float = 0.04,
        links: dict[int, float] | None = None,
        blas_threads: int | None = None,
        record: bool = True,
        profile: bool = False,
        start_timeout_s: float | None = None,
    ) -> None:
        if start_timeout_s is None:  # a start takes about a second of processor time
            start_timeout_s = max(START_S, START_OF_MODULE_S * len(module_to_node) / cores())
        self.config, self.spec = config, spec
        self._closed = False
        self._coordinator: Any = None
        self._group: Any = None
        self._elsewhere: list[str] = []  # Ray's names of the other machines of this run
        self._modules: list[Any] = []
        self._waiting: list[threading.Thread] = []  # in Ray
        self._meters: Meters | None = None
        self._client: ClientRuntime  # from the moment that there are modules on
        self.directory = new_directory()
        self._ray = local_ray.Connection(self.directory)
        self._previous_handlers = terminate_as_interrupt()
        try:
            self._make_directory(with_ray=local_ray.is_here(address))
            self._ray.open(address, len(module_to_node) + 1, start_timeout_s)
            terminate_as_interrupt()  # again: Ray puts a handler before it that prints where C++ was
            if transport == "ray":
                slow = RAY_TRANSPORT_SLOWDOWN
                heartbeat *= slow
                config = replace(
                    config, suspect_after=config.suspect_after * slow, retry_after=config.retry_after * 2
                )
            shared = not self._ray.ours and local_ray.Connection.started_here is not None
            patience = min(start_timeout_s, local_ray.SHARED_S) if shared else start_timeout_s
            machine_of = self._reserve(module_to_node, patience)
            self.setup = Setup(
                run_id=self.directory.name.removeprefix("rayemu-"),
                config=config,
                spec=spec,
                placement=placement,
                module_to_node=module_to_node,
                seed=seed,
                heartbeat=heartbeat,
                machine_of=machine_of,
                blas_threads=blas_threads,
                zmq=self._zmq_settings(sockets) if transport == "zmq" else None,
                links=links or {},
                directory=str(self.directory),
                arithmetic=own_arithmetic(),
                record=record,
                profile=profile,
                coretype=None if self._ray.ours else self._common_kernels(),
            )
            self._meters = self.setup.meters("driver", "driver")
            self._start(start_timeout_s)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- start and stop ---------------------------------------------------------------------------------
    def _make_directory(self, with_ray: bool) -> None:
        temporary = self.directory.parent
        try:
            if fault := path_fault(temporary, with_ray) or room_fault(temporary):
                raise ClusterError(f"{fault}; set TMPDIR to another directory")
            self.directory.mkdir(mode=0o700)
            (self.directory / "owner").write_text(str(os.getpid()))
        except OSError as error:
            raise ClusterError(f"{temporary}: {error.strerror}; set TMPDIR to a writable directory") from None

    def _zmq_settings(self, sockets: str) -> ZmqSettings:
        several = local_ray.machines() > 1
        if sockets == "ipc" and several:
            raise ClusterError(
                "cluster.sockets is ipc, but the Ray cluster has several machines; use auto or tcp"
            )
        directory = "" if sockets == "tcp" else str(self.directory)
        if directory and not several:
            return ZmqSettings(directory)
        tcp_host = ANY_MACHINE if several else "127.0.0.1"
        return ZmqSettings(directory, tcp_host, zmq.curve_keypair(), zmq.curve_keypair())

    def _reserve(self, module_to_node: np.ndarray, timeout_s: float) -> np.ndarray:
        """Reserve room for the modules; return their machines [M], by number."""
        self._group = local_ray.reserve(module_to_node, timeout_s)
        names, machine_of_node = np.unique(local_ray.machines_of(self._group), return_inverse=True)
        self._elsewhere = sorted({*names.tolist()} - {local_ray.own_machine()})
        return machine_of_node.astype(np.int32)[module_to_node]

    def _common_kernels(self) -> str | None:
        """The driver's BLAS kernels, for all processes; ClusterError where a machine cannot run them."""
        wanted = coretype()
        if wanted not in NEEDS:
            return wanted
        common, lacking = runnable(), []
        for machine, theirs in local_ray.call_on(self._elsewhere, _machine_kernels):
            common &= theirs
            if wanted not in theirs:
                lacking.append(f"{machine} runs {', '.join(name for name in NEEDS if name in theirs)}")
        if lacking:
            best = next(name for name in reversed(NEEDS) if name in common)
            raise ClusterError(
                f"this process computes with OpenBLAS's {wanted} kernels, which not all machines can run "
                f"({'; '.join(lacking)}), and others round differently; set OPENBLAS_CORETYPE={best} here"
            )
        return wanted

    def _start(self, timeout_s: float) -> None:
        import ray

        from rayemu.cluster import actors

        setup = self.setup
        self._coordinator = actors.start_coordinator(setup, self._group)
        empty = np.zeros(setup.modules, np.uint8), np.zeros(setup.modules, np.int32)
        slots = slots_of(setup.placement, np.full(len(setup.placement), READY, np.uint8))
        epoch = Epoch(0, 0, None, *empty, slots)
        self._modules = [actors.start_module(setup, self._group, m, 0, epoch) for m in range(setup.modules)]
        link = actors.open_link(setup, actors.CLIENT_NAME)
        recorder = Recorder(self.directory / "record-client", setup.record)
        client = self._client = ClientRuntime(setup.config, setup.spec, setup.modules, link, recorder)
        self._await_modules(timeout_s)
        try:
            endpoint = ray.get(
                self._coordinator.begin.remote(link.endpoint, self._modules), timeout=timeout_s
            )
        except ray.exceptions.RayError as error:
            raise ClusterError(f"the coordinator did not start: {last_line(error)}") from error
        link.connect(COORDINATOR, endpoint)
        client.start()
        running = self._coordinator.run.remote()
        self._begin_to_wait(self._watch, running)
        if isinstance(link, QueueLink):
            self._begin_to_wait(self._collect, link)

        def complete() -> bool:
            epoch = client.machine.epoch
            alive = epoch is not None and bool((epoch.state == ALIVE).all())
            return alive and len(client.pids) == setup.modules  # the last one's notice follows its epoch

        with client.changed:
            if not client.wait(complete, timeout_s):
                raise ClusterError(f"not all modules joined within {timeout_s:g} s; see `rayemu doctor`")

    def _await_modules(self, timeout_s: float) -> None:
        """Wait until the modules' processes are up; where one is not, raise ClusterError with its reason."""
        import ray

        try:
            ray.get([handle.__ray_ready__.remote() for handle in self._modules], timeout=timeout_s)
        except ray.exceptions.RayError as error:
            raise ClusterError(f"a module did not start: {last_line(error)}; see `rayemu doctor`") from error

    def _begin_to_wait(self, function: Callable[[Any], None], argument: Any) -> None:
        thread = threading.Thread(
            target=function, args=(argument,), name=function.__name__.strip("_"), daemon=True
        )
        self._waiting.append(thread)
        thread.start()

    def _watch(self, running: Any) -> None:
        reason = ""
        try:
            local_ray.answer(running, self._is_closed)
        except Exception as error:
            reason = last_line(error)
        self._client.fail(
            f"the coordinator died ({reason}); its ledger is lost and the batches in flight with it. "
            "Run again"
        )

    def _collect(self, link: QueueLink) -> None:
        while not self._closed:
            try:
                for frame in local_ray.answer(self._coordinator.collect.remote(), self._is_closed):
                    link.post(frame)
            except Exception:
                return  # it is gone: `_watch` tells

    def close(self) -> None:
        """Stop the actors, Ray if it was started here, and remove every file. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with interrupts_held():
            if self._meters is not None:
                self._meters.stop()
            if hasattr(self, "_client"):
                self._client.close()
            local_ray.stop(self._coordinator, self._modules, self._group)
            for thread in self._waiting:
                if thread is not threading.current_thread():
                    thread.join(local_ray.PATIENCE_S)
            if self._ray.ours:
                self._ray.close()
            else:
                time.sleep(0.1)
            local_ray.call_on(self._elsewhere, _remove_scratch, str(self.directory))
            _remove_scratch(str(self.directory))
        restore(self._previous_handlers)

    def _is_closed(self) -> bool:
        return self._closed

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ClusterError(CLOSED)

    def record(self) -> np.ndarray:
        """Return the record of all processes so far (RECORD rows); read it before `close`.

        Times are those of the clock of each process's machine. Where a record ends early, because a disk is
        full, there is a notice of the kind "record_cut".
        """
        self._refuse_if_closed()
        directory = str(self.directory)
        found = [*local_ray.call_on(self._elsewhere, _read_scratch, directory), _read_scratch(directory)]
        cut = sorted(name for _, _, names in found for name in names)
        if cut:
            what = (
                f"the record is incomplete: there was no more room in {self.directory.parent} (TMPDIR) for "
                f"{', '.join(cut)}"
            )
            with self._client.changed:
                self._client.machine.notices.append(Notice("record_cut", self.now, {"what": what}))
        return collected(np.concatenate(list({host: rows for host, rows, _ in found}.values())))

    def processor_times(self) -> list[Used]:
        """Return what the processes of a profiled run have used so far."""
        return [replace(used, machine=host) for host, found in self._everywhere(_times) for used in found]

    def meters(self) -> list[Metered]:
        """Return what the meters of a profiled run have read, up to now."""
        time.sleep(2 * WRITE_EVERY_S)
        everywhere = self._everywhere(_meters)
        return [replace(metered, machine=host) for host, found in everywhere for metered in found]

    def _everywhere(self, function: Callable[[str], tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Call a function with the run's directory on each machine; it gives the machine's name, too."""
        self._refuse_if_closed()
        directory = str(self.directory)
        found = [*local_ray.call_on(self._elsewhere, function, directory), function(directory)]
        return list({host: (host, given) for host, given in found}.values())

    # -- batches ----------------------------------------------------------------------------------------
    def new_rows(self, rows: int, width: int) -> np.ndarray:
        """Memory for a batch."""
        return self._client.link.new_rows(rows, width)

    def submit(self, x: np.ndarray) -> int:
        """Submit a batch x [T, D] float32, T > 0; return its number."""
        return self._client.submit(x)

    def result(self, number: int, timeout_s: float = float("inf")) -> BatchResult:
        """Wait for a batch, whose result can be had once.

        Raises StalledError where nothing goes on, TimeoutError, and ClusterError where the cluster is lost.
        """
        return self._client.result(number, timeout_s)

    def abandon(self, numbers: Iterable[int]) -> None:
        """Forget batches that nobody waits for any more."""
        self._client.abandon(numbers)

    def move(self, placement: Placement) -> int:
        """Have the experts brought to other slots while batches run; return the move's number."""
        return self._client.move(placement)

    def moved(self, number: int) -> Moved | None:
        """How far a move is, as last told."""
        return self._client.machine.moved(number)

    @property
    def placement(self) -> Placement:
        """Where the experts are, also those that are on their way there or leave."""
        return self._client.machine.placement or self.setup.placement

    @property
    def epochs(self) -> Mapping[int, Epoch]:
        """The memberships by number, as far as they were heard of; only where batches are routed whole."""
        return self._client.machine.epochs

    def take_notices(self) -> list[Notice]:
        """Return and forget what the coordinator reported."""
        return self._client.take_notices()

    def wait(self, seconds: float) -> None:
        """Let time pass. Raises ClusterError as soon as the cluster is lost."""
        self._client.pause(seconds)

    def poll(self) -> None:
        """Raise ClusterError if the cluster is lost; what arrives is handled as it comes."""
        self._client.check()

    @property
    def pids(self) -> dict[int, tuple[int, str]]:
        """Process and host of each module."""
        return self._client.pids

    @property
    def duplicate_results(self) -> int:
        """Slice results that came again and were not taken."""
        return self._client.machine.duplicate_results

    @property
    def totals(self) -> dict[str, Any]:
        """Running totals, as last reported; and what was copied of batches, which the user's are once."""
        client, told = self._client, self._client.machine.totals
        if told is None:
            return {}
        copied = {
            "client": client.submitted_bytes + client.link.copied_bytes,
            "coordinator": told.copied_bytes,
        }
        return {**totals_report(told), "ingest_copied_bytes": copied}

    @property
    def now(self) -> float:
        """The clock of batches and notices."""
        return time.monotonic()

    @property
    def epoch(self) -> Epoch:
        """The membership as last heard."""
        epoch = self._client.machine.epoch
        assert epoch is not None
        return epoch

    # -- faults -----------------------------------------------------------------------------------------
    def inject(self, fault: dict[str, Any], module: int | None) -> None:
        """Begin a fault: at one module, or (what is not of a module) in every actor."""
        self._refuse_if_closed()  # above all: the modules' process numbers may be others' now
        kind = kind_of(fault)
        if kind.strikes() and module is not None:
            pid, host = self.pids.get(module, (0, ""))
            if pid and host == own_host():
                made, seconds = fault_of(fault)
                with contextlib.suppress(ProcessLookupError):
                    made.strike(LocalProcess(pid), seconds)
                return
        if module is None:
            targets = list(range(self.setup.modules))
            if not kind.of_module:
                targets.append(COORDINATOR)
        else:
            targets = [module]
        client = self._client
        with client.changed:
            client.check()
            endpoints = endpoints_of(self.epoch)
            for target in targets:
                if target >= 0:
                    client.link.connect(target, endpoints[target])
                client.send([Send(target, Inject(fault))])
