"""What a batch waited for: a path by hand, and paths of simulated runs, which fill their batches' time."""

from __future__ import annotations

import numpy as np
import pytest

from rayemu.drivers.record import COMBINE, DISPATCH, GEMM, RECORD, REPLY, RESULT, SLICE, SUBMIT
from rayemu.emulator import Emulator
from rayemu.profiling.queues import queue_times
from rayemu.scenario import Scenario

# kind, cause, queued, start, end
ROWS = (
    (SUBMIT, -1, 10.0, 10.0, 11.0),
    (SLICE, 0, 12.0, 12.5, 13.0),
    (DISPATCH, 1, 14.0, 16.0, 16.5),
    (GEMM, 2, 17.0, 20.0, 22.0),  # of one job with the next expert's: this is done when that is
    (GEMM, 2, 17.0, 22.0, 24.0),
    (REPLY, 3, 24.5, 24.5, 25.0),
    (COMBINE, 5, 27.0, 27.0, 28.0),
    (RESULT, 6, 28.0, 28.0, 29.0),
)


def by_hand() -> np.ndarray:
    record = np.zeros(len(ROWS), RECORD)
    for name, column in zip(("kind", "cause"), zip(*ROWS, strict=True), strict=False):
        record[name] = column
    for place, name in enumerate(("queued_wall_s", "start_wall_s", "end_wall_s"), 2):
        record[name] = [row[place] for row in ROWS]
    record["batch"], record["id"] = 7, np.arange(len(ROWS))
    record["job"] = np.where(record["kind"] == GEMM, record["id"], -1)  # one for each expert
    return record


def test_a_path_by_hand() -> None:
    found = queue_times(by_hand(), {7: 31.0})
    assert found["batches"] == 1 and found["batch_p50_s"] == 21.0
    assert {name: of["batch_p50_s"] for name, of in found["spans"].items()} == {
        "in its job": 4.0,
        "in the expert server's queue": 3.0,
        "result on its way, and taken": 2.0,
        "dispatch waits for its window": 2.0,
        "reply is on its way": 2.0,
        "submit": 1.0,
        "batch on its way": 1.0,
        "slice waits to be sent": 0.5,
        "slice": 0.5,
        "slice is on its way": 1.0,
        "dispatch": 0.5,
        "dispatch is on its way": 0.5,
        "job done, its reply not begun": 0.5,
        "reply": 0.5,
        "combine": 1.0,
        "result": 1.0,
    }
    assert sum(of["share"] for of in found["spans"].values()) == pytest.approx(1.0)
    assert found["spans"]["in its job"]["each_p50_s"] == 4.0


def test_a_batch_without_a_result_has_no_path() -> None:
    record = by_hand()
    assert queue_times(record[record["kind"] != RESULT], {7: 31.0})["batches"] == 0
    assert queue_times(record, {8: 31.0}) == {"batches": 0, "spans": {}}


def test_a_cause_that_is_not_known_leaves_a_rest() -> None:
    record = by_hand()
    record["cause"][3] = -1
    found = queue_times(record, {7: 31.0})
    assert found["batch_p50_s"] == 21.0 and found["spans"]["not known"]["batch_p50_s"] == 7.0


@pytest.mark.parametrize("place", ["coordinator", "modules"])
def test_paths_fill_the_time_of_simulated_batches(place: str) -> None:
    scenario = Scenario.from_dict(
        {
            "name": "small",
            "model": {"d_model": 16, "d_ff": 32, "experts": 8, "top_k": 2, "layers": 3},
            "cluster": {"nodes": 2, "modules_per_node": 2, "transport": "memory"},
            "routing": {"place": place},
            "run": {"batches": 4, "batch_tokens": 64},
        }
    )
    rng = np.random.default_rng(1)
    with Emulator(scenario) as emulator:
        batches = (rng.standard_normal((64, 16), np.float32) for _ in range(4))
        results = list(emulator.stream(batches, in_flight=2))
        record = emulator.record()
    found = queue_times(record, {r.batch: r.finished_at for r in results})
    assert found["batches"] == 4 and "not known" not in found["spans"]
    took = [r.finished_at - r.submitted_at for r in results]
    spans = sum(of["share"] for of in found["spans"].values())
    assert spans == pytest.approx(1.0) and found["batch_p50_s"] == pytest.approx(np.median(took), rel=0.05)
