"""Balanced and incremental placement: the planners as strategies, with any number of slots and modules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayemu.placement import (
    Balanced,
    Incremental,
    Linear,
    PlacementProblem,
    check_placement,
    problem_of,
    rebalance_experts,
)


def with_present(problem: PlacementProblem, **changes: object) -> PlacementProblem:
    fields = {name: getattr(problem, name) for name in problem.__dataclass_fields__}
    return PlacementProblem(**(fields | changes))


def balance(problem: PlacementProblem, placed: object) -> float:
    loads = placed.module_loads(problem.loads, problem.modules)  # type: ignore[attr-defined]
    return float(np.mean(loads.max(1) / loads.mean(1)))


def test_balanced_is_rebalance_experts() -> None:
    loads = np.random.default_rng(1).lognormal(0, 1, (3, 16))
    problem = problem_of(np.ones((3, 16), int), 8, 2, loads)
    placed = Balanced(extra=8, groups=4).place(problem)
    plan = rebalance_experts(loads, 24, 4, 2, 8)[0]
    for layer in range(3):
        for module in range(8):
            assert [e for at, e in placed.held_by(module) if at == layer] == plan[
                layer, 3 * module : 3 * module + 3
            ].tolist()


def test_dense_layers_have_no_slots() -> None:
    problem = problem_of(np.array([[0, 0, 0], [1, 1, 1]]), 2, loads=np.array([[0, 0, 0], [6, 2, 1]]))
    for strategy in (Balanced(extra=1), Incremental(extra=1)):
        placed = strategy.place(problem)
        assert placed.layer.tolist() == [1] * 4 and placed.expert.tolist() == [0, 0, 1, 2]


def test_slots_that_would_not_help_stay_empty() -> None:
    """Three equal experts on two modules: 1 + 1/2 each; a second copy of another one makes it worse."""
    placed = Balanced(extra=2).place(problem_of(np.ones(3, int), 2))
    assert sorted(np.bincount(placed.expert).tolist()) == [1, 1, 2]


def test_modules_of_a_node_need_not_be_neighbours() -> None:
    problem = with_present(
        problem_of(np.ones(8, int), 4, 2, np.array([[8, 1, 1, 1, 8, 1, 1, 1]])),
        module_to_node=np.array([0, 1, 0, 1], np.int32),
    )
    placed = Balanced(groups=2).place(problem)
    nodes = problem.module_to_node[placed.module]
    assert len({(e // 4, n) for e, n in zip(placed.expert.tolist(), nodes.tolist(), strict=True)}) == 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_any_number_of_slots_and_modules(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, modules = (int(n) for n in rng.integers(1, 12, 2))
    copies = rng.integers(1, modules + 1, (2, experts))
    problem = problem_of(copies, modules, loads=rng.choice([0, 1, 5, 30], (2, experts)), seed=seed)
    first = Linear().place(problem)
    extra = int(rng.integers(0, 4))
    for strategy in (Balanced(extra), Incremental(extra=extra), Incremental(0.3)):
        placed = strategy.place(with_present(problem, present=first))
        check_placement(placed, (0, 2), experts, modules)
        most = min(problem.slots + extra, experts * modules)
        assert np.bincount(placed.layer).max() <= most


def test_incremental_moves_less_than_balanced() -> None:
    rng = np.random.default_rng(3)
    loads = rng.lognormal(0, 1, (4, 32))
    problem = problem_of(np.ones((4, 32), int), 8, loads=loads, slots=45)
    first = Balanced().place(problem)
    drifted = with_present(problem, loads=loads * rng.lognormal(0, 0.3, loads.shape), present=first)

    def moved(placed: object) -> int:
        before = set(zip(first.layer.tolist(), first.expert.tolist(), first.module.tolist(), strict=True))
        after = zip(placed.layer.tolist(), placed.expert.tolist(), placed.module.tolist(), strict=True)  # type: ignore[attr-defined]
        return len(set(after) - before)

    fresh, near = Balanced().place(drifted), Incremental(within=0.02).place(drifted)
    assert balance(drifted, near) <= 1.021 * balance(drifted, fresh)
    assert moved(near) < moved(fresh) / 2
    assert moved(Incremental(within=0.02).place(with_present(problem, present=first))) == 0


def test_what_cannot_work_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^extra: -1 is not allowed; allowed: whole numbers from 0"):
        Balanced(extra=-1)
    with pytest.raises(ValueError, match=r"^groups: 0 is not allowed"):
        Incremental(groups=0)
    with pytest.raises(ValueError, match=r"^within: -1 is not allowed"):
        Incremental(within=-1)
    problem = problem_of(np.ones(8, int), 4, 2)
    for groups in (3, 8 * 2, 5):
        with pytest.raises(
            ValueError, match=rf"^groups: {groups} is not allowed; allowed: 1, or divisors of the 8"
        ):
            Balanced(groups=groups).place(problem)
    with pytest.raises(ValueError, match=r"^groups: 2 is not allowed with 9 slots"):
        Balanced(extra=1, groups=2).place(problem)
    uneven = with_present(problem, module_to_node=np.array([0, 0, 0, 1], np.int32))
    with pytest.raises(ValueError, match=r"^groups: 2 is not allowed; allowed: 1, since nodes"):
        Balanced(groups=2).place(uneven)
