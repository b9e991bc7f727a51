"""rebalance_incrementally: few changes, nearly the balance of a fresh plan, and the same rules."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayemu.placement import rebalance_experts, rebalance_incrementally
from rayemu.placement.near import Option, choose, laid_onto
from tests.placement.test_eplb import device_loads, zipf


def mean_balance(weight: np.ndarray, plan: np.ndarray, devices: int) -> float:
    loads = device_loads(weight, plan, devices)
    mean = loads.mean(1)
    return float(np.mean(np.where(mean > 0, loads.max(1) / np.where(mean > 0, mean, 1), 1)))


def test_drifted_loads_need_few_changes() -> None:
    """The issue's case: 58 layers, loads drifted by lognormal(0, 0.2), within 1 % with 36 of 288 slots."""
    weight = zipf(58, 256, 0.8, seed=7)
    present = rebalance_experts(weight, 288, 8, 4, 32)[0]
    drifted = weight * np.random.default_rng(8).lognormal(0, 0.2, weight.shape)
    plan = rebalance_incrementally(drifted, present, 8, 4, 32, within=0.01)
    fresh = mean_balance(drifted, rebalance_experts(drifted, 288, 8, 4, 32)[0], 32)
    assert mean_balance(drifted, present, 32) > 1.08 * fresh
    assert mean_balance(drifted, plan, 32) <= 1.01 * fresh * (1 + 1e-9)
    assert (plan != present).sum(1).mean() <= 36


def test_a_plan_that_is_good_enough_stays() -> None:
    weight = zipf(3, 32, 0.8, seed=2)
    present = rebalance_experts(weight, 48, 4, 2, 8)[0]
    assert np.array_equal(rebalance_incrementally(weight, present, 4, 2, 8), present)
    slightly = weight * np.random.default_rng(0).uniform(0.999, 1.001, weight.shape)
    assert np.array_equal(rebalance_incrementally(slightly, present, 4, 2, 8), present)


def test_one_change_where_one_is_enough() -> None:
    """Two devices with 30 + 10 and 10 + 10: the second copy of expert 1 becomes one of expert 0."""
    plan = rebalance_incrementally(np.array([[30, 10, 10]]), np.array([[0, 1, 1, 2]]), 1, 1, 2)
    assert plan.tolist() == [[0, 1, 0, 2]]


def test_two_groups_change_nodes_where_that_is_needed() -> None:
    weight = np.array([[9, 9, 9, 9, 1, 1, 1, 1]])
    present = np.arange(8)[None]  # both heavy groups on one node
    plan = rebalance_incrementally(weight, present, 4, 2, 4)
    assert device_loads(weight, plan, 4).tolist() == [[10] * 4]
    assert (plan != present).sum() == 6, "of each node: two slots of the group that left, one to even out"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.01, 0.1]))
def test_every_plan_keeps_the_rules_and_the_promise(seed: int, within: float) -> None:
    rng = np.random.default_rng(seed)
    nodes, devices_per_node = (int(n) for n in rng.integers(1, 4, 2))
    groups, devices = nodes * int(rng.integers(1, 3)), nodes * devices_per_node
    experts = groups * int(rng.integers(1, 5))
    slots = devices * (-(-experts // devices) + int(rng.integers(0, 3)))
    weight = rng.choice([0, 1, 2, 5, 20], (2, experts)) * rng.uniform(0.5, 1.5, (2, experts))
    present = rebalance_experts(rng.random((2, experts)), slots, groups, nodes, devices)[0]
    plan = rebalance_incrementally(weight, present, groups, nodes, devices, within)
    fresh = rebalance_experts(weight, slots, groups, nodes, devices)[0]
    assert mean_balance(weight, plan, devices) <= (1 + within) * mean_balance(weight, fresh, devices) * (
        1 + 1e-9
    )
    node = np.arange(slots) * nodes // slots
    for row in plan:
        assert set(row.tolist()) == set(range(experts))
        assert len(set(zip((row * groups // experts).tolist(), node.tolist(), strict=True))) == groups
        for held in row.reshape(devices, -1):
            assert len(set(held.tolist())) == min(len(held), experts // nodes)


def test_a_present_plan_that_splits_groups_is_mended() -> None:
    weight = zipf(1, 8, 1.0, seed=4)
    plan = rebalance_incrementally(weight, np.array([[0, 2, 4, 6, 1, 3, 5, 7]]), 4, 2, 4)
    for half in plan.reshape(2, 4):
        assert len(set((half // 2).tolist())) == 2


def test_a_plan_laid_onto_another_changes_fewest_slots() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        present, plan = rng.integers(0, 6, (2, 8))
        laid = laid_onto(plan, present, 1, 4)
        assert sorted(map(tuple, np.sort(laid.reshape(4, 2)).tolist())) == sorted(
            map(tuple, np.sort(plan.reshape(4, 2)).tolist())
        )
        orders = [
            np.concatenate([np.array(d)[list(s)] for d, s in zip(devices, swaps, strict=True)])
            for devices in itertools.permutations(plan.reshape(4, 2).tolist())
            for swaps in itertools.product([(0, 1), (1, 0)], repeat=4)
        ]
        assert (laid != present).sum() == min((order != present).sum() for order in orders)


def test_options_are_chosen_where_a_change_gains_most() -> None:
    def layer(*points: tuple[int, float]) -> list[Option]:
        return [Option(changes, fullest, np.zeros(1)) for changes, fullest in points]

    options = [layer((0, 2.0), (10, 1.0)), layer((0, 1.5), (2, 1.1), (20, 1.0))]
    assert [o.changes for o in choose(options, 3.5)] == [0, 0]
    assert [o.changes for o in choose(options, 3.1)] == [0, 2]
    assert [o.changes for o in choose(options, 2.1)] == [10, 2]
    assert [o.changes for o in choose(options, 0.0)] == [10, 20]


@pytest.mark.parametrize(
    "changed, text",
    [
        (
            {"phy2log": np.zeros(4, int)},
            r"phy2log: int64 of shape \(4,\) is not allowed; allowed: whole numbers",
        ),
        ({"phy2log": np.zeros((1, 4))}, "phy2log: float64"),
        ({"phy2log": np.array([[0, 1, 2, 3]])}, "phy2log: expert 3 in layer 0, slot 3 .* allowed: 0 to 2"),
        ({"phy2log": np.array([[0, 1, 1, 0]])}, "phy2log: layer 0 has no slot for expert 2"),
        ({"within": -0.1}, "within: -0.1 is not allowed; allowed: finite numbers from 0"),
        ({"within": float("nan")}, "within: nan"),
        ({"num_gpus": 3}, "num_replicas: 4 is not allowed; allowed: multiples of num_gpus, 3"),
        ({"weight": np.array([[1, -1, 1]])}, "weight: -1.0"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changed: dict[str, Any], text: str) -> None:
    call = {"weight": np.ones((1, 3)), "phy2log": np.array([[0, 1, 2, 0]])}
    call |= {"num_groups": 1, "num_nodes": 1, "num_gpus": 2} | changed
    with pytest.raises(ValueError, match=f"^{text}"):
        rebalance_incrementally(**call)
