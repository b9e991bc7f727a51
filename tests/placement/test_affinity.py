"""The affinity strategy against chains that one can write down, and its assignment against brute force."""

import dataclasses
from itertools import pairwise, permutations

import numpy as np
import pytest

from rayemu.placement import Affinity, Linear, Placement, PlacementProblem, problem_of
from rayemu.placement.quality import steps_apart


def chains(rng: np.random.Generator, layers: int, experts: int, modules: int) -> PlacementProblem:
    """Tokens of a chain go through experts of that chain only, which lie anywhere in their layers."""
    chain = np.stack([rng.permutation(np.arange(experts) % modules) for _ in range(layers)])  # [L, E]
    steps = [np.where(a[:, None] == b, 50.0, 1.0) for a, b in pairwise(chain)]
    return dataclasses.replace(
        problem_of(np.ones((layers, experts), int), modules, 2), transitions=np.array(steps)
    )


def hops(placed: Placement, problem: PlacementProblem, layer: int) -> float:
    """The hops of all steps out of a layer where each expert has one copy."""
    home = np.zeros((problem.layers, problem.experts), int)
    home[placed.layer, placed.expert] = placed.module
    assert problem.transitions is not None
    far = problem.distances[home[layer][:, None], home[layer + 1]]
    return float((problem.transitions[layer] * far).sum())


@pytest.mark.parametrize(("experts", "modules"), [(16, 4), (64, 8)])
def test_chains_stay_on_their_modules(experts: int, modules: int) -> None:
    problem = chains(np.random.default_rng(experts), 5, experts, modules)
    assert problem.transitions is not None
    apart = steps_apart(Affinity().place(problem), problem.transitions, np.arange(modules))
    by_hand = (modules - 1) / (modules - 1 + 50)  # only the single tokens between chains leave
    assert apart == pytest.approx(by_hand)
    linear = steps_apart(Linear().place(problem), problem.transitions, np.arange(modules))
    assert linear.min() > 0.5


@pytest.mark.parametrize("seed", range(5))
def test_a_layer_is_the_best_for_the_one_before(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = dataclasses.replace(
        problem_of(np.ones((2, 6), int), 3, 2),
        transitions=rng.integers(0, 100, (1, 6, 6)),
    )
    placed = Affinity().place(problem)
    first = placed.module[:6]
    least = min(
        sum(
            problem.transitions[0, i, j] * problem.distances[first[i], module[j]]
            for i in range(6)
            for j in range(6)
        )
        for module in set(permutations([0, 0, 1, 1, 2, 2]))
    )
    assert hops(placed, problem, 0) == least


def test_a_further_copy_goes_where_it_saves_most() -> None:
    steps = np.array([[[90, 0, 0], [40, 90, 0], [10, 0, 90]]])  # experts 0, 1 and 2 of layer 0 want expert 0
    problem = dataclasses.replace(problem_of(np.array([[1, 1, 1], [2, 1, 1]]), 3), transitions=steps)
    placed = Affinity().place(problem)
    home = placed.module[:3].tolist()
    assert placed.module[3:5].tolist() == [home[0], home[1]]


def test_one_layer_needs_no_steps() -> None:
    problem = dataclasses.replace(problem_of(np.ones((1, 6), int), 3), transitions=np.zeros((0, 6, 6)))
    assert np.bincount(Affinity().place(problem).module).tolist() == [2, 2, 2]
