"""When a fault was detected and recovered from, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rayemu.protocol.client import BatchResult
from rayemu.protocol.messages import Failure, Notice
from rayemu.running.faults import Injected, fault_entry, fault_times
from rayemu.scenario import Fault

KILL = Fault.model_validate({"kind": "kill", "module": 5, "at": {"batch": 3}})


def notice(kind: str, at: float, module: int = 5, signal: str = "disconnect") -> Notice:
    return Notice(kind, at, {"module": module, "incarnation": 0, "signal": signal, "epoch": 1})


def finished(batch: int, at: float) -> BatchResult:
    counts = np.zeros((1, 1), np.int64)
    return BatchResult(batch, np.zeros((1, 1), np.float32), counts, np.ones(1, np.int32), finished_at=at)


NOTICES = [
    notice("suspected", 9.5),  # before the fault: about something else
    notice("suspected", 10.02, module=4),
    notice("dead", 10.025, signal="process"),
    notice("suspected", 10.006),
    notice("joined", 11.5, signal="join"),
]


def test_detection_is_the_first_word_on_the_module_and_recovery_the_first_batch_after_it() -> None:
    results = [finished(2, 10.003), finished(4, 10.040), finished(3, 10.030)]
    times = fault_times(Injected(KILL, 5, 10.0), NOTICES, results, run_began=8.0)
    assert times["signal"] == "disconnect"
    assert times["began"] == pytest.approx(2.0)
    assert times["detected"] == pytest.approx(0.006)
    assert times["recovered"] == pytest.approx(0.030)
    assert times["rejoined"] == pytest.approx(1.5)


def test_a_failed_batch_is_no_recovery() -> None:
    failed = finished(3, 10.02)
    failed.failure = Failure(3, 0, 0, 0, 0)
    times = fault_times(Injected(KILL, 5, 10.0), NOTICES, [failed], 8.0)
    assert times["detected"] is not None and times["recovered"] is None


def test_a_fault_that_nobody_noticed_has_no_times() -> None:
    times = fault_times(Injected(KILL, 6, 10.0), NOTICES, [finished(3, 10.1)], 8.0)
    assert times["began"] == pytest.approx(2.0)
    assert all(times[name] is None for name in ("detected", "recovered", "rejoined", "signal"))


def test_a_fault_that_was_never_due_did_not_begin() -> None:
    assert set(fault_times(Injected(KILL, 5), NOTICES, [], 8.0).values()) == {None}


def test_message_faults_are_not_detected_through_a_module() -> None:
    drop = Fault.model_validate({"kind": "drop", "rate": 0.1})
    times = fault_times(Injected(drop, None, 10.0), NOTICES, [finished(3, 10.1)], 8.0)
    assert times["detected"] is None


def test_the_entry_of_a_summary_names_fault_and_clock() -> None:
    slow = Fault.model_validate({"kind": "slow", "module": "random", "at": {"time": "1 s"}, "factor": 3})
    entry = fault_entry(Injected(slow, 2, 10.0), [], [], 9.0, "virtual")
    assert entry == {
        "kind": "slow",
        "module": 2,
        "at": {"time_s": 1.0},
        "factor": 3.0,
        "signal": None,
        "began_virtual_s": 1.0,
        "detected_virtual_s": None,
        "recovered_virtual_s": None,
        "rejoined_virtual_s": None,
    }
