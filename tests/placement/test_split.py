"""split_load against the cut that no split can beat, and against a plain linear program."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from rayemu.placement import rebalance_experts, split_load
from tests.placement.test_eplb import zipf


def loads(rows: np.ndarray, expert: np.ndarray, module: np.ndarray, modules: int) -> np.ndarray:
    share = split_load(rows, expert, module, modules)
    return np.bincount(module, weights=share * rows[expert], minlength=modules)


def least_by_cuts(rows: np.ndarray, expert: np.ndarray, module: np.ndarray, already: np.ndarray) -> float:
    """Modules of a set must share what has copies on them only; the worst set is the bound, reached."""
    homes = [set(module[expert == e].tolist()) for e in range(len(rows))]
    sets = itertools.chain.from_iterable(
        itertools.combinations(range(len(already)), n) for n in range(1, len(already) + 1)
    )
    return max(
        (sum(r for r, own in zip(rows, homes, strict=True) if own <= set(h)) + already[list(h)].sum())
        / len(h)
        for h in sets
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000))
def test_the_fullest_module_has_as_little_as_can_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    modules, experts = int(rng.integers(1, 7)), int(rng.integers(1, 9))
    rows = rng.choice([0, 1, 3, 100, 1000], experts) * rng.choice([1.0, 1e-9, 1e9])
    held = [rng.permutation(modules)[: rng.integers(1, modules + 1)] for _ in range(experts)]
    expert = np.repeat(np.arange(experts), [len(h) for h in held])
    module, already = np.concatenate(held), rng.choice([0.0, 5.0, 400.0], modules) * rows.max()
    share = split_load(rows, expert, module, modules, already)
    assert share.shape == expert.shape and (share >= 0).all()
    assert np.bincount(expert, weights=share) == pytest.approx(np.ones(experts))
    load = already + np.bincount(module, weights=share * rows[expert], minlength=modules)
    assert load.max() == pytest.approx(least_by_cuts(rows, expert, module, already), rel=1e-6)


def test_a_layer_against_a_plain_linear_program() -> None:
    weight = zipf(1, 64, 0.8, seed=3)
    plan = rebalance_experts(weight, 80, 1, 1, 16)[0][0]
    module = np.arange(80) // 5
    rows = weight[0] * np.random.default_rng(4).lognormal(0, 0.3, 64)
    own = np.equal.outer(np.arange(64), plan).astype(float)
    solved = linprog(
        np.append(np.zeros(80), 1),
        A_ub=np.hstack([np.equal.outer(np.arange(16), module) * rows[plan], -np.ones((16, 1))]),
        b_ub=np.zeros(16),
        A_eq=np.hstack([own, np.zeros((64, 1))]),
        b_eq=np.ones(64),
    )
    assert loads(rows, plan, module, 16).max() == pytest.approx(solved.fun, rel=1e-6)


def test_by_hand() -> None:
    """Expert 0 is on both modules, expert 1 with 30 rows on module 0 only: 50 rows go 10 to 40."""
    share = split_load(np.array([50, 30]), np.array([0, 0, 1]), np.array([0, 1, 0]), 2)
    assert share == pytest.approx([0.2, 0.8, 1.0])


def test_nothing_to_choose() -> None:
    assert split_load(np.zeros(2), np.array([0, 0, 1]), np.array([0, 1, 0]), 2).tolist() == [0.5, 0.5, 1.0]
    assert split_load(np.array([7, 1]), np.array([0, 1]), np.array([0, 0]), 2).tolist() == [1.0, 1.0]
    assert split_load(np.zeros(2), np.zeros(0, int), np.zeros(0, int), 2).tolist() == []


def test_drifted_loads_gain() -> None:
    """The issue's case: from 1.31 to 1.23 on a plan whose loads have drifted, 6 % less."""
    weight = zipf(6, 256, 0.8, seed=7)
    plans = rebalance_experts(weight, 288, 8, 4, 32)[0]
    drifted = weight * np.random.default_rng(8).lognormal(0, 0.2, weight.shape)
    module = np.arange(288) // 9
    even, split = [], []
    for rows, plan in zip(drifted, plans, strict=True):
        copies = np.bincount(plan)
        even.append(np.bincount(module, weights=(rows / copies)[plan]).max() / rows.sum() * 32)
        split.append(loads(rows, plan, module, 32).max() / rows.sum() * 32)
    assert np.mean(split) < 0.96 * np.mean(even)


@pytest.mark.parametrize(
    "changed, text",
    [
        ({"rows": np.array([1, -1])}, "rows: .* is not allowed; allowed: 2 finite numbers from 0"),
        ({"rows": np.array([1, np.nan])}, "rows: "),
        ({"already": np.zeros(3)}, "already: .* allowed: 2 finite"),
        ({"slot_to_module": np.array([0, 2, 1])}, "slot_to_module: 2 is not allowed; allowed: 0 to 1"),
        ({"slot_to_module": np.array([0])}, r"slot_to_module: shape \(1,\)"),
        ({"slot_to_expert": np.array([0, 5, 1])}, "slot_to_expert: 5 is not allowed; allowed: 0 to 1"),
        ({"slot_to_expert": np.array([0, 0, 0])}, "slot_to_expert: no slot for expert 1, which has 3 rows"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changed: dict[str, Any], text: str) -> None:
    call = {"rows": np.array([2, 3]), "slot_to_expert": np.array([0, 0, 1])}
    call |= {"slot_to_module": np.array([0, 1, 0]), "modules": 2}
    with pytest.raises(ValueError, match=f"^{text}"):
        split_load(**(call | changed))
