"""The running system on real Ray, sockets and signals: exact, nothing lost, nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import rayemu.running.run
from rayemu import Emulator, Scenario
from rayemu.cluster import actors, local_ray
from rayemu.cluster.client_runtime import ClusterError
from rayemu.cluster.host import processes_in
from rayemu.cluster.local_ray import RayUnavailable
from rayemu.cluster.session import Session
from rayemu.cluster.turns import Turns
from rayemu.drivers.record import DISPATCH, FORWARD, GEMM, REPLY
from rayemu.emulator import LostExpertError
from rayemu.machine import cores
from rayemu.numerics import coretype
from rayemu.protocol.client import StalledError
from rayemu.scenario import Fault
from tests.forks import in_a_fork

BASE: dict[str, Any] = {
    "model": {"d_model": 64, "d_ff": 128, "experts": 8, "top_k": 2, "layers": 2},
    "cluster": {"nodes": 2, "modules_per_node": 2},
    "placement": {"copies": 2},
    "exchange": {"min_slice_rows": 16},
    "run": {"seed": 5},
}

NEEDS_TURNS = pytest.mark.skipif(
    sys.platform != "linux" or cores() >= 4,
    reason="needs the semaphores of Linux and fewer cores than modules: 4",
)


@pytest.fixture(scope="module", autouse=True)
def one_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start Ray once: emulators join it and end only what is theirs."""
    directory = Path(tempfile.mkdtemp(prefix="rayemu-test-"))  # short: sockets have short names
    connection = local_ray.Connection(directory)
    connection.open(None, 10)
    assert connection.ours
    started = b" ".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_in(directory))
    assert sys.platform != "linux" or b"raylet" in started
    assert not [name for name in (b"/dashboard.py", b"/monitor.py", b"/log_monitor.py") if name in started]
    yield
    connection.close()
    shutil.rmtree(directory, ignore_errors=True)


def scenario(**sections: dict[str, Any]) -> Scenario:
    data = {key: dict(value) for key, value in BASE.items()}
    for key, value in sections.items():
        data[key] = {**data.get(key, {}), **value}
    return Scenario.from_dict(data)


def batches(count: int, rows: int = 96, width: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [rng.standard_normal((rows, width), dtype=np.float32) for _ in range(count)]


def check(emulator: Emulator, inputs: list[np.ndarray]) -> None:
    results = list(emulator.stream(inputs))
    assert len(results) == len(inputs)
    for x, result in zip(inputs, results, strict=True):
        assert (result.delivered == 1).all()
        assert np.array_equal(emulator.reference(x, result), result.y)


@pytest.mark.parametrize(
    "sections",
    [
        {"exchange": {"kind": "flat"}, "routing": {"place": "modules"}},
        {"exchange": {"kind": "hierarchical", "micro_batches": 4}, "replicas": {"kind": "least_loaded"}},
        {"cluster": {"sockets": "tcp"}, "exchange": {"micro_batches": 2}, "replicas": {"kind": "hash"}},
        {"cluster": {"transport": "ray"}},
        {"exchange": {"codec": {"module": "bf16", "node": "int8+zstd"}}},
        {
            "exchange": {
                "codec": {
                    "module": {"by_size": [[9, "int8"], [13, "fp8"], "planes+zstd"]},
                    "node": {"dispatch": "int4", "combine": "bf16"},
                }
            }
        },
    ],
    ids=["flat-modules", "hierarchical-4", "tcp-curve", "ray-transport", "lossy", "policies"],
)
def test_bit_identical(sections: dict[str, Any]) -> None:
    with Emulator(scenario(**sections)) as emulator:
        check(emulator, batches(6))


def test_rows_that_a_codec_cannot_carry_travel_raw() -> None:
    sections = {"model": {"norm": False}, "exchange": {"codec": {"module": "fp16", "node": "fp16"}}}
    with Emulator(scenario(**sections)) as emulator:
        x = batches(1)[0]
        x[::3] *= 1e6  # beyond 65504
        check(emulator, [x, batches(1)[0]])
        used = emulator.record()["codec"]
        assert (used == 0).any() and (used > 0).any()


def test_auto_compresses_on_the_slow_link_only_and_says_so() -> None:
    sections = {
        "model": {"d_model": 256, "layers": 1},
        "cluster": {"links": {"node": "2 MB/s"}},
        "placement": {"copies": 1},
        "exchange": {"codec": {"module": "auto", "node": "auto"}},
    }
    with Emulator(scenario(**sections)) as emulator:
        for _ in range(20):
            check(emulator, batches(20, rows=96, width=256))
        told = [n.facts for n in emulator.take_notices() if n.kind == "codec"]
        node = [f for f in told if f["level"] == "node"]
        assert {"raw"} == {f["before"] for f in node[:1]} and node[0]["after"] in ("bf16", "int8")
        assert 0.5e6 < float(str(node[0]["link_bytes_per_s"])) < 8e6
        record = emulator.record()
        late = record[np.isin(record["kind"], [DISPATCH, FORWARD, REPLY]) & (record["batch"] >= 340)]
        coded = {level: (late["codec"][late["level"] == level] > 0).mean() for level in (1, 2)}
        # While something else has the cores, a link's time is hidden behind it: compressing does not pay.
        back = [f for f in node if f["after"] == "raw"]
        assert all(f["hidden"] for f in back)
        assert coded[1] < 0.5 and (coded[2] > 0.8 or back)


def test_batches_arrive_at_times_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []
    measure = rayemu.running.run._measure
    monkeypatch.setattr(
        rayemu.running.run, "_measure", lambda *given: measured.append(measure(*given)) or measured[0]
    )
    (tmp_path / "times").write_text("0\n0\n0\n0\n0\n0.4\n0.4\n0.8\n")
    wanted = scenario(
        arrivals={"kind": "file", "path": str(tmp_path / "times")},
        run={"batches": 8, "batch_tokens": 96, "in_flight": 1},
    )
    summary = rayemu.running.run.run_scenario(wanted, tmp_path / "out")
    assert summary["passed"] and summary["exact"] is True
    results, began = measured[0].results, measured[0].began
    submitted = np.array([r.submitted_at for r in results])
    finished = np.array([r.finished_at for r in results])
    times = began + np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.4, 0.4, 0.8])
    assert (submitted >= times).all(), "none before it arrived"
    assert (submitted[1:] >= finished[:-1]).all(), "one at a time"
    assert summary["latency_p50_wall_s"] == np.median(finished - times)
    assert summary["latency_max_wall_s"] == (finished - times).max() >= finished[4] - submitted[0]


