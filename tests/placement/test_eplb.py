"""rebalance_experts: EPLB's interface and rules, near the bound, the same everywhere."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayemu.placement import rebalance_experts


def device_loads(weight: np.ndarray, phy2log: np.ndarray, devices: int) -> np.ndarray:
    """Load of every device [L, devices], each expert's load shared evenly by its copies."""
    loads = np.zeros((len(weight), devices))
    for layer, plan in enumerate(phy2log):
        copies = np.bincount(plan, minlength=weight.shape[1])
        for slot, expert in enumerate(plan):
            loads[layer, slot * devices // len(plan)] += weight[layer, expert] / copies[expert]
    return loads


def lightest_copies(loads: np.ndarray, slots: int) -> float:
    """Load of the heaviest copy when each further slot goes to the expert with the heaviest copies."""
    copies = np.ones(len(loads))
    for _ in range(slots - len(loads)):
        copies[np.argmax(loads / copies)] += 1
    return float((loads / copies).max())


def partitions(groups: tuple[int, ...], size: int) -> list[list[tuple[int, ...]]]:
    if not groups:
        return [[]]
    found = []
    for rest in itertools.combinations(groups[1:], size - 1):
        part = (groups[0], *rest)
        others = tuple(g for g in groups if g not in part)
        found += [[part, *tail] for tail in partitions(others, size)]
    return found


def lower_bound(loads: np.ndarray, slots: int, groups: int, nodes: int, devices: int) -> float:
    """No plan's fullest device holds less: over partitions, nodes, load per device and lightest copies."""
    if groups % nodes:
        groups = nodes = 1
    by_group = loads.reshape(groups, -1)

    @cache
    def of_node(part: tuple[int, ...]) -> float:
        inside = by_group[list(part)].ravel()
        return max(inside.sum() * nodes / devices, lightest_copies(inside, slots // nodes))

    return min(
        max(of_node(part) for part in cut) for cut in partitions(tuple(range(groups)), groups // nodes)
    )


def zipf(layers: int, experts: int, slope: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    share = np.arange(1, experts + 1) ** -slope
    return np.stack([rng.permutation(share) for _ in range(layers)]) * rng.lognormal(
        0, 0.3, (layers, experts)
    )


@st.composite
def calls(draw: st.DrawFn) -> tuple[np.ndarray, int, int, int, int]:
    nodes = draw(st.integers(1, 4))
    groups = nodes * draw(st.integers(1, 3)) if draw(st.booleans()) else draw(st.integers(1, 6))
    experts = groups * draw(st.integers(1, 6))
    devices = nodes * draw(st.integers(1, 4))
    slots = devices * (-(-experts // devices) + draw(st.integers(0, 3)))
    layers = draw(st.integers(1, 3))
    scale = draw(st.sampled_from([1, 1e-320, 1e300]))
    loads = draw(
        st.lists(
            st.lists(st.sampled_from([0, 1, 2, 3, 7, 50, 0.1]), min_size=experts, max_size=experts),
            min_size=layers,
            max_size=layers,
        )
    )
    return np.array(loads) * scale, slots, groups, nodes, devices


@settings(max_examples=150, deadline=None)
@given(calls())
def test_every_plan_keeps_the_rules(call: tuple[np.ndarray, int, int, int, int]) -> None:
    weight, slots, groups, nodes, devices = call
    phy2log, log2phy, logcnt = rebalance_experts(*call)
    layers, experts = weight.shape
    assert phy2log.shape == (layers, slots) and logcnt.shape == (layers, experts)
    assert log2phy.shape == (layers, experts, logcnt.max())
    assert phy2log.dtype == log2phy.dtype == logcnt.dtype == np.int64
    for layer in range(layers):
        for expert in range(experts):
            own = np.flatnonzero(phy2log[layer] == expert)
            assert len(own) == logcnt[layer, expert] >= 1
            assert log2phy[layer, expert].tolist() == [*own.tolist(), *[-1] * (logcnt.max() - len(own))]
        if groups % nodes == 0:
            node = np.arange(slots) * nodes // slots
            homes = {(int(e) * groups // experts, int(n)) for e, n in zip(phy2log[layer], node, strict=True)}
            assert len(homes) == groups, "a group is on two nodes"
            here = experts // nodes
        else:
            here = experts
        for held in phy2log[layer].reshape(devices, -1):
            assert len(set(held.tolist())) == min(len(held), here), "two copies where one would do"
        loads = weight[layer] / (weight[layer].max() or 1.0)
        fullest = device_loads(loads[None], phy2log[layer][None], devices).max()
        assert fullest >= lower_bound(loads, slots, groups, nodes, devices) * (1 - 1e-9)
        alone = rebalance_experts(weight[layer : layer + 1], slots, groups, nodes, devices)[0]
        assert np.array_equal(alone[0], phy2log[layer]), "a layer's plan depends on its company"


def test_one_expert_has_all_the_load() -> None:
    weight = np.array([[0, 0, 0, 1000]])
    phy2log, _, logcnt = rebalance_experts(weight, 8, 1, 1, 4)
    assert logcnt.tolist() == [[2, 1, 1, 4]], "of equals the first gets the spare slot"
    assert device_loads(weight, phy2log, 4).tolist() == [[250] * 4]


def test_a_plan_by_hand() -> None:
    """Two nodes of two devices: groups 90 + 10 and 60 + 40 would do; 90 needs both devices of its node."""
    weight = np.array([[90, 0, 60, 0, 40, 0, 10, 0]])
    phy2log, log2phy, logcnt = rebalance_experts(weight, 12, 4, 2, 4)
    assert device_loads(weight, phy2log, 4).tolist() == [[50] * 4]
    assert {frozenset(phy2log[0, :6].tolist()), frozenset(phy2log[0, 6:].tolist())} == {
        frozenset({0, 1, 6, 7}),
        frozenset({2, 3, 4, 5}),
    }
    assert logcnt[0, 0] == 2 and log2phy.shape == (1, 8, 2)


@pytest.mark.parametrize(
    "experts, devices, per_device",
    [(4, 4, 2), (3, 3, 2), (5, 4, 2), (6, 4, 2), (2, 6, 1), (4, 3, 3), (5, 3, 3), (6, 3, 4)],
)
def test_small_plans_against_all_plans(experts: int, devices: int, per_device: int) -> None:
    def best(loads: np.ndarray) -> float:
        found = math.inf
        held = list(itertools.combinations(range(experts), per_device))
        for plan in itertools.combinations_with_replacement(held, devices):
            copies = np.bincount(np.ravel(plan), minlength=experts)
            if copies.min() > 0:
                found = min(found, max(sum(loads[e] / copies[e] for e in on) for on in plan))
        return found

    for seed in range(9):
        weight = zipf(1, experts, (0.3, 1.0, 2.0)[seed % 3], seed)
        plan = rebalance_experts(weight, devices * per_device, 1, 1, devices)[0]
        fullest = device_loads(weight, plan, devices).max()
        assert (
            best(weight[0]) * (1 - 1e-9)
            <= fullest
            <= best(weight[0]) * (1 + (0.0051 if per_device > 2 else 1e-9))
        )


@pytest.mark.parametrize(
    "layers, experts, slots, groups, nodes, devices, slope, excess",
    [
        (58, 256, 288, 8, 4, 32, 0.8, 0.003),
        (58, 256, 288, 8, 4, 32, 1.2, 0.005),
        (58, 256, 320, 8, 8, 64, 0.8, 0.005),
        (58, 256, 288, 1, 1, 32, 0.8, 0.001),
        (26, 64, 80, 1, 1, 16, 0.8, 0.002),
        (61, 384, 512, 1, 1, 128, 1.0, 0.003),
    ],
)
def test_plans_are_near_the_lower_bound(
    layers: int, experts: int, slots: int, groups: int, nodes: int, devices: int, slope: float, excess: float
) -> None:
    weight = zipf(layers, experts, slope, seed=11)
    weight /= weight.mean(1, keepdims=True) * experts / devices  # a device has 1 on average
    phy2log = rebalance_experts(weight, slots, groups, nodes, devices)[0]
    bounds = [lower_bound(row, slots, groups, nodes, devices) for row in weight]
    fullest = device_loads(weight, phy2log, devices).max(1)
    assert np.mean(fullest) <= np.mean(bounds) * (1 + excess)


def test_many_groups_are_packed_without_trying_every_partition() -> None:
    weight = zipf(4, 128, 0.5, seed=3)
    phy2log = rebalance_experts(weight, 160, 64, 8, 32)[0]
    node = np.arange(160) * 8 // 160
    for plan in phy2log:
        assert len(set(zip((plan // 2).tolist(), node.tolist(), strict=True))) == 64
    assert (device_loads(weight, phy2log, 32).max(1) <= 1.03 * weight.sum(1) / 32).all()


def test_equal_loads_and_no_loads() -> None:
    for weight in (np.zeros((2, 12)), np.ones((2, 12))):
        phy2log, _, logcnt = rebalance_experts(weight, 16, 4, 2, 4)
        assert (logcnt == 2).sum() == 8 and (logcnt == 1).sum() == 16
        assert np.array_equal(phy2log[0], phy2log[1])


def test_one_device_holds_everything() -> None:
    phy2log, _, logcnt = rebalance_experts(np.array([[3, 1, 2]]), 5, 1, 1, 1)
    assert phy2log.tolist() == [[0, 0, 1, 1, 2]] and logcnt.tolist() == [[2, 2, 1]]


def test_no_layers() -> None:
    for experts, groups in ((4, 2), (12, 4), (12, 12)):
        shapes = [a.shape for a in rebalance_experts(np.zeros((0, experts)), 16, groups, 2, 4)]
        assert shapes == [(0, 16), (0, experts, 1), (0, experts)]


def test_the_scale_of_the_load_does_not_matter() -> None:
    weight = zipf(3, 32, 1.0, seed=5)
    plan = rebalance_experts(weight, 48, 4, 2, 8)[0]
    assert np.array_equal(plan, rebalance_experts(weight * 2.0**40, 48, 4, 2, 8)[0])
    assert np.array_equal(plan, rebalance_experts(weight.tolist(), 48, 4, 2, 8)[0])


def test_torch_in_torch_out() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    weight = zipf(2, 16, 1.0, seed=1).astype(np.float32)
    plain = rebalance_experts(weight, 24, 4, 2, 4)
    for tensor in (torch.from_numpy(weight), torch.from_numpy(weight).requires_grad_()):
        found = rebalance_experts(tensor, 24, 4, 2, 4)
        for array, ours in zip(plain, found, strict=True):
            assert isinstance(ours, torch.Tensor) and ours.dtype == torch.int64
            assert np.array_equal(array, ours.numpy())
    assert np.array_equal(rebalance_experts(tensor.to_sparse(), 24, 4, 2, 4)[0].cpu().to_dense(), plain[0])
    for wrong in (tensor.to(torch.complex64), tensor.to("meta")):
        with pytest.raises(ValueError, match=r"^weight: .* allowed: real numbers"):
            rebalance_experts(wrong, 24, 4, 2, 4)
    half = torch.from_numpy(weight).to(torch.bfloat16)
    assert np.array_equal(
        rebalance_experts(half, 24, 4, 2, 4)[0].numpy(),
        rebalance_experts(half.double().numpy(), 24, 4, 2, 4)[0],
    )


OK = np.ones((2, 8))
NAN, NEGATIVE, ENDLESS = OK.copy(), OK.copy(), OK.copy()
NAN[1, 3], NEGATIVE[0, 7], ENDLESS[1, 0] = np.nan, -2.5, np.inf


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((np.ones(8), 8, 1, 1, 1), r"weight: shape \(8,\) is not allowed; allowed: \[layers, experts\]"),
        ((np.ones((2, 0)), 8, 1, 1, 1), r"weight: shape \(2, 0\)"),
        ((OK + 1j, 8, 1, 1, 1), "weight: dtype complex128 is not allowed; allowed: real"),
        (([["a"]], 8, 1, 1, 1), "weight: dtype <U1"),
        (([[1, 2], [3]], 2, 1, 1, 1), "weight: rows of unequal lengths"),
        (
            (NAN, 8, 1, 1, 1),
            "weight: nan of layer 1, expert 3 is not allowed; allowed: finite numbers from 0",
        ),
        ((NEGATIVE, 8, 1, 1, 1), r"weight: -2.5 of layer 0, expert 7"),
        ((ENDLESS, 8, 1, 1, 1), "weight: inf of layer 1, expert 0"),
        ((OK, 0, 1, 1, 1), "num_replicas: 0 is not allowed; allowed: whole numbers from 1"),
        ((OK, 8, 1.0, 1, 1), "num_groups: 1.0"),
        ((OK, 8, 1, True, 1), "num_nodes: True"),
        ((OK, 8, 1, 1, "4"), "num_gpus: '4'"),
        ((OK, 8, 3, 1, 1), "num_groups: 3 is not allowed; allowed: divisors of the 8 experts"),
        ((OK, 12, 2, 2, 3), "num_gpus: 3 is not allowed; allowed: multiples of num_nodes, 2"),
        ((OK, 6, 1, 1, 2), "num_replicas: 6 is not allowed; allowed: 8 and more"),
        ((OK, 10, 2, 2, 4), "num_replicas: 10 is not allowed; allowed: multiples of num_gpus, 4"),
    ],
)
def test_what_cannot_work_is_refused_by_name(arguments: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        rebalance_experts(*arguments)


def test_numpy_integers_are_numbers_too() -> None:
    plan = rebalance_experts(OK, np.int64(8), np.int32(1), np.int64(1), np.uint8(4))[0]
    assert np.array_equal(plan, rebalance_experts(OK, 8, 1, 1, 4)[0])
