"""Moves by hand, matching against all permutations, flows against assignments of single rows, levels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from rayemu.balance.levels import Level, balance_levels, spread
from rayemu.balance.loads import as_placement
from rayemu.balance.metrics import imbalance
from rayemu.balance.migration import (
    REBUILT,
    balancing_flow,
    count_moves,
    flow_plan,
    match_devices,
    moves_between,
)
from rayemu.placement import from_columns

TWO_NODES = np.array([0, 0, 1, 1])


def plan(*rows: list[int], devices: int) -> object:
    return as_placement(np.array(rows), devices)


def test_moves_by_hand() -> None:
    """Devices 0 and 1 on node 0, 2 and 3 on node 1; one slot each, expert 4 lives nowhere yet."""
    present = plan([0, 1, 2, 0], devices=4)
    new = plan([0, 0, 1, 4], devices=4)
    moves = moves_between(present, new, TWO_NODES)
    assert moves.expert.tolist() == [0, 1, 4]
    assert moves.destination.tolist() == [1, 2, 3]
    assert moves.source.tolist() == [0, 1, REBUILT]
    assert moves.hops.tolist() == [1, 2, 2]
    assert moves.dropped == 3, "1 from device 1, 2 from device 2, 0 from device 3"
    assert moves.bytes(100) == 300 and len(moves) == 3


def test_equally_near_holders_share_what_is_fetched() -> None:
    """Both experts lie on devices 0 and 1; devices 2 and 3 lack them."""
    present = plan([0, 1, 0, 1, 2, 3, 2, 3], devices=4)
    new = plan([0, 1, 0, 1, 0, 1, 0, 1], devices=4)
    assert sorted(moves_between(present, new, TWO_NODES).source.tolist()) == [0, 0, 1, 1]


def test_the_same_plan_moves_nothing() -> None:
    present = plan([0, 1, 2, 3], [3, 2, 1, 0], devices=4)
    moves = moves_between(present, present, TWO_NODES)
    assert len(moves) == moves.dropped == 0
    assert match_devices(present, present, TWO_NODES).module.tolist() == present.module.tolist()


def relabelled(placement: object, order: tuple[int, ...]) -> object:
    return from_columns(placement.layer, placement.expert, np.array(order)[placement.module])  # type: ignore


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 0, 1]]))
def test_matching_is_the_best_of_all_permutations_that_keep_nodes_together(
    seed: int, nodes: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    module_to_node = np.array(nodes)

    def hops(placement: object) -> int:
        return int(moves_between(present, placement, module_to_node).hops.sum())  # type: ignore[arg-type]

    def draw() -> object:
        return plan(np.concatenate([rng.permutation(5)[:2] for _ in range(4)]).tolist(), devices=4)

    present, new = draw(), draw()
    together = [
        order
        for order in itertools.permutations(range(4))
        if all(
            (nodes[a] == nodes[b]) == (nodes[order[a]] == nodes[order[b]]) for a in range(4) for b in range(4)
        )
    ]
    matched = match_devices(present, new, module_to_node)  # type: ignore[arg-type]
    assert hops(matched) == min(hops(relabelled(new, order)) for order in together)
    assert count_moves(present, matched) == len(moves_between(present, matched, module_to_node))  # type: ignore
    held = [sorted(matched.expert[matched.module == g].tolist()) for g in range(4)]
    assert sorted(held) == sorted(sorted(new.expert[new.module == g].tolist()) for g in range(4))  # type: ignore


def test_as_many_moves_over_fewer_hops_are_preferred() -> None:
    """Two moves either way: both across nodes, or with the nodes exchanged one within and one across."""
    present, new = plan([1, 3, 3, 3], devices=4), plan([1, 3, 1, 1], devices=4)
    assert moves_between(present, new, TWO_NODES).hops.tolist() == [2, 2]  # type: ignore[arg-type]
    matched = match_devices(present, new, TWO_NODES)  # type: ignore[arg-type]
    assert sorted(moves_between(present, matched, TWO_NODES).hops.tolist()) == [1, 2]  # type: ignore[arg-type]


def test_layers_are_matched_on_their_own() -> None:
    present = plan([0, 1], [0, 1], devices=2)
    new = plan([1, 0], [0, 1], devices=2)
    assert len(moves_between(present, match_devices(present, new, np.zeros(2, int)), np.zeros(2, int))) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.integers(0, 3), st.integers(0, 2**32))
def test_a_flow_costs_what_the_best_assignment_of_single_rows_costs(
    loads: list[int], above: int, seed: int
) -> None:
    """Every row above the ceiling to a place below it, by the Hungarian method on single rows and places."""
    devices = len(loads)
    ceiling = -(-sum(loads) // devices) + above
    node = np.random.default_rng(seed).integers(0, 2, devices)
    distances = 1 + (node[:, None] != node)
    flow = balancing_flow(np.array(loads), distances, ceiling)
    after = np.array(loads) - flow.sum(axis=1) + flow.sum(axis=0)
    assert after.max() <= ceiling
    excess = np.array(loads) - ceiling
    rows = np.repeat(np.arange(devices), np.maximum(excess, 0))
    places = np.repeat(np.arange(devices), np.maximum(-excess, 0))
    single = distances[np.ix_(rows, places)]
    assert (flow * distances).sum() == single[linear_sum_assignment(single)].sum()


def test_a_flow_stays_in_the_node_where_it_can() -> None:
    distances = 1 + (TWO_NODES[:, None] != TWO_NODES)
    flow = balancing_flow(np.array([10, 0, 10, 0]), distances)
    assert flow.tolist() == [[0, 5, 0, 0], [0] * 4, [0, 0, 0, 5], [0] * 4]
    assert balancing_flow(np.array([10, 0, 10, 0]), distances, 7).sum() == 6
    assert not balancing_flow(np.array([3, 3, 2, 3]), distances).any()


def test_what_flows_must_be_whole_and_have_a_place() -> None:
    with pytest.raises(ValueError, match="loads: fractions"):
        balancing_flow(np.array([0.5, 1.0]), np.ones((2, 2)))
    with pytest.raises(ValueError, match="ceiling: 2 is not allowed; allowed: the mean, 3, and above"):
        balancing_flow(np.array([2, 3]), np.ones((2, 2)), 2)


def test_a_flow_plan_exchanges_by_hand() -> None:
    """20 + 5 against 2 + 1: no pair differs by the flow, which is 3 with the ceiling at 22; 5 for 2 does."""
    loads = np.array([[20.0, 5.0, 2.0, 1.0]])
    present = plan([0, 1, 2, 3], devices=2)
    after = flow_plan(loads, present, 1 - np.eye(2))  # type: ignore[arg-type]
    assert sorted(after.expert[after.module == 0].tolist()) == [0, 3]
    near = flow_plan(loads, present, 1 - np.eye(2), slack=22 / 14 - 1)  # type: ignore[arg-type]
    assert sorted(near.expert[near.module == 0].tolist()) == [0, 2]


def test_a_flow_plan_balances_with_few_moves_and_keeps_every_promise() -> None:
    rng = np.random.default_rng(0)
    loads = np.round(1000 / (1 + np.stack([rng.permutation(64) for _ in range(4)])) ** 0.8)
    present = as_placement(np.tile(np.arange(64), (4, 1)), 8)
    node = np.arange(8) // 4
    distances = 1 + (node[:, None] != node) - np.eye(8, dtype=int)
    after = flow_plan(loads, present, distances)
    ordered = np.sort(loads, axis=1)
    heaviest = ordered[:, -1] + ordered[:, :7].sum(axis=1)  # it needs seven others beside it
    bound = np.mean(np.maximum(heaviest / (loads.sum(axis=1) / 8), 1))
    assert float(imbalance(loads, present, 8)) > 1.7
    assert float(imbalance(loads, after, 8)) <= bound * 1.025
    assert np.bincount(after.module).tolist() == np.bincount(present.module).tolist()
    assert np.array_equal(after.counts(4, 64), present.counts(4, 64))
    assert len(moves_between(present, after, node)) < 4 * 64 / 5


def test_a_flow_plan_puts_no_two_copies_on_one_device_and_fills_none_further() -> None:
    rng = np.random.default_rng(3)
    present = as_placement(np.array([[0, 1, 0, 2, 0, 3, 4, 5]]), 4)
    for _ in range(20):
        loads = rng.integers(1, 100, (1, 6)).astype(float)
        after = flow_plan(loads, present, 1 - np.eye(4))
        assert after.module_loads(loads, 4).max() <= present.module_loads(loads, 4).max()
        assert len(set(zip(after.expert.tolist(), after.module.tolist(), strict=True))) == 8


def test_spread_is_near_the_best_there_is() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        loads = rng.integers(1, 50, 8).astype(float)
        best = min(
            max(loads[list(half)].sum(), loads.sum() - loads[list(half)].sum())
            for half in itertools.combinations(range(8), 4)
        )
        part = spread(loads, 2, 4)
        assert np.bincount(part, weights=loads).max() <= best * 1.06
        assert np.bincount(part).tolist() == [4, 4]


def test_exchanges_mend_what_heaviest_first_gets_wrong() -> None:
    """LPT makes 3 + 2 + 2 against 3 + 2; the best is 3 + 3 against 2 + 2 + 2."""
    loads = np.array([3.0, 3.0, 2.0, 2.0, 2.0])
    assert np.bincount(spread(loads, 2, 4), weights=loads).tolist() == [6.0, 6.0]


def test_levels_are_nested_and_fit() -> None:
    rng = np.random.default_rng(5)
    loads = 1 / (1 + np.stack([rng.permutation(60) for _ in range(3)]))
    levels = [Level("node", 2, 32), Level("module", 4, 16), Level("bank", 2, 8)]
    found = balance_levels(loads, levels)
    assert np.array_equal(found.unit["bank"] // 2, found.unit["module"])
    assert np.array_equal(found.unit["module"] // 4, found.unit["node"])
    for name, units, slots in (("node", 2, 32), ("module", 8, 16), ("bank", 16, 8)):
        held = np.stack([np.bincount(u, minlength=units) for u in found.unit[name]])
        assert held.max() <= slots
        rows = [
            np.bincount(u, weights=w, minlength=units) for u, w in zip(found.unit[name], loads, strict=True)
        ]
        assert found.balance[name] == pytest.approx(np.mean([r.max() / r.mean() for r in rows]))
    assert found.balance["node"] < 1.001, "what crosses the dearest link is balanced best"
    heaviest = (loads.max(axis=1) * 8 / loads.sum(axis=1)).mean()
    assert found.balance["module"] <= max(heaviest, 1) * 1.01


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ([Level("node", 2, 4)], "2 x node with 4 slots is not allowed; allowed: room for 9 items"),
        (
            [Level("node", 2, 5), Level("bank", 2, 2)],
            "2 x bank with 2 slots .* room for the 5 slots of a node",
        ),
    ],
)
def test_what_does_not_fit_is_named(levels: list[Level], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        balance_levels(np.ones((1, 9)), levels)
