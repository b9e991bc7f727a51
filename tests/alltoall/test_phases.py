"""Phases of an exchange: against sums, against brute force on small matrices, against the bounds."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayemu.alltoall import Phases, permutation_phases, rotation_phases


def fullest_port(matrix: np.ndarray) -> int:
    return max([*matrix.sum(axis=0).tolist(), *matrix.sum(axis=1).tolist(), 0])


def check(matrix: np.ndarray, phases: Phases) -> None:
    """Phases are partial permutations that together send the matrix, each as long as its largest transfer."""
    rebuilt = np.zeros(matrix.shape, np.int64)
    for receivers, sent, duration in zip(*phases, strict=True):
        senders = np.flatnonzero(receivers >= 0)
        assert len(set(receivers[senders].tolist())) == len(senders) > 0
        assert (sent[receivers < 0] == 0).all() and (sent[senders] > 0).all()
        assert sent.max() == duration
        rebuilt[senders, receivers[senders]] += sent[senders]
    assert np.array_equal(rebuilt, matrix)
    assert (np.diff(phases.duration) <= 0).all(), "the longest first"
    assert len(phases.receiver) == len(phases.sent) == len(phases.duration)


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    """Square ones of 0 to 9 modules: dense, sparse, with one large number, with the largest there may be."""
    modules = draw(st.integers(0, 9))
    most = draw(st.sampled_from([1, 3, 1000, 2**40, 2**54]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    full = rng.random((modules, modules)) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    drawn: np.ndarray = rng.integers(0, most, (modules, modules), endpoint=True) * full
    return drawn


@settings(max_examples=300, deadline=None)
@given(matrices())
def test_phases_send_the_matrix_in_the_time_of_the_fullest_port(matrix: np.ndarray) -> None:
    before, modules = matrix.copy(), len(matrix)
    phases = permutation_phases(matrix)
    check(matrix, phases)
    assert phases.total() == fullest_port(matrix)
    assert len(phases.duration) <= (modules - 1) ** 2 + 1
    assert np.array_equal(matrix, before), "what is given is left alone"


@settings(max_examples=200, deadline=None)
@given(matrices())
def test_rotation_sends_the_matrix_in_at_most_a_phase_for_each_module(matrix: np.ndarray) -> None:
    phases, modules = rotation_phases(matrix), len(matrix)
    check(matrix, phases)
    assert len(phases.duration) <= modules
    by_step = [max(int(matrix[m, (m + s) % modules]) for m in range(modules)) for s in range(modules)]
    assert phases.total() == sum(by_step) >= fullest_port(matrix)


def fewest_steps(matrix: tuple[tuple[int, ...], ...]) -> int:
    """Steps of one byte per port that any order needs, by looking at all of them."""
    modules = len(matrix)
    states, steps = {matrix}, 0
    nothing = tuple((0,) * modules for _ in range(modules))
    while nothing not in states:
        following = set()
        for state in states:
            for order in itertools.permutations(range(modules)):
                rows = [list(row) for row in state]
                for m, to in enumerate(order):
                    rows[m][to] = max(rows[m][to] - 1, 0)
                following.add(tuple(map(tuple, rows)))
        states, steps = following, steps + 1
    return steps


@pytest.mark.parametrize("seed", range(12))
def test_no_order_of_a_small_exchange_is_quicker(seed: int) -> None:
    matrix = np.random.default_rng(seed).integers(0, 3, (3, 3))
    assert permutation_phases(matrix).total() == fewest_steps(tuple(map(tuple, matrix.tolist())))


def test_phases_by_hand() -> None:
    """Two large transfers that conflict with nothing go first and whole; the small ones follow."""
    matrix = np.array([[0, 100, 1], [1, 0, 100], [100, 1, 0]])
    phases = permutation_phases(matrix)
    assert phases.receiver.tolist() == [[1, 2, 0], [2, 0, 1]]
    assert phases.duration.tolist() == [100, 1]
    # everyone sends to one: its port is the bound, and nobody can send beside another
    many_to_one = np.array([[0, 0, 0], [5, 0, 0], [7, 0, 0]])
    phases = permutation_phases(many_to_one)
    assert phases.total() == 12 and (np.count_nonzero(phases.receiver >= 0, axis=1) == 1).all()
    # equal amounts, none to oneself: rotation is as quick
    even = np.full((6, 6), 4096) - np.diag([4096] * 6)
    assert rotation_phases(even).total() == permutation_phases(even).total() == 5 * 4096
    assert len(permutation_phases(even).duration) == 5
    assert permutation_phases(np.zeros((4, 4))).total() == 0 and permutation_phases([[3.0]]).total() == 3  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (np.zeros((2, 3)), r"shape \(2, 3\) is not allowed; allowed: square"),
        (np.zeros(4), r"shape \(4,\)"),
        ([[0, -1], [0, 0]], "whole numbers from 0 on"),
        ([[0, 0.5], [0, 0]], "whole numbers from 0 on"),
        ([[0, np.nan], [0, 0]], "whole numbers from 0 on"),
        ([[0, np.inf], [0, 0]], "whole numbers from 0 on"),
        ([[0, 2**61], [2**61, 0]], "count in larger units"),
    ],
)
def test_what_is_no_matrix_of_bytes_is_refused(matrix: np.ndarray, says: str) -> None:
    for phases in (permutation_phases, rotation_phases):
        with pytest.raises(ValueError, match=says):
            phases(matrix)


def test_128_modules_take_a_moment() -> None:
    """0.3 s on one core when idle; large transfers are seldom cut, so there are few phases."""
    matrix = np.random.default_rng(1).integers(0, 1 << 20, (128, 128))
    began = time.perf_counter()
    phases = permutation_phases(matrix)
    assert time.perf_counter() - began < 10
    check(matrix, phases)
    assert phases.total() == fullest_port(matrix)
    assert len(phases.duration) < 128 * 16, "one for each entry would be 16,384"
