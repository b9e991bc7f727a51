"""Ray itself: start it or join it, reserve room for the emulated nodes, end it without leaving traces."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from rayemu.cluster.host import end_processes_in, loopback_fault
from rayemu.cluster.lean_ray import lean_start

START_S = 120.0
REACH_S = 3.0
PATIENCE_S = 10.0  # for a start that was given up, before its processes are killed
SHARED_S = 10.0  # for CPUs of a Ray that another emulator of this process has started
CALL_S = 20.0  # for a call on another machine, which may have to start a process for it
LOOK_S = 0.2  # at most this long a thread stays in Ray before it looks whether it should leave
OBJECT_STORE_BYTES = 128 << 20  # batches travel as frames; the store holds little
LOCAL = "local"  # an address, of Ray's: a Ray that is started here, with as many CPUs as the machine has


_forked = False  # from a process in which Ray was


def _after_fork() -> None:
    """Keep a child from using its parent's Ray: it would wait for ever, at its end, too."""
    global _forked
    ray = sys.modules.get("ray")
    if ray is not None and hasattr(ray, "is_initialized") and ray.is_initialized():
        _forked = True
        atexit.unregister(ray.shutdown)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class RayUnavailable(RuntimeError):
    """Ray could not be started or joined, or has no room for the modules."""


def is_here(address: str | None) -> bool:
    """Whether with this address, and RAY_ADDRESS, Ray is started here."""
    return (address or os.environ.get("RAY_ADDRESS") or LOCAL) == LOCAL


class RayStopped(RuntimeError):
    """Ray is shut down, or the run is over: there will be no answer."""


class _Visitors:
    """The threads that wait in Ray.

    Its shutdown frees what they read, and that ends the process with a segmentation fault: so it waits.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._shut = False

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Be in Ray for a moment; RayStopped where it is being shut down."""
        with self._changed:
            if self._shut:
                raise RayStopped("Ray was shut down")
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def shut_out(self) -> Iterator[None]:
        """Let nobody in, once all are out: Ray can be shut down."""
        with self._changed:
            self._shut = True
            self._changed.wait_for(lambda: not self._inside, PATIENCE_S)
        try:
            yield
        finally:
            with self._changed:
                self._shut = False


_visitors = _Visitors()


def answer(reference: Any, over: Callable[[], bool]) -> Any:
    """Wait in a thread of its own for what a call gives, or raises; RayStopped once it is `over`."""
    import ray

    while not over():
        with _visitors.inside():
            try:
                if ray.wait([reference], timeout=LOOK_S)[0]:
                    return ray.get(reference)
            except SystemExit:  # Ray's way to say that its processes are gone
                raise RayStopped("Ray has stopped") from None
    raise RayStopped("the run is over")


class Connection:
    """The connection to a Ray cluster that is started here, or was there before.

    `open` waits for a thread of its own in which Ray is joined or started, so that an interrupt is heard at
    once, whatever Ray waits for; `close` then ends what was begun. The kernel ends the processes of a Ray
    that was started here together with that thread, so it goes on till then. They are deaf to SIGHUP,
    which a closed terminal sends to all: the run stops them in order.
    """

    started_here: ClassVar[Connection | None] = None  # whose Ray this process is connected to

    def __init__(self, directory: Path) -> None:
        self.directory = directory  # of the run: a local Ray keeps its files in it
        self.ours = False  # Ray was started here, and stops with the run
        self._done, self._over = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def open(self, address: str | None, cpus: int, timeout_s: float = START_S) -> None:
        """Join the Ray cluster at `address` (or RAY_ADDRESS), else start one here with so many CPUs.

        Where this process has a connection already, that is used. Raises RayUnavailable.
        """
        if _forked:
            raise RayUnavailable(
                "this process was forked from one that uses Ray, whose threads and connections are not here; "
                'start it with multiprocessing\'s "spawn", or use cluster.transport: memory'
            )
        loaded = sys.modules.get("ray")
        if loaded is not None and loaded.is_initialized():
            return
        address = address or os.environ.get("RAY_ADDRESS")
        arguments: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
        if is_here(address):
            if fault := loopback_fault():
                raise RayUnavailable(
                    f"Ray cannot be started: {fault}, and its processes talk over it; bring the loopback "
                    "interface up (`ip link set lo up`), or let the sandbox or firewall allow it"
                )
            arguments |= {
                "address": LOCAL,
                "num_cpus": cpus if address is None else None,
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "_temp_dir": str(self.directory / "ray"),
            }
            self.ours = True
        else:
            assert address is not None
            self._reach(address)
            arguments["address"] = address
        self._thread = threading.Thread(target=self._run, args=(arguments,), name="ray", daemon=True)
        self._thread.start()
        if not self._done.wait(timeout_s):
            raise _unavailable(address, f"nothing came of it within {timeout_s:g} s")
        if self._error is not None:
            raise _unavailable(address, str(self._error)) from self._error
        if self.ours:
            Connection.started_here = self

    def close(self) -> None:
        """Stop Ray if it was started here, also where that start failed or hangs."""
        if self.ours and self._thread is not None:
            import ray

            if self._done.wait(PATIENCE_S) and self._error is None:
                with _visitors.shut_out(), contextlib.suppress(Exception):
                    ray.shutdown()
            else:  # at exit, that would wait a minute for what is killed here
                atexit.unregister(ray.shutdown)
            end_processes_in(self.directory / "ray")
            if Connection.started_here is self:
                Connection.started_here = None
        self._over.set()

    def _run(self, arguments: dict[str, Any]) -> None:
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # processes that it starts inherit it
            _set_environment()
            if self.ours:
                _provide_token()
            import ray

            with lean_start() if self.ours else contextlib.nullcontext():
                ray.init(configure_logging=True, **arguments)
        except BaseException as error:
            self._error = error
        self._done.set()
        if self.ours:
            self._over.wait()

    def _reach(self, address: str) -> None:
        """Fail at once where nobody listens: Ray itself would try for minutes."""
        host, _, port = address.rpartition(":")
        if "://" not in address and host and port.isdigit():
            try:
                socket.create_connection((host, int(port)), timeout=REACH_S).close()
            except OSError as error:
                raise _unavailable(address, str(error)) from error


