"""Stages that overlap: a record by hand, one drawn at random against a count of moments, and real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayemu import Emulator, Scenario
from rayemu.drivers.record import (
    COMBINE,
    DISPATCH,
    GEMM,
    ROUTE,
    ROUTE_REQUEST,
    VIRTUAL_RECORD,
    Recorder,
    in_order,
)
from rayemu.report.overlap import STAGES, Intervals, _merged, _with_others, overlap


def by_hand() -> np.ndarray:
    """Two units of two homes; times in seconds.

    ========  ======  ========  =========  ========
    unit      route   dispatch  compute    combine
    ========  ======  ========  =========  ========
    0         0 - 2   2 - 3     3 - 7      7 - 8
    1         4 - 9   9 - 10    10 - 12    12 - 15
    ========  ======  ========  =========  ========
    """
    recorder = Recorder()
    for home, (asked, known, arrived, computed, summed) in enumerate(
        [(0.0, 2.0, 3.0, 7.0, 8.0), (4.0, 9.0, 10.0, 12.0, 15.0)]
    ):
        at: dict[str, Any] = {"layer": 0, "micro": 0, "batch": 0, "slice": home, "home": home}
        other = 1 - home
        recorder.append(ROUTE_REQUEST, home, -1, 4, asked, asked, **at)
        recorder.append(ROUTE, -1, -1, 4, asked + 0.5, asked + 1.0, **at)
        recorder.append(DISPATCH, home, other, 4, known + 0.1, known + 0.2, queued_s=known, request=1, **at)
        middle = (arrived + computed) / 2
        for low, high in ((arrived, middle), (middle - 0.5, computed)):  # two experts at once, for a while
            recorder.append(GEMM, other, other, 2, low, high, queued_s=arrived, request=1, job=1, **at)
        recorder.append(COMBINE, home, home, 4, summed - 0.1, summed, **at)
    return in_order(recorder.rows().view(VIRTUAL_RECORD))


def test_a_record_by_hand() -> None:
    found = overlap(by_hand())
    assert found.seconds.tolist() == pytest.approx([2 + 5, 1 + 1, 4 + 2, 1 + 3])
    # Of unit 1's routing, unit 0 computes from 4 to 7; of unit 0's, nobody does anything.
    assert found.hidden == pytest.approx(3 / 7)
    wanted = np.zeros((4, 4))
    wanted[0] = [0, 0, 3 / 7, 1 / 7]
    wanted[2, 0], wanted[3, 0] = 3 / 6, 1 / 4
    np.testing.assert_allclose(found.shares, wanted, atol=1e-12)
    told = found.as_dict()
    assert told["stage_virtual_s"] == pytest.approx({"route": 7, "dispatch": 2, "compute": 6, "combine": 4})
    assert told["meanwhile"]["route"]["compute"] == pytest.approx(3 / 7)


def test_a_unit_s_own_work_hides_nothing() -> None:
    """The shared expert is computed while its unit waits for choices; that is the unit's own."""
    rows = by_hand()
    shared = Recorder()
    shared.append(GEMM, 0, 0, 4, 0.5, 1.5, layer=0, micro=0, batch=0, slice=0, home=0, job=9)
    own = in_order(np.concatenate([rows, shared.rows().view(VIRTUAL_RECORD)]))
    assert overlap(own).hidden == pytest.approx(3 / 7)
    other = Recorder()
    other.append(GEMM, 0, 0, 4, 0.5, 1.5, layer=0, micro=1, batch=0, slice=0, home=0, job=9)
    others = in_order(np.concatenate([rows, other.rows().view(VIRTUAL_RECORD)]))
    assert overlap(others).hidden == pytest.approx(4 / 7)


def test_without_routing_there_is_nothing_to_hide() -> None:
    nothing = overlap(np.zeros(0, VIRTUAL_RECORD))
    assert np.isnan(nothing.hidden) and nothing.as_dict()["meanwhile"]["route"]["compute"] is None


@pytest.mark.parametrize("seed", range(8))
def test_as_counted_moment_by_moment(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def some() -> tuple[Intervals, np.ndarray]:
        unit, low = rng.integers(0, 4, 12), rng.integers(0, 60, 12).astype(float)
        high = low + rng.integers(0, 15, 12)
        active = np.zeros((4, 80), bool)
        for u, a, b in zip(unit.tolist(), low.astype(int).tolist(), high.astype(int).tolist(), strict=True):
            active[u, a:b] = True
        return _merged(unit, low, high), active

    (one, in_one), (other, in_other) = some(), some()
    assert (one.high - one.low).sum() == in_one.sum(), "what overlaps of a unit counts once"
    wanted = sum((in_one[u] & in_other[[v for v in range(4) if v != u]].any(axis=0)).sum() for u in range(4))
    assert _with_others(one, other) == pytest.approx(float(wanted))


@pytest.mark.parametrize("place", ["coordinator", "distributed", "modules"])
def test_more_units_under_way_hide_more(place: str) -> None:
    hidden = {}
    for micro, in_flight in ((1, 1), (4, 4)):
        scenario = Scenario.from_dict(
            {
                "model": {"d_model": 32, "d_ff": 64, "experts": 8, "top_k": 2, "layers": 4},
                "cluster": {"nodes": 1, "modules_per_node": 2, "transport": "memory"},
                "routing": {"place": place},
                "exchange": {"min_slice_rows": 256, "micro_batches": micro},
            }
        )
        batches = np.random.default_rng(1).standard_normal((8, 64, 32), dtype=np.float32)
        with Emulator(scenario) as emulator:
            list(emulator.stream(list(batches), in_flight=in_flight))
            found = overlap(emulator.record())
        assert found.clock == "virtual" and len(found.seconds) == len(STAGES)
        assert ((found.shares >= -1e-9) & (found.shares <= 1 + 1e-9) | np.isnan(found.shares)).all()
        hidden[micro] = found.hidden
    if place == "modules":
        assert np.isnan([*hidden.values()]).all()  # in virtual time a home's own work takes none
    else:
        # One unit under way at a time has nobody to hide behind.
        assert hidden[1] == pytest.approx(0, abs=1e-9) and hidden[4] > 0.3
