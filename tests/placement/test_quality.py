"""Measures of a plan, against plans small enough to count by hand and against plain loops."""

import numpy as np
import pytest

from rayemu.placement import Random, from_columns, problem_of
from rayemu.placement.quality import (
    load_deviation,
    mean_hops,
    messages,
    pairs_apart,
    replica_hit_rate,
    ring,
    steps_apart,
)

NODES = np.array([0, 0, 1, 1])
# Two layers of three experts on four modules; expert 0 of layer 0 has a replica on the other node.
PLAN = from_columns(
    np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 2, 0, 1, 2]), np.array([0, 3, 0, 2, 1, 2, 2])
)


def test_pairs_by_hand() -> None:
    pairs = np.zeros((2, 3, 3))
    for one, other, tokens in [(0, 1, 6), (0, 2, 3), (1, 2, 1)]:
        pairs[:, one, other] = pairs[:, other, one] = tokens
    assert pairs_apart(PLAN, pairs, np.arange(4)) == pytest.approx([0.4, 0.9])  # 3 + 1; 6 + 3
    assert pairs_apart(PLAN, pairs, NODES) == pytest.approx([0.1, 0.9])  # 2 with 0's replica; as before


def test_steps_by_hand() -> None:
    steps = np.array([[[4, 2, 0], [1, 1, 0], [0, 0, 2]]])
    assert steps_apart(PLAN, steps, np.arange(4)) == pytest.approx([0.8])  # only 2 to 2 stays
    assert steps_apart(PLAN, steps, NODES) == pytest.approx([0.1])  # only 1 to 1 leaves


def test_hops_and_hits_by_hand() -> None:
    loads, far = np.array([[8.0, 4.0, 4.0], [0.0, 0.0, 1.0]]), problem_of(np.ones(3, int), 4, 2).distances
    # Expert 0 from modules 0..3: 0 1 1 0; experts 1 and 2: 0 1 2 2 and 2 2 0 1
    assert mean_hops(PLAN, loads, far) == pytest.approx([(8 * 0.5 + 4 * 1.25 + 4 * 1.25) / 16, 1.25])
    assert replica_hit_rate(PLAN, loads, far) == pytest.approx(
        [0.5 * 0.5, 0.0]
    )  # modules 2 and 3, half the rows


def test_deviation_by_hand() -> None:
    loads = np.array([[8.0, 4.0, 4.0], [0.0, 3.0, 1.0]])
    by_hand = [np.std([8, 0, 4, 4]) / 4, np.std([0, 0, 4, 0]) / 1]
    assert load_deviation(PLAN, loads, 4) == pytest.approx(by_hand)


def test_messages_by_hand() -> None:
    choices, far = np.array([[[0, 1]], [[0, 2]], [[1, -1]]]), problem_of(np.ones(3, int), 4, 2).distances
    by_hand = [  # for homes 0 to 3; in brackets what stays at home
        [0, 1, 2, 1],  # experts 0 and 1: (0); 0; 3 and 0; (3) and 0
        [1, 2, 1, 1],  # experts 0 and 2: (0) and 2; 0 and 2; 3 and (2); (3) and 2
        [0, 1, 1, 1],  # expert 1: (0); 0; 0; 0
    ]
    assert messages(PLAN, choices, np.arange(4), far) == pytest.approx([np.mean(by_hand)])
    by_node = [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]
    assert messages(PLAN, choices, NODES, far) == pytest.approx([np.mean(by_node)])


def test_two_choices_are_a_pair_apart_or_one_message() -> None:
    """With one copy each, a token goes to 1 + (share of pairs apart) modules, its home one of M alike."""
    rng = np.random.default_rng(0)
    problem = problem_of(np.ones((1, 12), int), 4)
    placed = Random().place(problem)
    choices = np.array([rng.choice(12, 2, replace=False) for _ in range(500)])
    pairs = np.zeros((1, 12, 12))
    for one, other in choices:
        pairs[0, one, other] += 1
        pairs[0, other, one] += 1
    apart = pairs_apart(placed, pairs, np.arange(4))
    found = messages(placed, choices[:, None], np.arange(4), problem.distances)
    assert found == pytest.approx((1 + apart) * (1 - 1 / 4))


def test_a_ring_of_nodes() -> None:
    far = ring(np.repeat(np.arange(5), 2))
    assert far[0].tolist() == [0, 1, 2, 2, 3, 3, 3, 3, 2, 2]
    assert (far == far.T).all()
