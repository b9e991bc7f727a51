"""The QUBO against brute force over all plans, and its coefficients against what they stand for."""

import dataclasses
import logging
import sys
from itertools import product

import numpy as np
import pytest

from rayemu.placement import Qubo, problem_of
from rayemu.placement.filling import level_sizes
from rayemu.placement.qubo import Terms


def cost(
    held: np.ndarray, loads: np.ndarray, copies: np.ndarray, pairs: np.ndarray | None, traffic: float
) -> float:
    """What the docstring says, in plain loops; a plan that breaks the rules costs more than any other."""
    experts, modules = held.shape
    sizes = sorted(held.sum(axis=0))
    if (held.sum(axis=1) != copies).any() or sizes != sorted(
        level_sizes(copies.sum(), np.full(modules, experts))
    ):
        return np.inf
    mean = loads.sum() / modules
    total = 0.0
    for m in range(modules):
        load = sum(loads[e] / copies[e] for e in range(experts) if held[e, m])
        total += (load / mean - 1) ** 2
        if pairs is not None:
            both = sum(pairs[i, j] for i in range(experts) for j in range(i) if held[i, m] and held[j, m])
            total -= traffic * both / (pairs.sum() / 2)
    return total


def best(
    loads: np.ndarray, copies: np.ndarray, modules: int, pairs: np.ndarray | None, traffic: float
) -> float:
    rows = [[row for row in product([0, 1], repeat=modules) if sum(row) == c] for c in copies]
    return min(cost(np.array(held), loads, copies, pairs, traffic) for held in product(*rows))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("traffic", [0.0, 2.0])
def test_small_cases_are_solved_exactly(seed: int, traffic: float) -> None:
    pytest.importorskip("dwave.samplers")
    rng = np.random.default_rng(seed)
    experts, modules = [(6, 3), (8, 2), (5, 3)][seed % 3]
    copies = rng.integers(1, 3, experts) if seed > 2 else np.ones(experts, int)
    loads = rng.zipf(1.5, experts).clip(max=50) * 10.0
    pairs = np.triu(rng.integers(0, 100, (experts, experts)), 1)
    pairs = pairs + pairs.T
    problem = dataclasses.replace(problem_of(copies, modules, loads=loads[None]), coactivation=pairs[None])
    placed = Qubo(traffic=traffic).place(problem)
    held = np.zeros((experts, modules), int)
    held[placed.expert, placed.module] = 1
    found = cost(held, loads, copies, pairs, traffic)
    assert found == pytest.approx(best(loads, copies, modules, pairs, traffic))


def test_the_coefficients_are_the_cost() -> None:
    rng = np.random.default_rng(0)
    loads, copies, sizes = rng.random(5) * 10, np.array([1, 2, 1, 1, 2]), np.array([3, 2, 2])
    pairs = np.triu(rng.integers(0, 9, (5, 5)), 1)
    pairs = pairs + pairs.T
    terms = Terms(loads, copies, sizes, pairs, 1.5)
    linear, (u, v, weight) = terms.quadratic(1.0)
    gaps = []
    for _ in range(200):
        held = np.zeros((5, 3), int)
        for expert in range(5):
            held[expert, rng.choice(3, copies[expert], replace=False)] = 1
        if held.sum(axis=0).tolist() == sizes.tolist():
            bits = held.ravel()
            energy = linear @ bits + (weight * bits[u] * bits[v]).sum()
            gaps.append(energy - cost(held, loads, copies, pairs, 1.5))
            assert terms.objective(held.astype(bool)) == pytest.approx(cost(held, loads, copies, pairs, 1.5))
    assert len(gaps) > 5 and np.ptp(gaps) < 1e-9, "but for a constant"


def test_mended_plans_are_told(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("dwave.samplers")
    problem = problem_of(np.ones(24, int), 8, loads=np.arange(24.0)[None] + 1)
    with caplog.at_level(logging.WARNING):
        placed = Qubo(reads=1, sweeps=1, penalty=1e-6).place(problem)
    assert "none of 3 reads kept the rules in layer 0" in caplog.text
    assert np.bincount(placed.module).tolist() == [3] * 8


def test_reads_and_sweeps_reach_the_annealer(monkeypatch: pytest.MonkeyPatch) -> None:
    samplers = pytest.importorskip("dwave.samplers")
    sample, asked = samplers.SimulatedAnnealingSampler.sample, []

    def noted(self: object, *bits: object, **how: int) -> object:
        asked.append((how["num_reads"], how["num_sweeps"]))
        return sample(self, *bits, **how)

    monkeypatch.setattr(samplers.SimulatedAnnealingSampler, "sample", noted)
    Qubo(reads=3, sweeps=70).place(problem_of(np.ones(4, int), 2))
    assert asked == [(3, 70)] * 3, "at half, once and twice the penalty"


def test_what_it_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="up to 4096 experts x modules, and there are 256 x 32"):
        Qubo().place(problem_of(np.ones(256, int), 32))
    with pytest.raises(ValueError, match=r"^traffic: 1.0 needs .*\(coactivation\)"):
        Qubo(traffic=1.0).place(problem_of(np.ones(4, int), 2))
    monkeypatch.setitem(sys.modules, "dwave.samplers", None)
    with pytest.raises(ValueError, match=r"pip install 'rayemu\[plan\]'"):
        Qubo().place(problem_of(np.ones(4, int), 2))
