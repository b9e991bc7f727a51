"""Batches that arrive at times of their own: what waits, and from when latency is measured."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rayemu.running.run
from rayemu.protocol.client import BatchResult
from rayemu.protocol.messages import Failure
from rayemu.report.summary import latencies
from rayemu.running.journal import read_journal
from rayemu.running.run import Measured, run_scenario
from rayemu.scenario import Scenario, ScenarioError
from tests.running.test_run import scenario


def with_times(tmp_path: Path, times: list[float], **sections: Any) -> Scenario:
    (tmp_path / "times").write_text("\n".join(map(str, times)))
    arrivals = {"kind": "file", "path": str(tmp_path / "times")}
    run = {"batches": len(times), **sections.pop("run", {})}
    return scenario(arrivals=arrivals, run=run, **sections)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Measured]:
    """What runs measured, one after the other."""
    found: list[Measured] = []
    true = rayemu.running.run._measure

    def measure(*given: Any) -> Measured:
        found.append(true(*given))
        return found[-1]

    monkeypatch.setattr(rayemu.running.run, "_measure", measure)
    return found


def lindley(arrivals: np.ndarray, services: np.ndarray) -> np.ndarray:
    """Latencies of one server (Lindley, 1952): w[n+1] = max(0, w[n] + s[n] - (a[n+1] - a[n]))."""
    wait, found = 0.0, []
    for n, service in enumerate(services):
        if n:
            wait = max(0.0, wait + services[n - 1] - (arrivals[n] - arrivals[n - 1]))
        found.append(wait + service)
    return np.array(found)


def test_a_queue_waits_as_lindley_says(tmp_path: Path, measured: list[Measured]) -> None:
    times = [0.0, 0.0, 0.0005, 0.001, 0.5, 0.5001, 2.0, 2.0, 2.0, 2.0]
    began = time.perf_counter()
    summary = run_scenario(with_times(tmp_path, times, run={"in_flight": 1}), tmp_path / "out")
    assert summary["passed"] and summary["exact"] is True
    assert time.perf_counter() - began < 60, "virtual time costs none"
    results, start = measured[0].results, measured[0].began
    services = np.array([r.finished_at - r.submitted_at for r in results])
    assert services.min() > 0.0006, "else nothing queues here"
    expected = lindley(np.array(times), services)
    begins = np.array([r.submitted_at - start for r in results])
    np.testing.assert_allclose(begins, np.array(times) + expected - services, atol=1e-9)
    assert begins[4] == pytest.approx(0.5, abs=1e-9) and begins[6] == pytest.approx(2.0, abs=1e-9)
    for name, q in {"p50": 50, "p90": 90, "p99": 99, "max": 100}.items():
        assert summary[f"latency_{name}_virtual_s"] == pytest.approx(np.percentile(expected, q), abs=1e-9)
    assert summary["latency_max_virtual_s"] > 3 * summary["batch_max_virtual_s"], "no coordinated omission"


def test_in_flight_stays_the_limit_of_what_is_inside(tmp_path: Path, measured: list[Measured]) -> None:
    run_scenario(with_times(tmp_path, [0.01] * 9, run={"in_flight": 3}), tmp_path / "out")
    results = measured[0].results
    for result in results:
        inside = [r for r in results if r.submitted_at <= result.submitted_at < r.finished_at]
        assert len(inside) <= 3
    assert sum(r.submitted_at == results[0].submitted_at for r in results) == 3


def test_a_stall_counts_for_every_batch_that_had_to_wait_for_it(tmp_path: Path) -> None:
    hang = [{"kind": "hang", "module": m, "at": {"batch": 4}, "for": "1 s"} for m in range(8)]
    times = [0.05 * n for n in range(20)]
    steady = with_times(tmp_path, times, faults=hang, run={"in_flight": 2}, cluster={"suspect_after": 3.0})
    summary = run_scenario(steady, tmp_path / "out")
    assert summary["passed"]
    assert summary["batch_p50_virtual_s"] < 0.05, "as they were handed out, most batches took no time"
    assert summary["latency_p50_virtual_s"] > 0.2, "who came meanwhile had waited"
    assert summary["latency_max_virtual_s"] == pytest.approx(1.0, abs=0.2)


def test_faults_begin_at_their_batch_and_time_though_nothing_arrives(tmp_path: Path) -> None:
    faults = [
        {"kind": "hang", "module": 1, "at": {"batch": 1}, "for": "5 ms"},
        {"kind": "hang", "module": 2, "at": {"time": 1.0}, "for": "5 ms"},
    ]
    summary = run_scenario(with_times(tmp_path, [0.0, 3.0], faults=faults), tmp_path / "out")
    began = {fault["module"]: fault["began_virtual_s"] for fault in summary["faults"]}
    assert began[1] == pytest.approx(3.0, abs=1e-6)
    assert began[2] == pytest.approx(1.0, abs=0.06)
    events = read_journal(tmp_path / "out" / "events.jsonl")
    assert max(e.get("since_start_virtual_s", 0) for e in events) < 3.5, "the end waits for nothing"


def test_a_closed_loop_has_no_latency_but_its_batches_time(tmp_path: Path) -> None:
    summary = run_scenario(scenario(), tmp_path / "out")
    assert not [key for key in summary if key.startswith("latency")]
    assert summary["batch_p50_virtual_s"] > 0


@pytest.mark.parametrize("kind", ["poisson", "bursts"])
def test_random_arrivals_come_from_the_seed(tmp_path: Path, kind: str, measured: list[Measured]) -> None:
    for seed in (1, 1, 2):
        wanted = scenario(arrivals={"kind": kind, "rate": 100}, run={"seed": seed})
        assert run_scenario(wanted, tmp_path / "out", overwrite=True)["passed"]
    first, again, other = ([at - m.began for at in m.meant] for m in measured)
    np.testing.assert_allclose(first, again, atol=1e-9)
    assert not np.allclose(first, other)


def test_latencies_by_hand() -> None:
    results = [
        BatchResult(n, np.zeros((1, 1)), np.zeros((1, 1)), np.ones(1), submitted_at=9.0, finished_at=f)
        for n, f in enumerate([11.0, 12.0, 14.0, 99.0])
    ]
    results[3].failure = Failure(3, 0, 0, 0, 0)
    found = latencies(results, [10.0, 10.0, 10.0, 10.0], "wall")  # 1, 2 and 4 seconds
    assert found["latency_p50_wall_s"] == 2.0 and found["latency_max_wall_s"] == 4.0
    assert found["latency_p90_wall_s"] == pytest.approx(2 + 0.8 * 2)
    assert latencies(results, [], "wall") == latencies([], [], "wall") == {}


def test_too_few_times_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"run\.batches: 4 is not allowed; allowed: 1 to 3"):
        with_times(tmp_path, [0.0, 1.0, 2.0], run={"batches": 4})
    with pytest.raises(ScenarioError, match=r"arrivals\.kind: 'poison'.*did you mean poisson\?"):
        scenario(arrivals={"kind": "poison"})
    with pytest.raises(ScenarioError, match=r"arrivals\.rate: 0 is not allowed"):
        scenario(arrivals={"kind": "poisson", "rate": 0})
    with pytest.raises(ScenarioError, match=r"arrivals\.path: '' is not allowed"):
        scenario(arrivals={"kind": "file"})


def test_overrides_of_the_kind_do_not_trip_over_filled_in_parameters() -> None:
    changed = scenario(arrivals={"kind": "poisson"}).with_overrides(["arrivals.kind=bursts", "arrivals.on=2"])
    assert (changed.arrivals.build().on, changed.arrivals.build().rate) == (2, 20.0)
    assert Scenario.from_dict(changed.model_dump(by_alias=True, exclude_none=True)) == changed
