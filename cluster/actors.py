"""The Ray actors: thin shells around the runtimes, which know nothing of Ray."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rayemu.cluster import local_ray
from rayemu.cluster.coordinator_runtime import CoordinatorRuntime, last_line
from rayemu.cluster.host import own_host
from rayemu.cluster.link import Link, QueueLink, ZmqLink
from rayemu.cluster.module_runtime import ModuleRuntime
from rayemu.cluster.setup import ANY_MACHINE, Setup
from rayemu.model.agreement import agree
from rayemu.numerics import keep_denormals, set_blas_threads
from rayemu.protocol.messages import Epoch

COORDINATOR_NAME = "coordinator"
CLIENT_NAME = "coordinator.client"  # the client has no actor: its mail waits at the coordinator


def module_name(module: int, incarnation: int) -> str:
    """Return the Ray name of a module's actor."""
    return f"module-{module}.{incarnation}"


def namespace(setup: Setup) -> str:
    """Return the Ray namespace of a run."""
    return f"rayemu-{setup.run_id}"


class _Mail:
    """Delivers frames to named actors, for the `ray` transport; endpoints are actor names."""

    def __init__(self, space: str) -> None:
        self.space = space
        self.handles: dict[str, Any] = {}

    def __call__(self, endpoint: str, frame: Any) -> None:
        name = COORDINATOR_NAME if endpoint == CLIENT_NAME else endpoint
        try:
            handle = self.handles.get(name)
            if handle is None:
                handle = self.handles[name] = ray.get_actor(name, self.space)
            method = handle.deliver_client if endpoint == CLIENT_NAME else handle.deliver
            method.remote(frame)
        except (ValueError, ray.exceptions.RayError):
            pass  # gone: the protocol asks again, and membership will tell


def open_link(setup: Setup, name: str) -> Link:
    """Open the transport of an actor of this name."""
    if setup.zmq is None:
        return QueueLink(name, _Mail(namespace(setup)))
    settings = setup.zmq
    if settings.tcp_host == ANY_MACHINE:
        settings = replace(settings, tcp_host=local_ray.own_address())
    setup.scratch()
    return ZmqLink(name, settings, hands_on=name == COORDINATOR_NAME)


@ray.remote
class ModuleActor:
    """One PIM module. `serve` runs for the module's life: its pending call tells of its death.

    With `zmq` it owns the main thread, where Ray would otherwise look for signals a hundred times a second,
    each time taking the interpreter's lock: over a hundredth of two cores with eight modules.
    """

    def __init__(self, setup: Setup, module: int, incarnation: int, epoch: Epoch) -> None:
        setup = setup.fitted(module)
        setup.meters(module_name(module, incarnation), f"module {module}")
        if keep_denormals():  # BLAS's own threads may be in the mode that this one was in
            setup = replace(setup, blas_threads=1)
        set_blas_threads(setup.blas_threads or 1)
        agree(setup.arithmetic)
        self.link = open_link(setup, module_name(module, incarnation))
        self.runtime = ModuleRuntime(setup, module, incarnation, epoch, self.link)

    def serve(self, coordinator: str, client: str, host: str) -> None:
        """Run until stopped."""
        self.runtime.serve(coordinator, client, host)

    def deliver(self, frame: Any) -> None:
        """Take a frame (`ray` transport)."""
        assert isinstance(self.link, QueueLink)
        self.link.post(frame)


@ray.remote
class CoordinatorActor:
    """Routes tokens, keeps the ledger and the membership, watches and replaces modules.

    With `zmq`, `run` owns the main thread, as a module's `serve` does: after it no other call is answered.
    """

    def __init__(self, setup: Setup, group: Any) -> None:
        setup.meters(COORDINATOR_NAME, "coordinator")
        if keep_denormals():
            setup = replace(setup, blas_threads=1)
        agree(setup.arithmetic)
        self.setup, self.group = setup, group
        self.link = open_link(setup, COORDINATOR_NAME)
        self.runtime = CoordinatorRuntime(setup, self.link, self._replace, self._kill)
        self.modules: dict[tuple[int, int], Any] = {}
        self.client = ""
        self.outbox: list[Any] = []
        self.outbox_filled = threading.Condition()

    def begin(self, client: str, modules: list[Any]) -> str:
        """Put the modules to work and watch them; return the coordinator's endpoint."""
        self.client = client
        for module, handle in enumerate(modules):
            self._watch(module, 0, handle)
        return self.link.endpoint

    def run(self) -> None:
        """Run the event loop until killed."""
        self.runtime.run(self.client)

    def deliver(self, frame: Any) -> None:
        """Take a frame (`ray` transport)."""
        assert isinstance(self.link, QueueLink)
        self.link.post(frame)

    def deliver_client(self, frame: Any) -> None:
        """Keep a frame for the client, which has no actor of its own (`ray` transport)."""
        with self.outbox_filled:
            self.outbox.append(frame)
            self.outbox_filled.notify_all()

    def collect(self) -> list[Any]:
        """Return frames for the client, waiting a while for the first (`ray` transport)."""
        with self.outbox_filled:
            if not self.outbox:
                self.outbox_filled.wait(1.0)
            frames, self.outbox = self.outbox, []
            return frames

    def _watch(self, module: int, incarnation: int, handle: Any) -> None:
        self.modules[module, incarnation] = handle
        pending = handle.serve.remote(self.link.endpoint, self.client, own_host())

        def wait() -> None:
            reason = ""
            try:
                ray.get(pending)
            except ray.exceptions.RayTaskError as error:  # it failed by itself; else it was killed
                reason = last_line(error)
            except Exception as error:
                if "creation task" in str(error):  # Ray's words for a constructor that failed
                    reason = last_line(error)
            self.runtime.post_down(module, incarnation, "actor", reason)

        threading.Thread(target=wait, name=f"watch-{module}.{incarnation}", daemon=True).start()

    def _replace(self, module: int, incarnation: int) -> None:
        epoch = self.runtime.machine.epoch()
        handle = start_module(self.setup, self.group, module, incarnation, epoch)
        self._watch(module, incarnation, handle)

    def _kill(self, module: int, incarnation: int) -> None:
        handle = self.modules.pop((module, incarnation), None)
        if handle is not None:
            time.sleep(0.05)  # off the path of the failover
            ray.kill(handle)


def _environment(setup: Setup) -> dict[str, Any]:
    """Give workers the BLAS kernels of the driver, before they import NumPy: rows must agree to the bit."""
    kernels = setup.coretype
    return {"runtime_env": {"env_vars": {"OPENBLAS_CORETYPE": kernels}}} if kernels else {}


def start_module(setup: Setup, group: Any, module: int, incarnation: int, epoch: Epoch) -> Any:
    """Start a module's actor in the bundle of its emulated node."""
    node = int(setup.module_to_node[module])
    return ModuleActor.options(  # type: ignore[attr-defined]
        name=module_name(module, incarnation),
        namespace=namespace(setup),
        num_cpus=1,
        max_concurrency=8 if setup.zmq is None else 1,
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=node),
        **_environment(setup),
    ).remote(setup, module, incarnation, epoch)


def start_coordinator(setup: Setup, group: Any) -> Any:
    """Start the coordinator's actor on this machine: so a run survives the loss of any other."""
    return CoordinatorActor.options(  # type: ignore[attr-defined]
        name=COORDINATOR_NAME,
        namespace=namespace(setup),
        num_cpus=0,
        max_concurrency=16 if setup.zmq is None else 1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(local_ray.own_machine(), soft=False),
        **_environment(setup),
    ).remote(setup, group)
