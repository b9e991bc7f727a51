"""Strategies that follow loads by a rule, against the rule worked out by hand."""

import dataclasses
from itertools import product

import numpy as np
import pytest

from rayemu.balance.rebalancer import RebalancePolicy, Rebalancer
from rayemu.balance.triggers import TRIGGERS
from rayemu.placement import (
    Linear,
    Placement,
    PlacementProblem,
    Replicator,
    Supernodes,
    Thresholds,
    Tiers,
    Variance,
    problem_of,
)
from rayemu.placement.quality import load_deviation, mean_hops, replica_hit_rate, ring

# The statistics that the texts give of eight experts
FREQUENCY = np.array([[0.185, 0.157, 0.123, 0.102, 0.098, 0.093, 0.140, 0.082]])
VARIANCE = np.array([[0.023, 0.018, 0.015, 0.012, 0.011, 0.010, 0.017, 0.009]])


def nodes_of(placed: Placement, problem: PlacementProblem, expert: int) -> list[int]:
    nodes: list[int] = problem.module_to_node[placed.module[placed.expert == expert]].tolist()
    return nodes


def test_tiers_fill_node_after_node() -> None:
    loads = np.array([[5.0, 80, 10, 70, 20, 60, 40, 1]])
    problem = problem_of(np.ones(8, int), 4, 2, loads)
    placed = Tiers().place(problem)
    hot = {expert for expert in range(8) if nodes_of(placed, problem, expert) == [0]}
    assert hot == {1, 3, 5, 6}
    assert placed.module_loads(loads, 4).tolist() == [[80 + 40, 70 + 60, 20 + 1, 10 + 5]]


def test_further_copies_of_tiers_are_on_other_nodes() -> None:
    problem = problem_of(np.full(8, 2), 8, 4, np.arange(8.0)[None] + 1)
    placed = Tiers().place(problem)
    for expert in range(8):
        first = (7 - expert) // 2
        assert sorted(nodes_of(placed, problem, expert)) == sorted([first, (first + 2) % 4])


def test_hot_experts_of_supernodes_have_a_replica_next_door() -> None:
    """The texts' 64 experts on 8 supernodes of 8 modules, with six replicas."""
    loads = 1 / np.arange(1.0, 65)[None]
    problem = problem_of(np.ones(64, int), 64, 8, loads, slots=70)
    placed = Supernodes().place(problem)
    for expert in range(64):
        node = expert // 8
        assert nodes_of(placed, problem, expert) == [node, node + 1] if expert < 6 else [node]
    far = ring(problem.module_to_node)
    alone = Supernodes().place(problem_of(np.ones(64, int), 64, 8, loads))
    assert replica_hit_rate(alone, loads, far)[0] == 0
    # Homes nearer to supernode 1 than to supernode 0: 1 to 4, of 8, and of node 0 none
    hot = loads[0, :6].sum() / loads.sum()
    near = replica_hit_rate(placed, loads, far)[0]
    assert near == pytest.approx(hot * 4 / 8)
    assert mean_hops(placed, loads, far)[0] < mean_hops(alone, loads, far)[0]
    assert load_deviation(placed, loads, 64)[0] < load_deviation(alone, loads, 64)[0]


def test_what_six_replicas_of_supernodes_give() -> None:
    """The figures of docs/placement.md."""
    loads = 1 / np.arange(1.0, 65)[None]
    found = []
    for slots in (64, 70):
        problem = problem_of(np.ones(64, int), 64, 8, loads, slots=slots)
        placed, far = Supernodes().place(problem), ring(problem.module_to_node)
        hops = mean_hops(placed, loads, far)[0], load_deviation(placed, loads, 64)[0]
        found.append([*hops, replica_hit_rate(placed, loads, far)[0]])
    assert found[0] == pytest.approx([2.98, 1.91, 0], abs=0.005)
    assert found[1] == pytest.approx([2.72, 1.41, 0.258], abs=0.005)