def _unavailable(address: str | None, why: str) -> RayUnavailable:
    if is_here(address):
        return RayUnavailable(f"Ray could not be started: {why}; see `rayemu doctor`")
    return RayUnavailable(
        f"Ray could not be joined at {address}: {why}; is it up, and of the same Ray and Python version? If "
        "it wants a token, set RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token"
    )


def _set_environment() -> None:
    """Settings of Ray's that have no argument; those that the user made are left.

    Workers run at normal priority, because a niced module answers heartbeats late.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_event_stats", "0")  # a third of what Ray's own loops take from idle modules
    # Deaths are our business, and so are more modules than cores: Ray's own paragraphs about them would bury
    # the live view.
    unwanted = "A worker died or was killed|worker processes have been started"
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", unwanted)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _provide_token() -> None:
    """Where Ray can neither find its token in the home directory nor keep one there, give it one.

    It lives in the environment of this process and of Ray's: the user's alone can read it.
    """
    if any(name in os.environ for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    token = Path(os.path.expanduser("~/.ray/auth_token"))
    with contextlib.suppress(OSError):
        if os.access(token, os.R_OK):
            return
        token.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=token.parent):
            return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def machines() -> int:
    """Number of live machines in the Ray cluster."""
    import ray

    return sum(1 for node in ray.nodes() if node["Alive"])


def own_address() -> str:
    """Return this machine's address as the cluster knows it."""
    import ray

    return str(ray.util.get_node_ip_address())


def reserve(module_to_node: np.ndarray, timeout_s: float) -> Any:
    """Reserve one bundle of CPUs per emulated node: a bundle never spans machines.

    Raises RayUnavailable: at once where the cluster's machines are too few or too small, after the timeout
    where others have their CPUs.
    """
    import ray
    from ray.util.placement_group import placement_group

    sizes = np.bincount(module_to_node)
    cpus = [float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    nodes = f"{len(sizes)} emulated nodes need {int(sizes.max())} CPUs each, on one machine"
    if not may_fit(sizes, cpus):
        has = ", ".join(f"{number:g}" for number in cpus)
        raise RayUnavailable(
            f"no room on the Ray cluster: {nodes}, and its machines have {has} CPUs; lower cluster.nodes or "
            "cluster.modules_per_node, start that Ray with a larger --num-cpus (modules may share cores), or "
            "leave out the address: a Ray of the run's own has as many as it needs"
        )
    group = placement_group([{"CPU": float(n)} for n in sizes], strategy="SPREAD")
    try:
        ray.get(group.ready(), timeout=timeout_s)
    except BaseException as error:
        ray.util.remove_placement_group(group)
        if not isinstance(error, ray.exceptions.GetTimeoutError):
            raise
        free = ray.available_resources().get("CPU", 0)
        raise RayUnavailable(
            f"no room on the Ray cluster: {nodes}, and for {timeout_s:g} s no more than {free:g} of "
            f"{sum(cpus):g} were free; {_others()}, or lower cluster.nodes or cluster.modules_per_node"
        ) from None
    return group


def _others() -> str:
    if Connection.started_here is not None:
        return "close the other emulators of this process, whose Ray this is"
    return "end what else runs there"


def may_fit(sizes: np.ndarray, cpus: list[float]) -> bool:
    """Whether bundles of these sizes can lie on machines with so many CPUs, none across two.

    Exact for bundles of one size; for unlike ones it may be true where they do not fit.
    """
    if sizes.sum() > sum(cpus):
        return False
    return all((sizes >= size).sum() <= sum(number // size for number in cpus) for size in np.unique(sizes))


def machines_of(group: Any) -> list[str]:
    """Return Ray's names of the machines that a reservation lies on, one per emulated node."""
    from ray.util.placement_group import placement_group_table

    machine_of_bundle = placement_group_table(group)["bundles_to_node_id"]
    return [machine_of_bundle[node] for node in range(len(machine_of_bundle))]


def own_machine() -> str:
    """Return Ray's name of this machine."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def call_on(machines: list[str], function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call a function on these machines at once; return what it gave, of those that answered in time."""
    if not machines:
        return []
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(function)
    given = []
    with contextlib.suppress(ray.exceptions.RayError):
        there = [NodeAffinitySchedulingStrategy(machine, soft=False) for machine in machines]
        pending = [task.options(scheduling_strategy=strategy).remote(*args) for strategy in there]
        ready, _ = ray.wait(pending, num_returns=len(pending), timeout=CALL_S)
        for reference in ready:
            with contextlib.suppress(ray.exceptions.RayError):
                given.append(ray.get(reference))
    return given


def stop(coordinator: Any, modules: list[Any], group: Any) -> None:
    """Kill all actors of a run.

    The coordinator is first: it starts replacements, which end with it because they are its children.
    """
    if coordinator is None and group is None:
        return  # Ray may not even be imported
    import ray

    if not ray.is_initialized():
        return
    for handle in [*([coordinator] if coordinator is not None else []), *modules]:
        with contextlib.suppress(Exception):
            ray.kill(handle)
    if group is not None:
        with contextlib.suppress(Exception):
            ray.util.remove_placement_group(group)
