"""Every placement keeps the same promises; linear and round-robin have layouts one can write down."""

import numpy as np
import pytest

from rayemu.placement import PLACEMENTS, problem_of

OWN_COUNTS = ("balanced", "incremental")  # they choose the copies, at most as many in all as are asked for


@pytest.mark.parametrize("kind", PLACEMENTS)
@pytest.mark.parametrize(("experts", "modules"), [(8, 8), (8, 3), (5, 4), (1, 2), (64, 16)])
def test_contract(kind: str, experts: int, modules: int) -> None:
    rng = np.random.default_rng(experts * modules)
    copies = rng.integers(1, modules + 1, experts)
    placed = PLACEMENTS[kind]().place(problem_of(copies, modules, seed=int(rng.integers(99))))
    counts = np.bincount(placed.expert, minlength=experts)
    assert counts.min() >= 1 and counts.sum() <= copies.sum()
    assert kind in OWN_COUNTS or counts.tolist() == copies.tolist()
    assert placed.module.min() >= 0 and placed.module.max() < modules
    pairs = set(zip(placed.expert.tolist(), placed.module.tolist(), strict=True))
    assert len(pairs) == counts.sum(), "a module holds two copies of one expert"
    assert placed.expert.dtype == placed.module.dtype == np.int32, "as frames carry them"
    again = PLACEMENTS[kind]().place(problem_of(copies, modules, seed=1))
    same = PLACEMENTS[kind]().place(problem_of(copies, modules, seed=1))
    assert np.array_equal(again.module, same.module)


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_no_experts_take_no_slots(kind: str) -> None:
    placed = PLACEMENTS[kind]().place(problem_of(np.zeros(0, int), 4))
    assert placed.expert.shape == placed.module.shape == (0,)
    assert placed.module.dtype == np.int32


def test_linear_by_hand() -> None:
    placed = PLACEMENTS["linear"]().place(problem_of(np.array([2, 1, 1, 2]), 4))
    assert placed.expert.tolist() == [0, 0, 1, 2, 3, 3]
    assert placed.module.tolist() == [0, 2, 1, 2, 3, 1]
    assert placed.held_by(2) == [(0, 0), (0, 2)]


def test_three_copies_lie_a_third_of_the_ring_apart() -> None:
    placed = PLACEMENTS["linear"]().place(problem_of(np.array([3, 3]), 8))
    assert placed.module.tolist() == [0, 2, 5, 4, 6, 1]  # 0, 8 // 3 and 16 // 3 further on


def test_linear_keeps_neighbours_together() -> None:
    placed = PLACEMENTS["linear"]().place(problem_of(np.ones(8, int), 4))
    assert placed.module.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("kind", ["linear", "round_robin"])
def test_experts_that_do_not_divide_are_spread_evenly(kind: str) -> None:
    for experts in range(1, 40):
        for modules in range(1, 12):
            placed = PLACEMENTS[kind]().place(problem_of(np.ones(experts, int), modules))
            held = np.bincount(placed.module, minlength=modules)
            assert held.max() - held.min() <= 1, (experts, modules)
            assert kind != "linear" or (np.diff(placed.module) >= 0).all()


def test_round_robin_parts_neighbours() -> None:
    placed = PLACEMENTS["round_robin"]().place(problem_of(np.ones(6, int), 4))
    assert placed.module.tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("kind", ["linear", "round_robin"])
def test_two_copies_are_on_two_nodes(kind: str) -> None:
    placed = PLACEMENTS[kind]().place(problem_of(np.full(16, 2), 8))
    nodes = placed.module // 4
    for expert in range(16):
        assert len(set(nodes[placed.expert == expert].tolist())) == 2


def test_random_is_level() -> None:
    placed = PLACEMENTS["random"]().place(problem_of(np.full(20, 2), 8, seed=3))
    held = np.bincount(placed.module, minlength=8)
    assert held.sum() == 40 and held.max() - held.min() <= 1
