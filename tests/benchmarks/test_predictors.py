"""The loads and plans that the benchmark of predictors draws."""

from __future__ import annotations

import numpy as np
import pytest

from rayemu.balance.metrics import imbalance
from rayemu.balance.scores import Score
from rayemu.benchmarks.predictors import EXPERTS, KINDS, LAYERS, ROWS, WINDOWS, draw, mean_of, planner


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_loads_are_rows_and_the_same_for_a_seed(kind: str) -> None:
    loads = draw(kind, 0, 20)
    assert loads.shape == (WINDOWS, LAYERS, EXPERTS)
    assert (loads.sum(axis=-1) == ROWS).all()
    assert np.array_equal(loads, draw(kind, 0, 20))
    assert not np.array_equal(loads, draw(kind, 1, 20))


def test_a_hot_switch_happens_among_the_held_out_windows() -> None:
    loads = draw("hot_switch", 0, 20)
    change = np.abs(np.diff(loads, axis=0)).sum(axis=(1, 2))
    assert int(change.argmax()) == WINDOWS - 10 - 1


def test_plans_hold_every_expert_once_and_balance() -> None:
    loads = draw("still", 0, 20)[0]
    plan = planner(8, loads)
    assert [sorted(row[row >= 0].tolist()) for row in plan] == [list(range(EXPERTS))] * LAYERS
    heaviest = (loads.max(axis=1) * 8 / ROWS).mean()
    assert float(imbalance(loads, plan, 8)) <= max(heaviest, 1.0) * 1.01


def test_runs_are_averaged_by_predictor_and_sorted() -> None:
    def scores(a: float, b: float) -> list[Score]:
        return [Score("a", 5, 1.0, 0.1, a, 1.1, 1.2, 1.0), Score("b", 5, 1.0, 0.1, b, 1.1, 1.2, 1.0)]

    rows = mean_of([scores(2.0, 1.0), list(reversed(scores(1.0, 0.5)))])
    assert [(row["predictor"], row["against_naive"]) for row in rows] == [("b", 0.75), ("a", 1.5)]
