"""Every placement keeps the same promises; linear and round-robin have layouts one can write down."""

import numpy as np
import pytest

from rayemu.placement import PLACEMENTS


@pytest.mark.parametrize("kind", PLACEMENTS)
@pytest.mark.parametrize(("experts", "modules"), [(8, 8), (8, 3), (5, 4), (1, 2), (64, 16)])
def test_contract(kind: str, experts: int, modules: int) -> None:
    rng = np.random.default_rng(experts * modules)
    copies = rng.integers(1, modules + 1, experts)
    placed = PLACEMENTS[kind]().place(copies, modules, rng)
    assert np.bincount(placed.slot_to_expert, minlength=experts).tolist() == copies.tolist()
    assert placed.slot_to_module.min() >= 0 and placed.slot_to_module.max() < modules
    pairs = set(zip(placed.slot_to_expert.tolist(), placed.slot_to_module.tolist(), strict=True))
    assert len(pairs) == copies.sum(), "a module holds two copies of one expert"
    assert placed.slot_to_expert.dtype == placed.slot_to_module.dtype == np.int32, "as frames carry them"
    again = PLACEMENTS[kind]().place(copies, modules, np.random.default_rng(1))
    same = PLACEMENTS[kind]().place(copies, modules, np.random.default_rng(1))
    assert np.array_equal(again.slot_to_module, same.slot_to_module)


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_no_experts_take_no_slots(kind: str) -> None:
    placed = PLACEMENTS[kind]().place(np.zeros(0, int), 4, np.random.default_rng(0))
    assert placed.slot_to_expert.shape == placed.slot_to_module.shape == (0,)
    assert placed.slot_to_module.dtype == np.int32


def test_linear_by_hand() -> None:
    placed = PLACEMENTS["linear"]().place(np.array([2, 1, 1, 2]), 4, np.random.default_rng(0))
    assert placed.slot_to_expert.tolist() == [0, 0, 1, 2, 3, 3]
    assert placed.slot_to_module.tolist() == [0, 2, 1, 2, 3, 1]
    assert placed.experts_on(2) == [0, 2]


def test_three_copies_lie_a_third_of_the_ring_apart() -> None:
    placed = PLACEMENTS["linear"]().place(np.array([3, 3]), 8, np.random.default_rng(0))
    assert placed.slot_to_module.tolist() == [0, 2, 5, 4, 6, 1]  # 0, 8 // 3 and 16 // 3 further on


def test_linear_keeps_neighbours_together() -> None:
    placed = PLACEMENTS["linear"]().place(np.ones(8, int), 4, np.random.default_rng(0))
    assert placed.slot_to_module.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("kind", ["linear", "round_robin"])
def test_experts_that_do_not_divide_are_spread_evenly(kind: str) -> None:
    for experts in range(1, 40):
        for modules in range(1, 12):
            placed = PLACEMENTS[kind]().place(np.ones(experts, int), modules, np.random.default_rng(0))
            held = np.bincount(placed.slot_to_module, minlength=modules)
            assert held.max() - held.min() <= 1, (experts, modules)
            assert kind != "linear" or (np.diff(placed.slot_to_module) >= 0).all()


def test_round_robin_parts_neighbours() -> None:
    placed = PLACEMENTS["round_robin"]().place(np.ones(6, int), 4, np.random.default_rng(0))
    assert placed.slot_to_module.tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("kind", ["linear", "round_robin"])
def test_two_copies_are_on_two_nodes(kind: str) -> None:
    placed = PLACEMENTS[kind]().place(np.full(16, 2), 8, np.random.default_rng(0))
    nodes = placed.slot_to_module // 4
    for expert in range(16):
        assert len(set(nodes[placed.slot_to_expert == expert].tolist())) == 2


def test_random_is_level() -> None:
    placed = PLACEMENTS["random"]().place(np.full(20, 2), 8, np.random.default_rng(3))
    held = np.bincount(placed.slot_to_module, minlength=8)
    assert held.sum() == 40 and held.max() - held.min() <= 1
