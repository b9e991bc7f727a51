"""What a strike did, from hand-made histories."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from rayemu.benchmarks.faultload import (
    Batch,
    Faultload,
    Signal,
    Strike,
    Watchdog,
    false_alarms,
    first_done,
    needed_units,
    outcome,
)
from rayemu.benchmarks.faultreport import clean, tokens, undisturbed
from rayemu.drivers.record import COMBINE, DISPATCH, RECORD


def batch(number: int, submitted: float, finished: float, **changed: Any) -> Batch:
    return Batch(number, submitted, finished, **{"exact": True, "lost": 0, "doubled": 0, **changed})


STRIKE = Strike(module=3, at=10.0, wall=1000.0, back=12.0)
SIGNALS = [
    Signal(9.0, "suspected", 3, "heartbeat"),  # before the strike
    Signal(10.004, "suspected", 5, "heartbeat"),  # another module
    Signal(10.006, "suspected", 3, "disconnect"),
    Signal(10.009, "dead", 3, "process"),
    Signal(12.0, "joined", 3, "join"),
]
BATCHES = [
    batch(0, 9.0, 9.99),  # out before the strike
    batch(1, 9.5, 10.002),  # the module had done its part
    batch(2, 9.6, 10.030),
    batch(3, 9.7, 10.020),
    batch(4, 10.0001, 10.040),  # sent after the strike, before anyone knew
    batch(5, 10.002, 10.015),  # a later one is not needed to know
    batch(6, 10.5, 10.6),
]


TOLD = Signal(10.006, "suspected", 3, "disconnect", epoch=9)


def record_of(rows: list[tuple[int, int, int, int, int, float]]) -> np.ndarray:
    record = np.zeros(len(rows), RECORD)
    for row, (kind, src, number, slice, epoch, end) in zip(record, rows, strict=True):
        row["kind"], row["src"], row["batch"], row["slice"] = kind, src, number, slice
        row["epoch"], row["end_wall_s"] = epoch, end
    return record


def unit_s(record: np.ndarray, told: Signal | None) -> float | None:
    return first_done(record, STRIKE, needed_units(record, STRIKE, told))


NEEDED = record_of(
    [
        (DISPATCH, 3, 0, 0, 5, 800.0),  # an earlier incarnation's, finished elsewhere before the strike
        (COMBINE, 6, 0, 0, -1, 800.1),
        (DISPATCH, 4, 2, 0, 8, 999.9),
        (DISPATCH, 4, 2, 0, 9, 1000.007),
        (COMBINE, 4, 2, 0, -1, 1000.025),
        (DISPATCH, 3, 3, 0, 8, 999.9),
        (COMBINE, 5, 3, 0, -1, 1000.018),
        (DISPATCH, 4, 1, 0, 8, 999.9),
        (COMBINE, 4, 1, 0, -1, 1000.001),
    ]
)


def test_recovery_is_the_first_batch_that_needed_the_module() -> None:
    signals = [s if s.cause != "disconnect" else TOLD for s in SIGNALS]
    o = outcome(STRIKE, BATCHES, signals, NEEDED)
    assert (o.module, o.signal, o.needed) == (3, "disconnect", 2)
    assert o.detected_s == pytest.approx(0.006)
    assert o.unit_s == pytest.approx(0.018)
    assert o.recovered_s == pytest.approx(0.020)
    assert o.all_s == pytest.approx(0.030)
    assert o.back_s == pytest.approx(2.0)


def test_a_strike_that_nobody_noticed() -> None:
    o = outcome(Strike(3, 10.0, 1000.0), BATCHES, [], NEEDED)
    assert (o.signal, o.detected_s, o.back_s) == ("none", None, None)
    assert o.recovered_s == pytest.approx(0.020)


def test_a_unit_is_redone_when_another_module_combines_it() -> None:
    record = record_of(
        [
            (DISPATCH, 3, 1, 2, 8, 999.0),
            (COMBINE, 3, 1, 2, -1, 999.5),  # finished before the strike
            (DISPATCH, 3, 2, 1, 8, 999.9),  # begun
            (COMBINE, 4, 2, 0, -1, 1000.01),  # another slice of that batch
            (COMBINE, 4, 2, 1, -1, 1000.05),
            (COMBINE, 5, 2, 1, -1, 1000.04),
            (COMBINE, 3, 2, 1, -1, 1000.02),  # the module itself, when it was back
        ]
    )
    assert unit_s(record, TOLD) == pytest.approx(0.04)
    assert unit_s(record[:2], TOLD) is None


def test_a_unit_needed_the_module_when_its_home_asked_again_in_the_epoch_of_the_death() -> None:
    rows = [
        (DISPATCH, 4, 1, 0, 8, 999.9),  # asked
        (DISPATCH, 4, 1, 1, 8, 999.9),  # asked, and answered in time: not again
        (DISPATCH, 4, 1, 0, 9, 1000.007),  # asked again
        (DISPATCH, 5, 2, 0, 9, 1000.008),  # begun when the death was known
        (COMBINE, 4, 1, 1, -1, 1000.001),
        (COMBINE, 5, 2, 0, -1, 1000.010),
        (COMBINE, 4, 1, 0, -1, 1000.03),
    ]
    assert unit_s(record_of(rows), TOLD) == pytest.approx(0.03)
    assert unit_s(record_of(rows), None) is None
    later = [row for row in rows if row[4] != 9]
    assert unit_s(record_of([*later, (DISPATCH, 4, 1, 0, 10, 1000.02)]), TOLD) is None


def test_false_alarms_are_those_without_a_strike() -> None:
    found = false_alarms([STRIKE], [*SIGNALS, Signal(12.5, "suspected", 3, "silent to 1")])
    assert found == {"suspected (heartbeat)": 2, "suspected (silent)": 1}


def test_undisturbed_batches_lie_outside_of_strikes() -> None:
    load = cast(Faultload, SimpleNamespace(done=[STRIKE], batches=[*BATCHES, batch(7, 12.5, 12.75)]))
    assert undisturbed(load) == pytest.approx([0.99, 0.25])


def test_tokens_are_accounted_for() -> None:
    data = tokens([batch(0, 0, 1), batch(1, 0, 1, lost=2, exact=False), batch(2, 0, 1, doubled=1)], 4, 64)
    assert (data["tokens_in"], data["tokens_lost"], data["tokens_doubled"]) == (256, 66, 1)
    assert (data["batches_not_exact"], data["exact"]) == (1, False)
    assert not clean(data)
    assert clean(tokens([batch(0, 0, 1)], 1, 64))
    assert not clean(tokens([batch(0, 0, 1, doubled=1)], 1, 64))


def test_the_watchdog_ends_a_wait() -> None:
    with pytest.raises(TimeoutError, match="stuck"), Watchdog(0.1):
        time.sleep(10)


def test_the_watchdog_lets_progress_be() -> None:
    with Watchdog(5.0) as watchdog:
        watchdog.progress()
    with pytest.raises(KeyboardInterrupt), Watchdog(5.0):
        raise KeyboardInterrupt
