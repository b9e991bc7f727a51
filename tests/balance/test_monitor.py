"""Moving averages against loops, capacity by hand and by its promises, and when triggers fire."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rayemu.balance.monitor import adjusted_capacity, exponential_average, in_windows, usage, window_average
from rayemu.balance.triggers import TRIGGERS, Every, History, Imbalance, Predicted, Trend

PLAN = np.array([[0, 1]])  # two experts, one on each of two devices


def history(*busiest: float, since: int = 1000) -> History:
    """Batches of 100 rows in which expert 0 gets this share."""
    loads = np.array([[[100 * share, 100 * (1 - share)]] for share in busiest])
    return History(loads, PLAN, 2, since)


def test_averages_are_those_of_loops() -> None:
    loads = np.random.default_rng(1).random((7, 2, 3))
    assert np.allclose(window_average(loads, 3), sum(loads[4:]) / 3)
    assert np.allclose(window_average(loads, 50), sum(loads) / 7)
    weights = [0.5 ** ((6 - b) / 2) for b in range(7)]
    expected = sum(w * b for w, b in zip(weights, loads, strict=True)) / sum(weights)
    assert np.allclose(exponential_average(loads, 2), expected)
    assert np.allclose(exponential_average(loads[:1], 2), loads[0])


def test_windows_end_now() -> None:
    loads = np.arange(7.0).reshape(7, 1, 1)
    assert in_windows(loads, 3).ravel().tolist() == [1 + 2 + 3, 4 + 5 + 6]
    assert in_windows(loads, 8).shape == (0, 1, 1)


def test_usage_is_relative_to_the_layer_s_mean() -> None:
    under, over = usage(np.array([[1.0, 4.0, 7.0], [0.0, 0.0, 0.0]]))
    assert under.tolist() == [[True, False, False], [False] * 3]
    assert over.tolist() == [[False, False, True], [False] * 3]


def test_capacity_goes_from_idle_to_busy_experts_by_hand() -> None:
    """Expert 0 spares 10 - 5, expert 1 spares 10 - 7; expert 3 wants 22, expert 4 wants 11."""
    capacity = np.full((1, 5), 10)
    loads = np.array([[2.0, 7.0, 17.0, 32.0, 27.0]])
    assert adjusted_capacity(capacity, loads).tolist() == [[5, 7, 10, 10 + 5, 10 + 3]]


@given(
    arrays(np.int64, (2, 6), elements=st.integers(0, 40)),
    arrays(np.float64, (2, 6), elements=st.integers(0, 90).map(float)),
)
def test_capacity_is_kept_in_total_and_no_one_loses_what_it_uses(
    capacity: np.ndarray, loads: np.ndarray
) -> None:
    after = adjusted_capacity(capacity, loads)
    assert after.sum(axis=1).tolist() == capacity.sum(axis=1).tolist()
    assert (after >= np.minimum(capacity, np.maximum(loads, capacity / 2))).all()
    assert (after <= np.maximum(capacity, loads)).all()
    assert ((after != capacity).sum(axis=1) != 1).all()


def test_every() -> None:
    assert [bool(Every(3).fires(history(0.5, since=n))) for n in range(5)] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_imbalance_compares_averaged_loads() -> None:
    trigger = Imbalance(over=1.2, window=2)
    assert trigger.fires(history(0.5, 0.7, 0.7)) == "max/mean over 2 batches is 1.400, above 1.2"
    assert trigger.fires(history(0.7, 0.6, 0.6)) is None, "1.2 is not above 1.2"
    assert trigger.fires(history(0.9, 0.1)) is None, "what alternates cancels: no plan could mend it"
    assert trigger.fires(history(0.9)) is None
    assert trigger.fires(history(0.9, 0.9, since=1)) is None


def test_trend_counts_rises() -> None:
    up_seven = [0.60, 0.61, 0.62, 0.63, 0.60, 0.61, 0.62, 0.61, 0.62, 0.60, 0.65]
    reason = Trend().fires(history(*up_seven))
    assert reason == "max/mean was worse in 7 of the last 10 batches, now 1.300"
    assert Trend(worse=8).fires(history(*up_seven)) is None
    assert Trend().fires(history(*up_seven[1:])) is None, "ten differences need eleven batches"
    assert Trend().fires(history(*up_seven, since=9)) is None
    assert Trend(least=1.24).fires(history(*up_seven)) is None
    assert Trend().fires(history(*[0.6] * 11)) is None, "equal is not worse"


def test_trend_s_chance_of_a_false_alarm_is_as_stated() -> None:
    """Rises of 11 independent values: Eulerian numbers, by their recurrence."""
    eulerian = [1]
    for n in range(2, 12):
        eulerian = [
            (k + 1) * (eulerian[k] if k < len(eulerian) else 0) + (n - k) * (eulerian[k - 1] if k else 0)
            for k in range(n)
        ]
    chance = sum(eulerian[7:]) / math.factorial(11)
    assert chance == pytest.approx(0.059, abs=0.0005)
    shares = 0.6 + 0.1 * np.random.default_rng(0).random((2000, 11))
    fired = sum(Trend().fires(history(*row)) is not None for row in shares)
    assert fired / 2000 == pytest.approx(chance, abs=0.015)


def test_predicted_sees_what_is_to_come() -> None:
    """Loads alternate every window: after a level window comes an uneven one."""
    level, uneven = [0.5] * 2, [0.8] * 2
    coming = history(*(uneven + level) * 4)
    assert Imbalance(window=2).fires(coming) is None
    trigger = Predicted("pattern_similarity", over=1.2, window=2)
    assert trigger.fires(coming) == "pattern_similarity expects max/mean 1.600, above 1.2"
    assert trigger.fires(history(*(level + uneven) * 4)) is None
    assert Predicted("last_window", window=2, windows=9).fires(coming) is None
    steady = [history(*[0.8] * 9, since=since) for since in range(5)]
    asked = [Predicted("last_window", window=2).fires(each) is not None for each in steady]
    assert asked == [False, False, True, False, True], "whenever a window is over"


@pytest.mark.parametrize("name", TRIGGERS)
def test_triggers_have_a_purpose_and_defaults_and_keep_quiet_at_the_start(name: str) -> None:
    trigger = TRIGGERS[name]()
    assert trigger.__doc__ and trigger == TRIGGERS[name]()
    assert trigger.fires(history(0.9, since=1)) is None
    with pytest.raises(AttributeError):
        trigger.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "wrong", "said"),
    [
        ("every", {"batches": 0}, "batches: 0 is not allowed; allowed: 1 and above"),
        ("imbalance", {"over": 0.9}, "over: 0.9 is not allowed"),
        ("imbalance", {"over": math.nan}, "over: nan is not allowed"),
        ("imbalance", {"window": 0}, "window: 0 is not allowed"),
        ("trend", {"worse": 11}, "worse: 11 is not allowed; allowed: 1 to `of`, 10"),
        ("trend", {"of": 0}, "of: 0 is not allowed"),
        ("trend", {"least": 0.5}, "least: 0.5 is not allowed"),
        ("predicted", {"predictor": "oracle"}, "predictor: 'oracle' is not allowed; allowed: last_window, "),
        ("predicted", {"windows": 0}, "windows: 0 is not allowed"),
        ("predicted", {"over": 0}, "over: 0 is not allowed"),
    ],
)
def test_wrong_parameters_are_named(kind: str, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        TRIGGERS[kind](**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("every", {"batches": 1}),
        ("imbalance", {"over": 1.0, "window": 1}),
        ("trend", {"worse": 1, "of": 1}),
        ("trend", {"worse": 10, "of": 10, "least": 1.0}),
        ("predicted", {"windows": 1, "over": 1.0}),
    ],
)
def test_the_least_that_is_allowed_is_allowed(kind: str, least: dict[str, float]) -> None:
    assert {name: getattr(TRIGGERS[kind](**least), name) for name in least} == least


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: window_average(np.ones((2, 1, 1)), 0), "window: 0"),
        (lambda: exponential_average(np.ones((2, 1, 1)), 0), "half_life: 0"),
        (lambda: in_windows(np.ones((2, 1, 1)), 0), "batches: 0"),
        (lambda: usage(np.ones((1, 2)), 2.0, 1.5), "under: 2.0"),
    ],
)
def test_wrong_arguments_are_named(call: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said} is not allowed"):
        call()  # type: ignore[operator]
