"""Measures of balance against hand-made cases, brute force over pairs, and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rayemu.balance.loads import device_loads
from rayemu.balance.metrics import (
    balance_report,
    cv,
    gini,
    imbalance,
    max_over_mean,
    p99_load,
    sglang_balancedness,
    trtllm_load_statistics,
    vllm_balancedness,
    vllm_balancedness_across_layers,
)
from rayemu.placement import PLACEMENTS, from_columns, problem_of


def test_one_layer_by_hand() -> None:
    report = balance_report([[1.0, 3.0, 4.0, 8.0]])
    pairs = [abs(a - b) for a in (1, 3, 4, 8) for b in (1, 3, 4, 8)]
    assert report["max_over_mean"] == 2.0
    assert report["mean_over_max"] == report["utilisation"] == report["parallel_efficiency"] == 0.5
    assert report["max_over_min"] == 8.0
    assert report["cv"] == pytest.approx(math.sqrt((9 + 1 + 0 + 16) / 4) / 4)
    assert report["gini"] == pytest.approx(sum(pairs) / (2 * 16 * 4))
    assert report["trtllm_imbalance_ratio"] == 1.0
    assert report["trtllm_std"] == pytest.approx(math.sqrt((9 + 1 + 0 + 16) / 3))
    assert report["idle"] == 0.0
    assert report["mean_load"] == 4.0


def test_layers_are_averaged_and_not_summed_first() -> None:
    """Two layers that overload different devices are even when summed, and are not even."""
    report = balance_report([[4.0, 0.0], [0.0, 4.0]])
    assert report["max_over_mean"] == 2.0
    assert report["mean_over_max"] == report["vllm_balancedness"] == 0.5
    assert report["gini"] == 0.5
    assert report["cv"] == 1.0
    assert report["idle"] == 0.5
    assert report["max_over_min"] == math.inf


def test_efficiency_weights_layers_by_time_and_the_mean_does_not() -> None:
    """A layer of 300 rows that is even and one of 4 rows on one device."""
    report = balance_report([[150.0, 150.0], [4.0, 0.0]])
    assert report["mean_over_max"] == pytest.approx((1 + 0.5) / 2)
    assert report["parallel_efficiency"] == pytest.approx(304 / (2 * 154))
    assert report["vllm_balancedness"] == pytest.approx((150 + 2) / (150 + 4))


def test_a_step_is_what_vllm_averages_and_the_whole_time_what_efficiency_does() -> None:
    loads = np.array([[[100.0, 100.0]], [[2.0, 0.0]]])  # [W, L, G]
    assert vllm_balancedness(loads) == pytest.approx((1 + 0.5) / 2)
    assert balance_report(loads)["parallel_efficiency"] == pytest.approx(202 / (2 * 102))


def test_what_vllm_logged_in_between_calls_equal_layers_balanced() -> None:
    loads = [[4.0, 0.0], [4.0, 0.0]]
    assert vllm_balancedness(loads) == 0.5
    assert vllm_balancedness_across_layers(loads) == 1.0


def test_dense_layers_are_left_out_but_not_by_sglang() -> None:
    loads = [[0.0, 0.0], [3.0, 1.0]]
    report = balance_report(loads)
    assert report["mean_over_max"] == pytest.approx(2 / 3)
    assert report["max_over_mean"] == 1.5
    assert sglang_balancedness(loads) == pytest.approx((1 + 2 / 3) / 2, abs=1e-5)
    assert report["p99_load"] == pytest.approx(1 + 2 * 0.99)
    assert trtllm_load_statistics(loads)["mean"] == 2.0


def test_one_device_does_not_deviate() -> None:
    """A sample of one has no deviation (ddof 1 would divide by 0)."""
    found = trtllm_load_statistics([[5.0], [3.0]])
    assert found == {"mean": 4.0, "std": 0.0, "imbalance-ratio": 0.0}


def test_no_load_is_balanced() -> None:
    report = balance_report(np.zeros((3, 2, 4)))
    ones = ("max_over_mean", "mean_over_max", "max_over_min", "parallel_efficiency", "p99_over_mean")
    assert [report[name] for name in ones] == [1.0] * 5
    assert report["cv"] == report["gini"] == report["trtllm_imbalance_ratio"] == report["idle"] == 0.0
    assert report["sglang_balancedness"] == 1.0
    assert report["vllm_balancedness"] == 0.0, "vLLM's own convention"


@pytest.mark.parametrize("devices", [1, 2, 7])
def test_all_on_one_device_is_the_worst(devices: int) -> None:
    loads = np.zeros((1, devices))
    loads[0, -1] = 5.0
    report = balance_report(loads)
    assert report["max_over_mean"] == devices
    assert report["gini"] == pytest.approx((devices - 1) / devices)
    assert report["cv"] == pytest.approx(math.sqrt(devices - 1))


@given(arrays(np.float64, (2, 5), elements=st.integers(0, 50).map(float)))
def test_spread_against_scipy_and_all_pairs(loads: np.ndarray) -> None:
    for layer, row in enumerate(loads):
        if not row.any():
            continue
        assert cv(loads)[layer] == pytest.approx(scipy.stats.variation(row))
        pairs = np.abs(row[:, None] - row[None]).sum()
        assert gini(loads)[layer] == pytest.approx(pairs / (2 * 25 * row.mean()), abs=1e-12)


@given(
    arrays(np.float64, (3, 4), elements=st.integers(1, 50).map(float)),
    st.floats(0.5, 100),
    st.permutations(range(4)),
)
def test_ratios_know_no_unit_and_no_order_of_devices(
    loads: np.ndarray, factor: float, order: list[int]
) -> None:
    before, after = balance_report(loads), balance_report(loads[:, order] * factor)
    scaled = ("mean_load", "p99_load", "trtllm_std", "sglang_balancedness")
    for name in before.keys() - set(scaled) - {"vllm_balancedness_across_layers"}:
        assert after[name] == pytest.approx(before[name], abs=1e-9), name
    assert after["p99_load"] == pytest.approx(before["p99_load"] * factor)


def test_p99_pools_windows_and_devices() -> None:
    loads = np.arange(1.0, 101.0).reshape(25, 1, 4)
    assert p99_load(loads)[0] == pytest.approx(np.percentile(np.arange(1, 101), 99))
    assert balance_report(loads)["p99_over_mean"] == pytest.approx(99.01 / 50.5)


def test_p99_keeps_layers_apart() -> None:
    """Three windows of two layers on two devices; the second layer has ten times the load."""
    first = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    loads = np.stack([first, 10 * first], axis=1)  # [W, L, G]
    expected = np.percentile(first, 99)
    assert p99_load(loads).tolist() == pytest.approx([expected, 10 * expected])


def test_trtllm_averages_iterations_within_a_layer_first() -> None:
    """Layer 0 has load in one of two iterations; iterations and layers are not one pool."""
    loads = np.array([[[3.0, 1.0], [2.0, 2.0]], [[0.0, 0.0], [4.0, 0.0]]])
    theirs = trtllm_load_statistics(loads)
    assert theirs["imbalance-ratio"] == pytest.approx((0.5 + (0 + 1) / 2) / 2)
    assert theirs["mean"] == pytest.approx((2 + 2) / 2)


PHY2LOG = np.array([[0, 1, 0, 2], [2, 2, 1, 0]])


def test_rows_are_shared_evenly_over_copies() -> None:
    loads = [[6.0, 1.0, 2.0], [5.0, 3.0, 8.0]]
    expected = [[3 + 1, 3 + 2], [4 + 4, 3 + 5]]
    assert device_loads(loads, PHY2LOG, 2).tolist() == expected
    assert device_loads([loads, loads], PHY2LOG, 2).tolist() == [expected, expected]
    assert balance_report(loads, PHY2LOG, 2) == balance_report(expected)


def test_a_slot_table_says_the_same_as_phy2log_and_empty_slots_hold_nothing() -> None:
    layer, slot = np.indices(PHY2LOG.shape).reshape(2, -1)
    table = from_columns(layer, PHY2LOG.ravel(), slot // 2)
    loads = np.arange(6.0).reshape(2, 3)
    assert device_loads(loads, table, 2).tolist() == device_loads(loads, PHY2LOG, 2).tolist()
    spare = np.array([[0, -1, 1, 2]])
    assert device_loads([[1.0, 2.0, 3.0]], spare, 2).tolist() == [[1.0, 5.0]]


def test_a_placement_s_own_sum_of_one_window_is_the_same() -> None:
    problem = problem_of(np.array([[1, 3, 2, 1, 2], [0, 0, 0, 0, 0], [2, 2, 2, 2, 2]]), modules=4)
    placement = PLACEMENTS["random"]().place(problem)
    loads = np.random.default_rng(0).random((3, 5))
    loads[1] = 0
    assert np.allclose(device_loads(loads, placement, 4), placement.module_loads(loads, 4))


def test_imbalance_per_window() -> None:
    loads = np.array([[[6.0, 1.0, 2.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    assert imbalance(loads, PHY2LOG, 2).tolist() == [pytest.approx(5 / 4.5), 1.0]
    assert float(imbalance(loads[0], PHY2LOG, 2)) == pytest.approx(5 / 4.5)
    assert max_over_mean(np.array([3.0, 1.0])) == 1.5


@pytest.mark.parametrize(
    ("loads", "plan", "devices", "said"),
    [
        ([[1.0, 1.0]], np.array([[0, 0]]), 2, "layer 0, expert 1 has rows but no slot"),
        ([[1.0, 1.0]], np.array([[0, 1, 2, 0]]), 2, "expert 2 is not allowed; allowed: 0 to 1"),
        ([[1.0, 1.0]], np.array([[0, 1, 0]]), 2, "slots a multiple of the 2 devices"),
        ([[1.0, -1.0]], np.array([[0, 1]]), 2, "loads: negative"),
        ([[1.0, math.nan]], np.array([[0, 1]]), 2, "loads: negative or infinite"),
        ([1.0, 1.0], np.array([[0, 1]]), 2, "loads: 1 dimensions are not allowed; allowed: 2 or 3"),
        (
            [[1.0, 1.0]],
            from_columns(np.zeros(2, int), np.arange(2), np.array([0, 5])),
            2,
            "module 5 is not allowed",
        ),
        ([[1.0, 1.0]], np.array([[0, 1], [0, 1]]), 2, "layer 1 is not allowed"),
        ([[1.0, 1.0]], np.array([[0, 1]]), None, "devices: None is not allowed"),
    ],
)
def test_bad_input_is_named(loads: object, plan: object, devices: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        balance_report(loads, plan, devices)  # type: ignore[arg-type]


def test_an_expert_without_rows_needs_no_slot() -> None:
    assert device_loads([[1.0, 0.0]], np.array([[0, 0]]), 2).tolist() == [[0.5, 0.5]]