def test_tiers_load_the_first_node_most() -> None:
    problem = problem_of(np.ones(32, int), 32, 4, 1 / np.arange(1.0, 33)[None])
    by_node = Tiers().place(problem).module_loads(problem.loads, 32).reshape(4, 8).sum(axis=1)
    assert by_node / by_node.sum() == pytest.approx([0.67, 0.16, 0.10, 0.07], abs=0.005)


def test_a_full_neighbour_passes_the_replica_on() -> None:
    problem = problem_of(np.ones(4, int), 4, 4, np.array([[8.0, 4, 2, 1]]), slots=8)
    placed = Supernodes().place(problem)
    assert placed.counts(1, 4).tolist() == [[2, 2, 2, 2]]
    assert [nodes_of(placed, problem, expert)[1] for expert in range(4)] == [1, 2, 3, 0]


def test_the_texts_rule_for_variance_makes_no_replica_of_the_texts_experts() -> None:
    """int(0.185 * 32 / 4) + int(0.023 * 10) is 1, where their plan has 4; the coldest would have none."""
    assert Variance().copies(FREQUENCY[0], VARIANCE[0], 32).tolist() == [1] * 8
    # Thrice as many by frequency: 24 times shares of 0.98, which is what they add up to; 4.5 3.8 3.0 2.5 ...
    assert Variance(scale=0.75).copies(FREQUENCY[0], VARIANCE[0], 32).tolist() == [4, 3, 3, 2, 2, 2, 3, 2]
    # int(VARIANCE * 100) adds 2, 1, 1, 1, 1, 1, 0, but never beyond four
    with_variance = Variance(scale=0.75, spread=100.0).copies(FREQUENCY[0], VARIANCE[0], 32)
    assert with_variance.tolist() == [4, 4, 4, 3, 3, 3, 4, 2]


def test_the_texts_plan_by_variance_leaves_the_imbalance_as_it_is() -> None:
    """ "2.26 to 1.31" with 19 copies: loads per copy are still 2.27 apart; 1.50 is the best there is."""
    frequency, plan = FREQUENCY[0], np.array([4, 3, 3, 2, 2, 1, 3, 1])
    assert frequency.max() / frequency.min() == pytest.approx(2.26, abs=0.01)
    each = frequency / plan
    assert each.max() / each.min() == pytest.approx(2.27, abs=0.01)
    every = [
        (frequency / counts).max() / (frequency / counts).min()
        for counts in product(range(1, 5), repeat=8)
        if sum(counts) == plan.sum()
    ]
    assert min(every) == pytest.approx(1.50, abs=0.01)


def test_copies_from_variance_are_placed_within_the_slots() -> None:
    problem = dataclasses.replace(
        problem_of(np.ones(8, int), 32, 4, FREQUENCY * 1000, slots=24), variances=VARIANCE
    )
    placed = Variance(scale=0.75).place(problem)
    assert placed.counts(1, 8).tolist() == [[4, 3, 3, 2, 2, 2, 3, 2]]
    fewer = Variance(scale=0.75).place(dataclasses.replace(problem, slots=10))
    assert fewer.counts(1, 8).tolist() == [[2, 2, 1, 1, 1, 1, 1, 1]]


def test_threshold_rules_by_hand() -> None:
    share = np.array([480.0, 130, 130, 130, 130])  # of 1000, mean 200
    by_share = Thresholds(over=1e6).copies(share)
    assert by_share.tolist() == [1 + 3, 1, 1, 1, 1]  # int(0.48 / 0.15) more
    by_mean = Thresholds(share=1.0).copies(share)
    assert by_mean.tolist() == [3, 1, 1, 1, 1]  # 480 > 1.5 * 200, ceil(480 / 200)
    assert Thresholds(share=1.0).copies(np.array([300.0, 100, 200])).tolist() == [1, 1, 1], "not above 1.5"
    assert Thresholds().copies(np.zeros(4)).tolist() == [1] * 4


