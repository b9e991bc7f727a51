"""The benchmark's own planner, bounds and search, on cases that can be seen through."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import planner
from benchmarks.planner import Case, balance, best_pairs, greedy, lower_bound

SMALL = Case(2, 8, 12, 4, 2, 4, 0.8, 0.05)


def test_greedy_by_hand() -> None:
    """The spare copy goes to the 5; then 4 and 3, 3 to the 3, 2.5 to the 4, 2.5 to the 6, 1 where room is."""
    plan = greedy(np.array([[5.0, 4, 3, 3, 1]]), Case(1, 5, 6, 1, 1, 2, 0.8, None))
    assert plan.tolist() == [[1, 0, 4, 2, 3, 0]]
    assert balance(np.array([[5.0, 4, 3, 3, 1]]), plan, 2) == pytest.approx(8.5 / 8)


def test_the_published_inner_loop_makes_the_same_plan() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    weight = planner.loads(SMALL, 0)
    assert np.array_equal(greedy(weight, SMALL), greedy(weight, SMALL, as_published=True))


def test_the_bound_by_hand() -> None:
    """Groups 90, 60, 40, 10 on two nodes of two devices: 90 + 10 and 60 + 40, 50 a device, the mean."""
    weight = np.array([[90.0, 0, 60, 0, 40, 0, 10, 0]])
    assert lower_bound(weight, SMALL) == pytest.approx(1.0)
    case = Case(1, 2, 3, 1, 1, 3, 1.0, None)
    assert lower_bound(np.array([[9.0, 6.0]]), case) == pytest.approx(6 / 5)  # 9 in two copies, 6 in one


def test_a_plan_that_can_be_beaten_is_beaten() -> None:
    """4 + 1/2 and 3 + 1/2 is best; two copies of the 4 leave 2 + 3 on one device."""
    case = Case(1, 3, 4, 1, 1, 2, 1.0, None)
    weight = np.array([[4.0, 3.0, 1.0]])
    for plan in ([[0, 1, 2, 0]], [[0, 2, 1, 2]]):
        assert best_pairs(weight, case, np.array(plan)) == pytest.approx(4.5 / 4)


def test_it_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "CASES", (SMALL, Case(2, 4, 8, 1, 1, 4, 0.8, None)))
    code = planner.main(["--seeds", "1", "--rounds", "1", "--out", str(tmp_path / "planner.json")])
    data = json.loads((tmp_path / "planner.json").read_text(encoding="utf-8"))
    assert code in (0, 1) and data["benchmark"] == "planner"
    for case in data["cases"]:
        mean = case["mean"]
        assert 1 - 1e-9 <= mean["bound"] <= mean["ours"] * (1 + 1e-9)
    assert data["drift"]["mean"]["near"] <= 1.01 * data["drift"]["mean"]["fresh"] * (1 + 1e-9)
