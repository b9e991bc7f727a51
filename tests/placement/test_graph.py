"""The graph strategy against planted communities, brute force, and hand-made cases."""

import dataclasses
import sys
from itertools import permutations

import numpy as np
import pytest

from rayemu.placement import Graph, Linear, problem_of
from rayemu.placement.partition import exchanged
from rayemu.placement.quality import pairs_apart


def symmetric(rng: np.random.Generator, experts: int) -> np.ndarray:
    weights = np.triu(rng.integers(0, 100, (experts, experts)), 1)
    return (weights + weights.T)[None].astype(float)


def planted(rng: np.random.Generator, experts: int, communities: int) -> tuple[np.ndarray, np.ndarray]:
    """Co-activation [1, E, E] that is 100 inside communities of shuffled experts [E] and 1 across them."""
    community = rng.permutation(np.arange(experts) % communities)
    weights = np.where(community[:, None] == community, 100.0, 1.0)
    np.fill_diagonal(weights, 0)
    return weights[None], community


@pytest.mark.parametrize(("experts", "modules", "nodes"), [(32, 8, 2), (64, 8, 1), (256, 32, 4)])
def test_planted_communities_are_found(experts: int, modules: int, nodes: int) -> None:
    pytest.importorskip("pymetis")
    weights, community = planted(np.random.default_rng(experts), experts, modules)
    problem = dataclasses.replace(problem_of(np.ones(experts, int), modules, nodes), coactivation=weights)
    placed = Graph().place(problem)
    assert len(set(zip(community.tolist(), placed.module.tolist(), strict=True))) == modules, (
        "one module each"
    )


@pytest.mark.parametrize("seed", range(5))
def test_small_graphs_are_cut_as_brute_force_cuts_them(seed: int) -> None:
    pytest.importorskip("pymetis")
    weights = symmetric(np.random.default_rng(seed), 8)
    problem = dataclasses.replace(problem_of(np.ones(8, int), 2), coactivation=weights)
    placed = Graph().place(problem)
    least = min(
        sum(weights[0, i, j] for i in half for j in range(8) if j not in half)
        for half in {tuple(sorted(order[:4])) for order in permutations(range(8))}
    )
    cut = pairs_apart(placed, weights, np.arange(2))[0] * weights.sum() / 2
    assert cut == pytest.approx(least, rel=0.03)  # a local optimum, within 3 % on these


@pytest.mark.parametrize(("experts", "modules"), [(7, 3), (64, 16), (5, 8), (33, 8)])
def test_modules_are_level(experts: int, modules: int) -> None:
    pytest.importorskip("pymetis")
    weights = symmetric(np.random.default_rng(experts), experts) ** 4  # very uneven
    problem = dataclasses.replace(problem_of(np.ones(experts, int), modules, 2), coactivation=weights)
    held = np.bincount(Graph().place(problem).module, minlength=modules)
    assert held.max() - held.min() <= 1


def test_a_further_copy_goes_to_its_partners() -> None:
    pytest.importorskip("pymetis")
    weights = np.zeros((1, 6, 6))
    for one, other, tokens in [(0, 1, 9), (0, 2, 9), (3, 4, 9), (3, 5, 9), (0, 4, 5)]:
        weights[0, one, other] = weights[0, other, one] = tokens
    copies = np.array([2, 1, 1, 1, 1, 1])
    problem = dataclasses.replace(problem_of(copies, 2), coactivation=weights)
    placed = Graph().place(problem)
    assert pairs_apart(placed, weights, np.arange(2))[0] == 0


@pytest.mark.parametrize("seed", range(20))
def test_exchanges_never_lose_and_end_where_no_exchange_gains(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, before = symmetric(rng, 10)[0], rng.permutation(np.arange(10) % 3)

    def inside(part: np.ndarray) -> float:
        return float(weights[part[:, None] == part].sum())

    after = exchanged(weights, before)
    assert np.bincount(after).tolist() == np.bincount(before).tolist()
    assert inside(after) >= inside(before)
    for u in range(10):
        for v in range(u):
            other = after.copy()
            other[u], other[v] = after[v], after[u]
            assert inside(other) <= inside(after)


def test_it_is_not_worse_than_linear() -> None:
    pytest.importorskip("pymetis")
    for seed in range(10):
        weights = symmetric(np.random.default_rng(seed), 24)
        problem = dataclasses.replace(problem_of(np.ones(24, int), 6, 2), coactivation=weights)
        cut = {
            strategy: pairs_apart(strategy.place(problem), weights, problem.module_to_node)[0]
            for strategy in (Graph(), Linear())
        }
        assert cut[Graph()] <= cut[Linear()]


def test_without_pymetis_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    problem = dataclasses.replace(problem_of(np.ones(4, int), 2), coactivation=np.ones((1, 4, 4)))
    with pytest.raises(ValueError, match=r"pip install 'rayemu\[plan\]'"):
        Graph().place(problem)
