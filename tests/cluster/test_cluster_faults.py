"""Deaths, hangs and bad weather of the running system: exact, nothing lost, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray

from rayemu import Emulator
from rayemu.cluster.client_runtime import ClusterError
from rayemu.cluster.turns import Turns
from rayemu.emulator import LostExpertError
from rayemu.machine import cores
from rayemu.placement import from_columns
from rayemu.protocol.client import StalledError
from rayemu.scenario import Fault
from tests.cluster.small_run import NEEDS_TURNS, alive, batches, check, scenario, wait_for

pytestmark = pytest.mark.usefixtures("one_ray")


@pytest.mark.parametrize(
    ("transport", "rows"), [("zmq", 96), ("zmq", 4096), ("ray", 96)], ids=["zmq", "zmq-shelves", "ray"]
)
def test_kill_and_replacement(transport: str, rows: int) -> None:
    with Emulator(scenario(cluster={"transport": transport})) as emulator:
        inputs = batches(40, rows)
        emulator.take_notices()

        def feed() -> Iterator[np.ndarray]:
            for number, x in enumerate(inputs):
                if number == 10:
                    os.kill(emulator.pids[1][0], signal.SIGKILL)
                yield x

        results = list(emulator.stream(feed()))
        for x, result in zip(inputs, results, strict=True):
            assert (result.delivered == 1).all()
            assert np.array_equal(emulator.reference(x, result), result.y)
        joined = wait_for(emulator, "joined", 1)
        assert joined.facts["incarnation"] == 1
        check(emulator, inputs[:5])


def test_hang_is_survived_and_forgiven() -> None:
    with Emulator(scenario(cluster={"evict_after": "20 s"})) as emulator:
        emulator.take_notices()
        pid = emulator.pids[2][0]
        inputs = batches(30)
        os.kill(pid, signal.SIGSTOP)
        try:
            check(emulator, inputs)
            wait_for(emulator, "suspected", 2)
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_for(emulator, "recovered", 2)
        check(emulator, inputs[:5])


def test_a_home_that_wakes_up_long_after_its_batches_are_done_changes_nothing() -> None:
    """Its slices were given to others and their memory to later batches, but what it still was to read."""
    with Emulator(scenario(cluster={"evict_after": "60 s"})) as emulator:
        backend, addresses = emulator._backend, []

        def new_rows(rows: int, width: int, make: Any = backend.new_rows) -> np.ndarray:
            made = make(rows, width)
            addresses.append(made.__array_interface__["data"][0])
            return made

        backend.new_rows = new_rows
        emulator.take_notices()
        pid, kinds = emulator.pids[1][0], batches(7, rows=2048)
        right = [emulator.reference(x) for x in kinds]
        inputs = [kinds[number % 7] for number in range(40)]

        def feed() -> Iterator[np.ndarray]:
            for number, x in enumerate(inputs):
                if number == 8:
                    os.kill(pid, signal.SIGSTOP)
                if number == 32:
                    os.kill(pid, signal.SIGCONT)
                yield x

        try:
            results = list(emulator.stream(feed()))
        finally:
            os.kill(pid, signal.SIGCONT)
        wait_for(emulator, "recovered", 1)
        for x in inputs[:6]:  # and given up while homes are at it, which gives their memory to the next ones
            rows = backend.new_rows(*x.shape)
            rows[:] = x
            backend.abandon([backend.submit(rows)])
            del rows
        results += list(emulator.stream(inputs[:5]))
        assert emulator.totals["reissued"] > 0
        assert len(set(addresses[8:32])) < 24, "no memory was used again"
        for y, result in zip([right[number % 7] for number in [*range(40), *range(5)]], results, strict=True):
            assert (result.delivered == 1).all() and np.array_equal(y, result.y)
        copied = emulator.totals["ingest_copied_bytes"]
        assert copied == {"client": 51 * inputs[0].nbytes, "coordinator": 0}


@NEEDS_TURNS
@pytest.mark.parametrize("blow", [signal.SIGSTOP, signal.SIGKILL], ids=["hang", "kill"])
def test_large_jobs_wait_for_turns_but_not_once_a_module_hangs_or_died(blow: signal.Signals) -> None:
    large = {"d_model": 256, "d_ff": 1024, "experts": 4, "top_k": 2, "layers": 1}
    with (
        Emulator(scenario(model=large, cluster={"evict_after": "60 s"})) as emulator,
        contextlib.ExitStack() as stack,
    ):
        backend, x = emulator._backend, batches(1, rows=6144, width=256)[0]
        assert np.array_equal(emulator.forward(x), emulator.reference(x))
        for _ in range(cores()):
            stack.enter_context(Turns(backend.directory).one(lambda: False))
        number = backend.submit(x)
        with pytest.raises(TimeoutError):
            backend.result(number, timeout_s=1.0)
        pid = emulator.pids[1][0]
        os.kill(pid, blow)
        try:
            assert np.array_equal(backend.result(number, timeout_s=60.0).y, emulator.reference(x))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_weather_that_lets_nothing_through_is_a_bounded_failure() -> None:
    settings = {"retry_after": "100 ms", "stall_after": "1 s"}
    with Emulator(scenario(cluster=settings)) as emulator:
        emulator.inject(Fault.model_validate({"kind": "drop", "rate": 1.0, "for": "8 s"}))
        began = time.monotonic()
        with pytest.raises(StalledError, match=r"made no progress for 1 s .*: the coordinator has not"):
            emulator.forward(batches(1)[0])
        assert time.monotonic() - began >= 1
        time.sleep(max(0.0, began + 8.5 - time.monotonic()))
        check(emulator, batches(3))


def test_bad_weather() -> None:
    with Emulator(scenario(cluster={"retry_after": "100 ms"})) as emulator:
        for kind in ("drop", "duplicate", "corrupt", "delay", "reorder"):
            emulator.inject(Fault.model_validate({"kind": kind, "rate": 0.02, "for": "60 s"}))
        emulator.inject(Fault.model_validate({"kind": "slow", "module": 0, "factor": 3.0, "for": "60 s"}))
        check(emulator, batches(30))


def test_a_module_that_fails_dies_with_its_reason_and_is_replaced() -> None:
    """What goes wrong in a module's thread: here a fault without sense, in its event loop."""
    with Emulator(scenario()) as emulator:
        pid = emulator.pids[1][0]
        with pytest.raises(ValueError, match="kind: 'flood' is none; known: kill"):
            emulator._backend.inject({"kind": "flood"}, None)
        emulator._backend.inject({"kind": "slow", "for": "never", "factor": 2.0}, 1)
        dead = wait_for(emulator, "dead", 1)
        assert dead.facts["signal"] == "actor"
        assert str(dead.facts["reason"]).startswith("ValueError: could not convert string to float: 'never'")
        check(emulator, batches(3))
        joined = wait_for(emulator, "joined", 1)
        assert joined.facts["incarnation"] == 1 and not alive(pid)


