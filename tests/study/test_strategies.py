"""Strategies side by side, on a trace whose pairs are known."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from rayemu.placement import Affinity, Domains, Linear, Thresholds, from_columns, problem_of
from rayemu.study.strategies import Line, compare, learned, table
from rayemu.traces.trace import Trace, from_choices

# Experts 0 and 2 are chosen together, and 1 and 3; in the second layer 0 and 1, and 2 and 3
CHOICES = np.array([[[0, 2], [0, 1]], [[1, 3], [2, 3]]] * 8)


def known() -> Trace:
    return from_choices(CHOICES, np.array([0, 4, 16]), 4)


class Given:
    """A strategy that has one plan."""

    def __init__(self, modules: list[int]) -> None:
        self.plan = from_columns(np.repeat([0, 1], 4), np.tile(np.arange(4), 2), np.array(modules))

    def place(self, problem: object) -> object:
        return self.plan


def lines(slots: int = 4, **strategies: object) -> dict[str, Line]:
    problem = dataclasses.replace(problem_of(np.ones((2, 4), int), 2, 2, slots=slots), expert_bytes=100)
    found = compare(learned(problem, known()), strategies, choices=CHOICES)  # type: ignore[arg-type]
    return {line.name: line for line in found}


def test_what_a_trace_tells() -> None:
    problem = learned(problem_of(np.ones((2, 4), int), 2), known())
    assert problem.loads.tolist() == [[8, 8, 8, 8]] * 2
    assert problem.coactivation is not None and problem.coactivation[0, 0].tolist() == [0, 0, 8, 0]
    assert problem.transitions is not None and problem.transitions[0, 0].tolist() == [8, 8, 0, 0]
    assert problem.variances is not None and not problem.variances.any()


def test_traffic_is_relative_to_linear() -> None:
    """Linear parts every pair of the first layer and none of the second, half of the steps."""
    found = lines(
        linear=Linear(), better=Given([0, 1, 0, 1, 0, 0, 1, 1]), worse=Given([0, 0, 1, 1, 0, 1, 0, 1])
    )
    assert found["linear"].pairs == found["linear"].messages == found["linear"].steps == (1, 1)
    assert found["better"].pairs == (0, 0) and found["better"].steps == (0, 0)
    # Messages of the two layers with homes alike: linear 1 and 1/2; better 1/2 and 1/2; worse 1 and 1
    assert found["better"].messages == pytest.approx((2 / 3, 2 / 3))
    assert found["worse"].messages == pytest.approx((4 / 3, 4 / 3))
    assert found["worse"].pairs == (2, 2)


def test_a_line_has_all_that_a_plan_costs() -> None:
    found = lines(slots=8, affinity=Affinity(), domains=Domains(), all_on_one=Given([0] * 8))
    assert found["affinity"].pairs == (0, 0) and found["affinity"].steps == (0, 0)
    assert found["domains"].copies == 2 and found["domains"].survives == (1, 1)
    assert found["domains"].memory_bytes == 800 and found["domains"].hops == 0
    assert found["domains"].hit_rate == 0.5 and found["domains"].imbalance == 1
    assert found["all_on_one"].imbalance == 2 and found["all_on_one"].deviation == 1


def test_a_strategy_that_refuses_says_why() -> None:
    found = lines(domains=Domains(), thresholds=Thresholds())
    assert found["domains"].refused.startswith("failures: 1 takes 2 copies")
    assert not found["thresholds"].refused
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(list(found.values()), "a title"))
    text = console.export_text()
    assert "a title" in text and "domains: failures: 1 takes 2 copies" in text and "thresholds" in text
