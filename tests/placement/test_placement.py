"""Every placement keeps the same promises; linear and round-robin have layouts one can write down."""

import dataclasses

import numpy as np
import pytest

from rayemu.placement import (
    PLACEMENTS,
    Placement,
    PlacementProblem,
    check_placement,
    from_columns,
    problem_of,
)
from rayemu.placement.filling import level_sizes

PACKAGES = {"graph": "pymetis", "qubo": "dwave.samplers"}  # what a strategy needs beside rayemu's own
AS_ASKED = ("linear", "round_robin", "random", "graph", "affinity", "tiers", "qubo")  # copies are the user's
BLIND_TO_MEMORY = ("linear", "round_robin", "random", "balanced", "incremental")
FOR_TESTS = {"qubo": {"reads": 2, "sweeps": 100}, "domains": {"failures": 0}}


def place(kind: str, problem: PlacementProblem) -> Placement:
    if kind in PACKAGES:
        pytest.importorskip(PACKAGES[kind], reason=f"{PACKAGES[kind]}: pip install 'rayemu[plan]'")
    placed = PLACEMENTS[kind](**FOR_TESTS.get(kind, {})).place(problem)
    assert isinstance(placed, Placement)
    return placed


def full_problem(rng: np.random.Generator, layers: int, experts: int, modules: int) -> PlacementProblem:
    """A problem that lacks nothing: a dense first layer of several, memory for its slots just so."""
    copies = rng.integers(1, modules + 1, (layers, experts))
    copies[: layers > 1] = 0
    slots = int(copies.sum(axis=1).max())
    tokens = rng.integers(0, 50, (layers, experts, experts)).astype(float)
    coactivation = tokens + tokens.transpose(0, 2, 1)
    coactivation[:, np.arange(experts), np.arange(experts)] = 0
    return dataclasses.replace(
        problem_of(copies, modules, nodes=max(modules // 4, 1), slots=slots, seed=int(rng.integers(99))),
        loads=np.where(copies > 0, rng.zipf(1.5, (layers, experts)).clip(max=10_000) * 100.0, 0),
        expert_bytes=1000,
        memory=1000.0 * level_sizes(slots * int(copies.any(axis=1).sum()), np.full(modules, slots * layers))
        + 999,
        coactivation=coactivation,
        transitions=rng.integers(0, 50, (layers - 1, experts, experts)),
        variances=rng.random((layers, experts)) / 4,
    )


@pytest.mark.parametrize("kind", PLACEMENTS)
@pytest.mark.parametrize(
    ("layers", "experts", "modules"), [(1, 8, 8), (3, 8, 3), (2, 5, 4), (1, 1, 2), (1, 6, 1), (2, 32, 16)]
)
def test_contract(kind: str, layers: int, experts: int, modules: int) -> None:
    problem = full_problem(np.random.default_rng(experts * modules), layers, experts, modules)
    placed = place(kind, problem)
    counts, moe = placed.counts(layers, experts), problem.copies.any(axis=1)
    if kind in AS_ASKED:
        assert counts.tolist() == problem.copies.tolist()
    else:
        assert (counts.sum(axis=1)[moe] <= problem.slots).all(), "more slots than there are"
    assert not counts[~moe].any(), "a dense layer has no slots"
    check_placement(placed, (int(layers > 1), layers), experts, modules)
    if kind not in BLIND_TO_MEMORY:
        held = np.bincount(placed.module, minlength=modules)
        assert (held * problem.expert_bytes <= problem.memory).all(), "more than a module's memory holds"
    assert placed.expert.dtype == placed.module.dtype == np.int32, "as frames carry them"
    assert (np.diff(placed.layer * experts + placed.expert) >= 0).all(), "slots are sorted"


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_the_same_problem_has_the_same_plan(kind: str) -> None:
    one, two = (place(kind, full_problem(np.random.default_rng(5), 2, 12, 4)) for _ in range(2))
    assert one.expert.tolist() == two.expert.tolist() and one.module.tolist() == two.module.tolist()


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_no_experts_take_no_slots(kind: str) -> None:
    none = np.zeros((1, 0))
    problem = dataclasses.replace(
        problem_of(np.zeros(0, int), 4),
        coactivation=np.zeros((1, 0, 0)),
        transitions=np.zeros((0, 0, 0)),
        variances=none,
    )
    placed = place(kind, problem)
    assert placed.expert.shape == placed.module.shape == (0,)
    assert placed.module.dtype == np.int32


@pytest.mark.parametrize("kind", PLACEMENTS)
def test_layers_without_any_load_are_placed(kind: str) -> None:
    problem = dataclasses.replace(full_problem(np.random.default_rng(1), 2, 6, 4), loads=np.zeros((2, 6)))
    problem.coactivation[:] = 0
    problem.transitions[:] = 0
    assert place(kind, problem).counts(2, 6)[1].min() >= 1


@pytest.mark.parametrize("kind", [k for k in PLACEMENTS if k not in BLIND_TO_MEMORY])
def test_too_little_memory_is_refused(kind: str) -> None:
    problem = dataclasses.replace(full_problem(np.random.default_rng(1), 1, 8, 4), memory=np.full(4, 1999.0))
    with pytest.raises(ValueError, match="memory"):
        place(kind, problem)


@pytest.mark.parametrize(
    ("kind", "lacking", "said"),
    [
        ("graph", "coactivation", "linear"),
        ("affinity", "transitions", "linear"),
        ("variance", "variances", "windows"),
    ],
)
def test_what_is_not_known_is_asked_for(kind: str, lacking: str, said: str) -> None:
    problem = dataclasses.replace(full_problem(np.random.default_rng(1), 2, 8, 4), **{lacking: None})
    with pytest.raises(ValueError, match=f"^{kind} placement needs .*{lacking}.* trace .*{said}"):
        place(kind, problem)


@pytest.mark.parametrize(
    ("kind", "params", "name"),
    [
        ("graph", {"seed": -1}, "seed"),
        ("variance", {"scale": -1.0}, "scale"),
        ("variance", {"spread": float("nan")}, "spread"),
        ("variance", {"most": 0}, "most"),
        ("thresholds", {"share": 0.0}, "share"),
        ("thresholds", {"over": 0.5}, "over"),
        ("thresholds", {"cold": 2.0}, "cold"),
        ("replicator", {"least": -1}, "least"),
        ("replicator", {"over": -1.0}, "over"),
        ("replicator", {"most": 0}, "most"),
        ("qubo", {"reads": 0}, "reads"),
        ("qubo", {"sweeps": 0}, "sweeps"),
        ("qubo", {"traffic": -0.5}, "traffic"),
        ("qubo", {"penalty": 0.0}, "penalty"),
        ("domains", {"failures": -1}, "failures"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_and_value(kind: str, params: dict, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: {params[name]!r} is not allowed; allowed: "):
        PLACEMENTS[kind](**params)


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


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (([0, 0], [0, 1], [0.0, 0.5]), "placement.module has dtype float64; allowed: whole numbers"),
        (
            ([0, 0], [0, 1], [0, 2**40]),
            r"placement.module\[1\] is 1099511627776; allowed: .* of 32 bits",
        ),
        (([0, 0], [0], [0, 1]), "placement.expert has 1 slots, placement.layer 2"),
        (([[0, 0]], [[0, 1]], [[0, 1]]), r"placement.layer has shape \(1, 2\); allowed: one number per slot"),
        (([0, 0], [0, 1], ["a", "b"]), "placement.module has dtype <U1"),
    ],
)
def test_columns_that_are_no_slots_are_refused_by_name(columns: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_columns(*columns)


def test_columns_may_be_lists_and_none() -> None:
    assert len(from_columns([], [], [])) == 0
    made = from_columns([0, 0], [1, 0], np.array([2, 3], np.uint64))
    assert made.expert.tolist() == [0, 1] and made.module.tolist() == [3, 2]
    assert all(getattr(made, name).dtype == np.int32 for name in ("layer", "expert", "part", "module"))