def test_all_copies_dead_fails_or_drops() -> None:
    single = {"placement": {"copies": 1}, "cluster": {"replace": False}}
    with Emulator(scenario(**single)) as emulator:
        os.kill(emulator.pids[0][0], signal.SIGKILL)
        wait_for(emulator, "dead", 0)
        with pytest.raises(LostExpertError, match=r"expert [01] "):
            emulator.forward(batches(1)[0])
    with Emulator(scenario(**single, run={"on_lost_expert": "drop"})) as emulator:
        os.kill(emulator.pids[0][0], signal.SIGKILL)
        wait_for(emulator, "dead", 0)
        x = batches(1)[0]
        result = next(iter(emulator.stream([x])))
        assert result.dispatch_paths is not None and (result.dispatch_paths == 255).any()
        assert np.array_equal(emulator.reference(x, result), result.y)
        assert not np.array_equal(emulator.reference(x), result.y)


def test_coordinator_death_is_a_clear_error() -> None:
    with Emulator(scenario(cluster={"nodes": 1})) as emulator:
        ray.kill(emulator._backend._coordinator)
        with pytest.raises(ClusterError, match="coordinator died"):
            for _ in range(200):
                emulator.forward(batches(1)[0])


def test_a_hang_ends_with_its_run() -> None:
    with Emulator(scenario(cluster={"nodes": 1, "evict_after": "60 s"})) as emulator:
        pids = [pid for pid, _ in emulator.pids.values()]
        emulator.inject(Fault.model_validate({"kind": "hang", "module": 0}))
        emulator.inject(Fault.model_validate({"kind": "hang", "module": 1, "for": "60 s"}))
    end = time.monotonic() + 30
    while any(alive(pid) for pid in pids) or any(t.name == "resume" for t in threading.enumerate()):
        assert time.monotonic() < end, "the modules, or those that would wake them, go on"
        time.sleep(0.05)


def test_nothing_is_left_behind_replacements_included() -> None:
    with Emulator(scenario(cluster={"nodes": 1})) as emulator:
        emulator.forward(batches(1)[0])
        directory = emulator._backend.directory
        emulator.take_notices()
        os.kill(emulator.pids[0][0], signal.SIGKILL)
        wait_for(emulator, "joined", 0)
        pids = [pid for pid, _ in emulator.pids.values()]
        assert all(alive(pid) for pid in pids)
        assert len(emulator.record()) > 0
        assert not [n for n in emulator.take_notices() if n.kind == "record_cut"]
        (directory / "record-1.7").touch()  # of a module that found no room
        emulator.record()
        (cut,) = [n for n in emulator.take_notices() if n.kind == "record_cut"]
        assert str(directory.parent) in cut.facts["what"] and "record-1.7" in cut.facts["what"]
    assert not directory.exists()

    def left() -> bool:
        return any(alive(pid) for pid in pids) or bool(ray.util.list_named_actors(all_namespaces=True))

    end = time.monotonic() + 10
    while left() and time.monotonic() < end:
        time.sleep(0.05)
    assert not left()


def test_experts_move_while_a_module_is_killed() -> None:
    """Every expert goes one module on, slowly; module 1 loads from one module and is another's source."""
    slowly = {"every": 1_000_000, "rate": "400 KB/s"}  # 98 KB an expert, four to a module: 1 s a layer
    with Emulator(scenario(rebalance=slowly)) as emulator:
        emulator.take_notices()
        present = emulator.placement
        wanted = from_columns(present.layer, present.expert, (present.module + 1) % 4)
        inputs, killed, status = batches(16), False, None
        number = emulator.move(wanted)
        end = time.monotonic() + 60
        while status is None or not status.done:
            assert time.monotonic() < end, f"the move is not over: {status}"
            check(emulator, inputs)
            status = emulator.moved(number)
            if not killed and len(emulator.placement) > len(present):  # they are on their way
                os.kill(emulator.pids[1][0], signal.SIGKILL)
                killed = True
        wait_for(emulator, "joined", 1)
        check(emulator, inputs)
        assert killed and status.fetched > 0 and status.fetched % (4 * 3 * 64 * 128) == 0
        assert status.loaded + status.cancelled >= len(wanted)
        table = emulator.placement
        assert (table.counts(2, 8) >= 1).all()
        if not status.cancelled:
            there = zip(table.layer.tolist(), table.expert.tolist(), table.module.tolist(), strict=True)
            asked = zip(wanted.layer.tolist(), wanted.expert.tolist(), wanted.module.tolist(), strict=True)
            assert set(asked) <= set(there)
