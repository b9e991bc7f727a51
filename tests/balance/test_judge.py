"""The judge on loads whose future is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from rayemu.balance.judge import Cost, Demand, at_least_by_chance, judge
from rayemu.balance.loads import Plan
from rayemu.balance.predictors import PatternSimilarity

PRESENT = np.array([[0, 1, 2, 3]])  # two devices, two slots each
ONE_NODE = np.zeros(2, int)
COST = Cost(expert_bytes=600, bytes_per_s=100.0, seconds_per_row=0.5, steps=2)
SKEWED = [8.0, 6.0, 2.0, 4.0]  # 14 and 6; best is 10 and 10: 8 + 2 and 6 + 4
OTHER = [2.0, 4.0, 8.0, 6.0]


def greedy(loads: np.ndarray) -> Plan:
    """The heaviest first to the emptiest of two devices with two slots each."""
    rows = []
    for load in loads:
        held: list[list[int]] = [[], []]
        for expert in np.argsort(-load, kind="stable"):
            open_ = [g for g in range(2) if len(held[g]) < 2]
            held[min(open_, key=lambda g: load[held[g]].sum())].append(int(expert))
        rows.append(held[0] + held[1])
    return np.array(rows)


def windows(*rows: list[float]) -> np.ndarray:
    return np.array(rows)[:, None, :]


def test_steady_loads_recommend_with_figures_by_hand() -> None:
    verdict = judge(windows(*[SKEWED] * 6), PRESENT, greedy, ONE_NODE, COST)
    assert verdict.decision == "recommend"
    assert (verdict.pairs, verdict.won, verdict.p_value) == (5, 5, 1 / 32)
    assert verdict.balance_before == 1.4
    assert verdict.balance_after == verdict.promised == 1.0
    assert verdict.gain == pytest.approx(4 / 14)
    assert verdict.saved_s == pytest.approx(4 * 0.5 / 2)
    assert verdict.moves == 2, "experts 1 and 2 change places, whatever the planner calls its devices"
    assert verdict.moved_bytes == 1200
    assert verdict.moving_s == 12
    assert verdict.break_even_steps == pytest.approx(12)
    assert verdict.reason == "in 5 of 5 windows a plan from the one before saved at least 20% of a step"
    held = {tuple(sorted(verdict.plan.expert[verdict.plan.module == g].tolist())) for g in range(2)}
    assert held == {(0, 2), (1, 3)}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_windows_are_too_little_evidence_however_good_they_look(count: int) -> None:
    verdict = judge(windows(*[SKEWED] * count), PRESENT, greedy, ONE_NODE, COST)
    assert verdict.decision == "too little evidence"
    assert verdict.reason.endswith("; at least 5 are needed")
    assert verdict.pairs == count - 1


HOT_01, HOT_02 = [9.0, 9.0, 1.0, 1.0], [9.0, 1.0, 9.0, 1.0]  # a plan from one joins the hot ones of the other


def test_a_plan_that_is_good_only_for_its_own_window_is_not_recommended() -> None:
    present = np.array([[0, 3, 1, 2]])
    verdict = judge(windows(*[HOT_01, HOT_02] * 4), present, greedy, ONE_NODE, COST)
    assert verdict.promised == 1.0
    assert verdict.balance_before == 1.0
    assert verdict.balance_after == pytest.approx(1.8)
    assert verdict.decision == "not now"
    assert verdict.won == 0
    assert verdict.gain == pytest.approx(-0.8)
    assert verdict.break_even_steps == math.inf


def test_what_is_not_balanced_enough_to_gain_is_not_now() -> None:
    verdict = judge(windows(*[[5.5, 5.0, 4.5, 5.0]] * 8), PRESENT, greedy, ONE_NODE, COST)
    assert verdict.decision == "not now"
    assert 0 < verdict.gain < 0.2
    assert judge(
        windows(*[[5.5, 5.0, 4.5, 5.0]] * 8), PRESENT, greedy, ONE_NODE, COST, Demand(0.04)
    ).decision == ("recommend")


def test_a_gain_that_is_just_met_is_met_and_none_at_all_is_not() -> None:
    """16 rows on one device against 8 is a gain of exactly one half; then plans that take as long."""
    loads = windows(*[[8.0, 8.0, 0.0, 0.0]] * 6)
    assert judge(loads, PRESENT, greedy, ONE_NODE, COST, Demand(0.5)).won == 5
    level = windows(*[[5.0, 5.0, 5.0, 5.0]] * 6)
    verdict = judge(level, PRESENT, greedy, ONE_NODE, COST, Demand(0))
    assert verdict.moves > 0
    assert verdict.won == 0
    assert judge(level, PRESENT, greedy, ONE_NODE, Cost(0, 1, 1), Demand(None, within=5)).won == 0


def test_three_losses_decide_as_little_as_three_wins() -> None:
    level = [5.0, 5.0, 5.0, 5.0]
    verdict = judge(windows(*[level] * 4), PRESENT, greedy, ONE_NODE, COST)
    assert (verdict.decision, verdict.won, verdict.p_value) == ("too little evidence", 0, 1 / 8)


def test_a_last_plan_that_is_the_present_one_is_not_now_however_many_were_won() -> None:
    verdict = judge(windows(*[SKEWED] * 9, [9.0, 1.0, 1.0, 9.0]), PRESENT, greedy, ONE_NODE, COST)
    assert (verdict.won, verdict.pairs, verdict.moves) == (8, 9, 0)
    assert verdict.decision == "not now"
    assert verdict.reason == "the plan from the last window holds what the present one holds"


def test_loads_that_disagree_are_too_little_evidence() -> None:
    level = [5.0, 5.0, 5.0, 5.0]
    verdict = judge(windows(*[SKEWED, SKEWED, level, level] * 4), PRESENT, greedy, ONE_NODE, COST)
    assert verdict.decision == "too little evidence"
    assert verdict.reason.endswith("which chance could do as well")


def test_moves_must_be_paid_in_time() -> None:
    """12 seconds to move, 1 second saved per step."""
    loads = windows(*[SKEWED] * 6)
    enough = judge(loads, PRESENT, greedy, ONE_NODE, COST, Demand(gain=None, within=12))
    assert enough.decision == "recommend"
    late = judge(loads, PRESENT, greedy, ONE_NODE, COST, Demand(gain=None, within=11.9))
    assert late.decision == "not now"
    assert late.reason == "in 0 of 5 windows a plan from the one before paid within 11.9 steps"
    both = judge(loads, PRESENT, greedy, ONE_NODE, COST, Demand(gain=0.3, within=100))
    assert both.decision == "not now", "all that is demanded must hold"


def test_the_present_plan_is_never_recommended() -> None:
    verdict = judge(windows(*[SKEWED] * 6), np.array([[1, 3, 2, 0]]), greedy, ONE_NODE, COST, Demand(0))
    assert verdict.decision == "not now"
    assert verdict.moves == 0
    assert verdict.break_even_steps == math.inf, "nothing is saved"


def test_a_forecast_lets_the_judge_plan_for_what_comes() -> None:
    """The present plan joins the first hot pair. Plans from the last window come too late, always."""
    loads = windows(*[HOT_01, HOT_02] * 12)
    stale = judge(loads, PRESENT, greedy, ONE_NODE, COST)
    forecast = PatternSimilarity(length=1).fit(loads[:4])
    ahead = judge(loads, PRESENT, greedy, ONE_NODE, COST, Demand(0.2), forecast)
    assert stale.balance_after == pytest.approx(1.8)
    assert stale.won == 0
    assert ahead.balance_after == pytest.approx((21 + 2 * 1.8) / 23), "the first two know no past"
    assert ahead.won == 10, "of the 11 windows in which the present plan is uneven"


def test_noise_alone_is_seldom_recommended() -> None:
    """Small windows of equal experts: plans fit the noise of their window and gain nothing on the next."""
    rng = np.random.default_rng(0)
    decisions = [
        judge(
            rng.multinomial(40, [0.25] * 4, size=(12, 1)).astype(float), PRESENT, greedy, ONE_NODE, COST
        ).decision
        for _ in range(40)
    ]
    assert decisions.count("recommend") == 0


@pytest.mark.parametrize(("won", "pairs"), [(5, 5), (7, 8), (0, 3), (6, 11)])
def test_chance_is_the_binomial_tail(won: int, pairs: int) -> None:
    expected = scipy.stats.binomtest(won, pairs, 0.5, alternative="greater").pvalue
    assert at_least_by_chance(won, pairs) == pytest.approx(expected)


def test_no_rows_are_nothing_to_gain() -> None:
    verdict = judge(np.zeros((6, 1, 4)), np.array([[0, 2, 1, 3]]), greedy, ONE_NODE, COST)
    assert verdict.decision == "not now"
    assert verdict.gain == 0


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Demand(gain=None), "gain: None is not allowed without `within`"),
        (lambda: Demand(gain=1.0), "gain: 1.0 is not allowed"),
        (lambda: Demand(within=0), "within: 0 is not allowed; allowed: above 0"),
        (lambda: Demand(confidence=1.0), "confidence: 1.0 is not allowed"),
        (lambda: Cost(-1, 1, 1), "expert_bytes: -1 is not allowed"),
        (lambda: Cost(1, 0, 1), "bytes_per_s: 0 is not allowed"),
        (lambda: Cost(1, 1, 1, 0), "steps: 0 is not allowed"),
        (lambda: judge(np.zeros((0, 1, 4)), PRESENT, greedy, ONE_NODE, COST), "loads: 0 windows"),
        (lambda: judge(np.zeros((1, 4)), PRESENT, greedy, ONE_NODE, COST), "loads: 2 dimensions"),
    ],
)
def test_what_cannot_be_is_named(build: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        build()  # type: ignore[operator]