def settled(emulator: Emulator, wanted: set[int]) -> bool:
    """Wait a second; tell whether all those batches are on their way and nothing was recorded meanwhile."""
    before = emulator.record()
    time.sleep(1.0)
    return wanted <= set(before["batch"].tolist()) and len(emulator.record()) == len(before)


@NEEDS_TURNS
def test_a_job_that_waits_for_a_core_takes_what_comes_meanwhile() -> None:
    """The test holds all turns until two batches are with the experts: each computes both at once."""
    model = {"d_model": 512, "d_ff": 4096, "experts": 4, "top_k": 1, "layers": 1}  # a job: 2 GFLOP or more
    with Emulator(scenario(model=model, placement={"copies": 1})) as emulator:
        inputs = batches(3, rows=1600, width=512)
        check(emulator, inputs[:1])
        with contextlib.ExitStack() as held:
            turns = Turns(emulator._backend.directory)
            for _ in range(cores()):
                held.enter_context(turns.one(lambda: False))
            stream = emulator.stream(inputs[1:])
            first = threading.Thread(target=next, args=(stream,))
            first.start()
            while not settled(emulator, {1, 2}):
                pass
            held.close()
            first.join()
            assert len(list(stream)) == 1
        record = emulator.record()
        jobs = record[(record["kind"] == GEMM) & (record["batch"] > 0)]
        assert jobs["rows"].sum() == 2 * 1600
        for expert in range(4):  # one GEMM has a row for each batch in it: one ends as the next begins
            first, second = np.sort(jobs[jobs["expert"] == expert], order="start_wall_s")
            assert first["batch"] != second["batch"] and first["end_wall_s"] == second["start_wall_s"]


def test_a_forked_child_does_not_use_its_parents_ray() -> None:
    with Emulator(scenario()) as emulator:
        check(emulator, batches(1))
        assert "of which this one was forked" in in_a_fork(lambda: emulator.forward(batches(1)[0]))
        assert "was forked from one that uses Ray" in in_a_fork(lambda: Emulator(scenario()))
        assert in_a_fork(emulator.close) == "None"
        check(emulator, batches(2))


