"""What plans survive: the formula against trying every failure, and the strategy against its promise."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest

from rayemu.placement import Domains, Linear, Placement, Random, from_columns, problem_of
from rayemu.placement.survival import survival, survives


def tried(placed: Placement, domain: np.ndarray, failures: int) -> list[bool]:
    """Whether a copy of every expert is left, for each set of failed domains."""
    held: dict[tuple[int, int], set[int]] = {}
    for layer, expert, module in zip(placed.layer, placed.expert, placed.module, strict=True):
        held.setdefault((int(layer), int(expert)), set()).add(int(domain[module]))
    return [
        all(homes - set(failed) for homes in held.values())
        for failed in combinations(sorted(set(domain.tolist())), failures)
    ]


@pytest.mark.parametrize("seed", range(10))
def test_the_formula_is_what_trying_all_failures_gives(seed: int) -> None:
    rng = np.random.default_rng(seed)
    modules = int(rng.integers(2, 8))
    copies = rng.integers(1, modules + 1, (2, 5))
    problem = problem_of(copies, modules, int(rng.integers(1, modules + 1)), seed=seed)
    placed = Random().place(problem)
    for domain in (np.arange(modules), problem.module_to_node):
        number = len(set(domain.tolist()))
        survived = [all(tried(placed, domain, failures)) for failures in range(number + 1)]
        assert survives(placed, domain) == survived.index(False) - 1
        for failures in range(number + 1):
            by_hand = np.mean(tried(placed, domain, failures))
            assert survival(placed, domain, failures) == pytest.approx(by_hand)


def test_survival_by_hand() -> None:
    """Two copies a quarter of the ring apart: of 4 failed modules' 6 pairs, 2 are some expert's."""
    placed = from_columns(np.zeros(4, int), np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3]))
    assert survives(placed, np.arange(4)) == 1
    assert survival(placed, np.arange(4), 2) == pytest.approx(4 / 6)
    assert survives(placed, np.array([0, 0, 1, 1])) == 0


def test_parts_of_a_sharded_expert_are_lost_one_by_one() -> None:
    zeros = np.zeros(4, int)
    placed = Placement(zeros, zeros, np.array([0, 0, 0, 1]), np.array([0, 1, 2, 3]))
    assert survives(placed, np.arange(4)) == 0, "part 1 has one copy"


def test_too_many_sets_are_refused() -> None:
    placed = Linear().place(problem_of(np.full(64, 2), 64))
    with pytest.raises(ValueError, match=r"^failures: 32 of 64 domains are \d+ sets"):
        survival(placed, np.arange(64), 32)
    assert survives(placed, np.arange(64)) == 1, "the formula has no such limit"


@pytest.mark.parametrize("of", ["module", "node"])
@pytest.mark.parametrize("failures", [0, 1, 2])
@pytest.mark.parametrize("experts", [1, 7, 16])
def test_any_failures_are_survived_with_the_fewest_copies(of: str, failures: int, experts: int) -> None:
    rng = np.random.default_rng(experts)
    loads = rng.zipf(1.3, (2, experts)).clip(max=1000)
    problem = problem_of(np.full((2, experts), failures + 1), 8, 4, loads)
    placed = Domains(failures, of).place(problem)
    domain = problem.module_to_node if of == "node" else np.arange(8)
    assert survives(placed, domain) == failures, "fewer copies survive fewer failures, by the formula"
    assert (placed.counts(2, experts) == failures + 1).all()
    assert all(tried(placed, domain, failures))


def test_a_small_node_holds_a_copy_of_all_where_two_nodes_must() -> None:
    problem = dataclasses.replace(
        problem_of(np.full(3, 2), 4), module_to_node=np.array([0, 0, 0, 1], np.int32)
    )
    placed = Domains(1, "node").place(problem)
    assert np.bincount(placed.module).tolist() == [1, 1, 1, 3]
    assert survives(placed, problem.module_to_node) == 1


def test_spare_slots_go_to_the_heaviest() -> None:
    loads = np.array([[900.0, 100, 100, 100]])
    placed = Domains(1, "node").place(problem_of(np.full(4, 2), 4, 2, loads, slots=10))
    assert placed.counts(1, 4).tolist() == [[4, 2, 2, 2]]


def test_too_few_slots_or_domains_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^failures: 1 takes 2 copies of each expert, 16 slots .* copies: 2"
    ):
        Domains(1).place(problem_of(np.ones(8, int), 4, 2))
    with pytest.raises(ValueError, match=r"^failures: 2 is not allowed; allowed: 0 to 1, with 2 nodes"):
        Domains(2).place(problem_of(np.full(8, 3), 4, 2))
