"""The running system on real Ray, sockets and signals: exact, whoever uses it, and with clear refusals."""

from __future__ import annotations

import contextlib
import gc
import itertools
import platform
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import rayemu.running.run
from rayemu import Emulator
from rayemu.cluster import actors, local_ray
from rayemu.cluster.client_runtime import ClusterError
from rayemu.cluster.local_ray import RayUnavailable
from rayemu.cluster.session import Session
from rayemu.cluster.turns import Turns
from rayemu.drivers.record import DISPATCH, FORWARD, GEMM, REPLY, ends, queued, starts
from rayemu.machine import cores
from rayemu.numerics import coretype
from rayemu.pricing.graph import COMBINE
from rayemu.pricing.recorded_graph import graph_of
from tests.cluster.small_run import NEEDS_TURNS, alive, batches, check, scenario
from tests.forks import in_a_fork

pytestmark = pytest.mark.usefixtures("one_ray")


@pytest.mark.parametrize(
    "sections",
    [
        {"exchange": {"kind": "flat"}, "routing": {"place": "modules"}},
        {"exchange": {"kind": "hierarchical", "micro_batches": 4}, "replicas": {"kind": "least_loaded"}},
        {"cluster": {"sockets": "tcp"}, "exchange": {"micro_batches": 2}, "replicas": {"kind": "hash"}},
        {"cluster": {"transport": "ray"}},
        {"routing": {"kind": "expert_choice", "layers": {0: {"kind": "top_p"}}}},
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
    ids=[
        "flat-modules",
        "hierarchical-4",
        "tcp-curve",
        "ray-transport",
        "whole-batches",
        "lossy",
        "policies",
    ],
)
def test_bit_identical(sections: dict[str, Any]) -> None:
    with Emulator(scenario(**sections)) as emulator:
        check(emulator, batches(6))
        record = emulator.record()
        assert (queued(record) <= starts(record)).all() and (starts(record) <= ends(record)).all()
        graph = graph_of(record, emulator.spec)
        assert graph.gaps == 0 and {*graph.src.tolist()} >= {-2, -1}, "client and coordinator record too"
        assert graph.rows[(graph.kind == COMBINE) & (graph.layer == 0)].sum() == 6 * 96


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
    before = of_batches(emulator)
    time.sleep(1.0)
    return wanted <= set(before["batch"].tolist()) and len(of_batches(emulator)) == len(before)


def of_batches(emulator: Emulator) -> np.ndarray:
    record = emulator.record()
    return record[(record["batch"] >= 0) & (record["src"] >= 0)]  # what modules did for batches


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
        for expert in range(4):  # one GEMM has a row for each part of it: one ends as the next begins
            parts = np.sort(jobs[jobs["expert"] == expert], order="start_wall_s")
            assert set(parts["batch"].tolist()) == {1, 2} and len(set(parts["job"].tolist())) == 1
            assert (parts["end_wall_s"][:-1] == parts["start_wall_s"][1:]).all()


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