def test_an_emulator_that_nobody_has_is_closed() -> None:
    emulator = Emulator(scenario())
    check(emulator, batches(1))
    backend = emulator._backend
    directory, pids = backend.directory, emulator.pids
    assert directory.exists()
    del emulator
    gc.collect()
    assert not directory.exists()
    end = time.monotonic() + 20
    while any(alive(pid) for pid, _ in pids.values()):
        assert time.monotonic() < end, "the modules go on"
        time.sleep(0.05)
    for call in (
        backend.record,
        lambda: backend.inject({"kind": "kill"}, 1),
        lambda: backend.submit(batches(1)[0]),
    ):
        with pytest.raises(ClusterError, match="the emulator was closed"):
            call()


def test_public_calls() -> None:
    with Emulator(scenario(cluster={"nodes": 1})) as emulator:
        x = batches(1)[0]
        y = emulator.forward(x)
        assert y.dtype == np.float32 and np.array_equal(y, emulator.reference(x))
        assert np.array_equal(emulator.forward(x.astype(np.float64)), y)
        assert np.array_equal(emulator.forward(np.asfortranarray(x)), y)
        assert emulator.forward(x[:0]).shape == (0, 64)
        assert np.array_equal(emulator.forward(x[:1]), y[:1])
        bad = x.copy()
        bad[3, 7] = np.nan
        for wrong, error, text in [
            (bad, ValueError, r"x\[3, 7\] is nan"),
            (x[:, :5], ValueError, "shape"),
            (x.astype(np.int32), TypeError, "int32"),
        ]:
            with pytest.raises(error, match=text):
                emulator.forward(wrong)
        seen = []
        with pytest.raises(ValueError, match="nan"):
            for result in emulator.stream([x, x, bad, x]):
                seen.append(result.y)
        assert len(seen) == 2 and all(np.array_equal(out, y) for out in seen)  # nothing lost
        for _ in itertools.islice(emulator.stream([x] * 6), 1):
            pass  # abandoned half-way
        assert np.array_equal(emulator.forward(x), y)


def wait_for(emulator: Emulator, kind: str, module: int, seconds: float = 30.0) -> Any:
    """Wait for a notice about a module."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for notice in emulator.take_notices():
            if notice.kind == kind and notice.facts["module"] == module:
                return notice
        emulator.poll()
        time.sleep(0.01)
    raise AssertionError(f"module {module} was never {kind}")


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


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have other kernels")
def test_modules_that_would_compute_otherwise_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules, one of them with other BLAS kernels than the driver."""
    other = "Sandybridge" if coretype() == "Nehalem" else "Nehalem"
    given = iter([{}, {}, {"runtime_env": {"env_vars": {"OPENBLAS_CORETYPE": other}}}])  # coordinator first
    monkeypatch.setattr(actors, "_environment", lambda setup: next(given))
    with pytest.raises(ClusterError, match=f"KernelsDiffer.*{other}.*the driver with .*{coretype()}"):
        Emulator(scenario(cluster={"nodes": 1, "modules_per_node": 2}))


def test_a_machine_that_cannot_run_the_driver_s_kernels_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Session.__new__(Session)
    made._elsewhere = ["there"]
    monkeypatch.setattr("rayemu.cluster.session.coretype", lambda: "SkylakeX")
    monkeypatch.setattr("rayemu.cluster.session.runnable", lambda: {"Nehalem", "Haswell", "SkylakeX"})
    theirs = ("old", {"Nehalem", "Haswell"})
    monkeypatch.setattr("rayemu.cluster.session.local_ray.call_on", lambda machines, function: [theirs])
    with pytest.raises(ClusterError, match=r"SkylakeX.*old runs Nehalem, Haswell.*OPENBLAS_CORETYPE=Haswell"):
        made._common_kernels()
    monkeypatch.setattr("rayemu.cluster.session.coretype", lambda: "Haswell")
    assert made._common_kernels() == "Haswell"


def test_a_cluster_that_can_never_hold_the_modules_refuses_them_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(RayUnavailable, match=r"2 emulated nodes need 6 CPUs each.*have 10 CPUs;.*num-cpus"):
        Emulator(scenario(cluster={"nodes": 2, "modules_per_node": 6}))
    assert time.monotonic() - began < 10


def test_a_cluster_that_others_use_is_waited_for_and_nothing_stays_reserved() -> None:
    other = local_ray.reserve(np.zeros(8, int), 10)
    try:
        with pytest.raises(
            RayUnavailable,
            match=r"need 3 CPUs each.*for 0.5 s no more than 2 of 10 were free; close the other emu",
        ):
            local_ray.reserve(np.zeros(3, int), 0.5)
    finally:
        ray.util.remove_placement_group(other)
    table = ray.util.placement_group_table()
    assert {entry["state"] for entry in table.values()} == {"REMOVED"}
