"""Ray itself: start it or join it, reserve room for the emulated nodes, end it without leaving traces."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
REACH_S = 3.0
CALL_S = 20.0  # for a call on another machine, which may have to start a process for it
OBJECT_STORE_BYTES = 128 << 20  # batches travel as frames; the store holds little


class RayUnavailable(RuntimeError):
    """Ray could not be started or joined, or has no room for the modules."""


def connect(address: str | None, cpus: int, directory: Path) -> bool:
    """Join the Ray cluster at `address` (or RAY_ADDRESS), else start one here. True if started here.

    A local Ray keeps its files in `directory`. Workers run at normal priority, because a niced module
    answers heartbeats late. Ctrl-C waits until Ray is up: half started, it can neither be used nor stopped.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_event_stats", "0")  # a third of what Ray's own loops take from idle modules
    # Deaths are our business, and so are more modules than cores: Ray's own paragraphs about them would bury
    # the live view.
    unwanted = "A worker died or was killed|worker processes have been started"
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", unwanted)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL", "configure_logging": True}
    try:
        if address:
            _reach(address)
            with _signals_left_alone():
                ray.init(address=address, **common)
            return False
        with _signals_left_alone():
            ray.init(
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(directory / "ray"),
                **common,
            )
        _end_log_monitor()
        return True
    except Exception as error:
        what = f"joined at {address}" if address else "started"
        remedy = "see `rayemu doctor`"
        if address:
            remedy = (
                "is it up, and of the same Ray and Python version? If it wants a token, set "
                "RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token"
            )
        raise RayUnavailable(f"Ray could not be {what}: {error}; {remedy}") from error


@contextlib.contextmanager
def _signals_left_alone() -> Iterator[None]:
    """Keep `ray.init` from taking SIGTERM over: it would end this process while Ray is half started."""
    from ray._private import utils

    install = getattr(utils, "set_sigterm_handler", None)
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = install


def _end_log_monitor() -> None:
    """End the process that looks ten times a second for lines to print here: nobody wants them.

    That takes over half a hundredth of two cores. `ray.init` has no setting for it.
    """
    with contextlib.suppress(Exception):
        from ray._private.worker import _global_node

        _global_node.kill_log_monitor(check_alive=False)


def _reach(address: str) -> None:
    """Fail at once where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" not in address and host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=REACH_S).close()


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Note Ctrl-C and SIGTERM and raise KeyboardInterrupt for them only at the end of the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []
    previous = [signal.signal(number, lambda got, _: seen.append(got)) for number in INTERRUPTS]
    try:
        yield
    finally:
        for number, handler in zip(INTERRUPTS, previous, strict=True):
            signal.signal(number, handler)
    if seen:
        raise KeyboardInterrupt


def machines() -> int:
    """Number of live machines in the Ray cluster."""
    import ray

    return sum(1 for node in ray.nodes() if node["Alive"])


def own_address() -> str:
    """Return this machine's address as the cluster knows it."""
    import ray

    return str(ray.util.get_node_ip_address())


def reserve(module_to_node: np.ndarray, timeout_s: float) -> Any:
    """Reserve one bundle of CPUs per emulated node: a bundle never spans machines."""
    import ray
    from ray.util.placement_group import placement_group

    sizes = np.bincount(module_to_node)
    group = placement_group([{"CPU": float(n)} for n in sizes], strategy="SPREAD")
    try:
        ray.get(group.ready(), timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        free = ray.available_resources().get("CPU", 0)
        raise RayUnavailable(
            f"no room on the Ray cluster: {len(sizes)} emulated nodes need machines with {int(sizes.max())} "
            f"free CPUs each, {free:g} are free in all; lower cluster.nodes or cluster.modules_per_node"
        ) from None
    return group


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


def stop(coordinator: Any, modules: list[Any], group: Any, owns_ray: bool) -> None:
    """Kill all actors of a run, then stop Ray itself if it is ours.

    The coordinator is first: it starts replacements, which end with it because they are its children.
    """
    import ray

    if not ray.is_initialized():
        return
    for handle in [*([coordinator] if coordinator is not None else []), *modules]:
        with contextlib.suppress(Exception):
            ray.kill(handle)
    if group is not None:
        with contextlib.suppress(Exception):
            ray.util.remove_placement_group(group)
    if owns_ray:
        with contextlib.suppress(Exception):
            ray.shutdown()
    else:
        time.sleep(0.1)


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM while cleaning up: a second one must not leave half of it behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = [signal.signal(number, signal.SIG_IGN) for number in INTERRUPTS]
    try:
        yield
    finally:
        for number, handler in zip(INTERRUPTS, previous, strict=True):
            signal.signal(number, handler)


def terminate_as_interrupt() -> Any:
    """Let SIGTERM end a run as cleanly as Ctrl-C; return what `restore_terminate` puts back."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    return signal.signal(signal.SIGTERM, interrupt)


def restore_terminate(previous: Any) -> None:
    """Undo `terminate_as_interrupt`."""
    if previous is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, previous)