def test_cold_experts_are_kept_together() -> None:
    loads = np.array([[100.0, 100, 100, 4, 3, 2, 1, 0]])
    problem = problem_of(np.ones(8, int), 8, 1, loads, slots=40)  # five a module
    placed = Thresholds(share=1.0, over=1e6).place(problem)
    cold = set(placed.module[placed.expert >= 3].tolist())
    assert len(cold) == 1, "five cold experts share a module, four modules are free"
    assert not cold & set(placed.module[placed.expert < 3].tolist())


def test_an_expert_with_just_the_cold_share_of_the_mean_is_not_cold() -> None:
    loads = np.array([[300.0, 25, 25, 25, 25]])  # mean 80, of which 0.3125 are 25
    problem = problem_of(np.ones(5, int), 5, 1, loads, slots=25)
    for cold, modules in ((0.3125, 5), (0.3126, 2)):
        placed = Thresholds(share=1.0, over=1e6, cold=cold).place(problem)
        assert len(set(placed.module.tolist())) == modules


def test_cold_experts_do_not_make_a_module_the_fullest() -> None:
    loads = np.array([[100.0] * 4 + [40.0] * 4])
    problem = problem_of(np.ones(8, int), 8, 1, loads, slots=32)
    placed = Thresholds(share=1.0, over=1e6, cold=0.6).place(problem)
    assert placed.module_loads(loads, 8).max() == 100
    assert len(set(placed.module[placed.expert >= 4].tolist())) == 2, "two a module: three are 120"


def test_the_replicator_puts_copies_where_they_save_hops() -> None:
    loads = np.array([[900.0, 200, 200, 200, 200, 200, 200, 200]])
    problem = problem_of(np.ones(8, int), 8, 2, loads, slots=16)
    placed = Replicator(over=1.5).place(problem)
    assert placed.counts(1, 8).tolist() == [[3, 1, 1, 1, 1, 1, 1, 1]]  # 900 / 2 > 1.5 * 287.5 > 900 / 3
    assert nodes_of(placed, problem, 0)[:2] == [0, 1], "the other node first"
    homes = placed.module[placed.expert == 0]
    after = problem.distances[:, homes[:2]].min(axis=1).sum()
    least = min(problem.distances[:, [homes[0], other]].min(axis=1).sum() for other in range(8))
    assert after == least


def test_the_replicator_leaves_rare_experts_alone_and_stops_at_most() -> None:
    loads = np.array([[90.0, 1, 1, 1]])
    assert len(Replicator().place(problem_of(np.ones(4, int), 4, 1, loads, slots=8))) == 4
    much = Replicator(most=3).place(problem_of(np.ones(4, int), 4, 1, loads * 100, slots=8))
    assert much.counts(1, 4).tolist() == [[3, 1, 1, 1]]


def test_the_replicator_keeps_first_copies_and_memory() -> None:
    loads = np.array([[900.0, 200, 200, 200]])
    present = Linear().place(problem_of(np.array([1, 1, 1, 1]), 4))
    moved = dataclasses.replace(present, module=present.module[::-1])
    problem = dataclasses.replace(
        problem_of(np.ones(4, int), 4, 2, loads, slots=8),
        present=moved,
        expert_bytes=10,
        memory=np.array([25.0, 10, 10, 10]),
    )
    placed = Replicator(over=1.0).place(problem)
    _, first = np.unique(placed.expert, return_index=True)
    assert placed.module[first].tolist() == [3, 2, 1, 0]
    assert placed.module[placed.expert == 0].tolist() == [3, 0], "only module 0 has room"


def test_a_rebalancer_tells_how_shares_vary() -> None:
    """Expert 0 swings between 0.9 and 0.3 of the rows: variance 0.09, of which 25 times make two copies."""
    present = Linear().place(problem_of(np.ones(2, int), 2))
    problem = problem_of(np.ones(2, int), 2, slots=4)
    policy = RebalancePolicy(TRIGGERS["every"](2), Variance(scale=0.0, spread=25.0), gain=None)
    loads = np.array([[[90.0, 10]], [[30, 70]]] * 4)
    decision = Rebalancer(policy, problem).decide("asked", loads, present)
    assert decision.plan is not None and decision.plan.counts(1, 2).tolist() == [[2, 2]]
