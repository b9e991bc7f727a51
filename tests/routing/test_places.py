"""A choice made in several places is the one that is made in one, to the bit, on any kernel."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from rayemu.numerics import runnable
from rayemu.routing import ROUTERS, Context, Gate, Router, make_router, offer_top_k

MERGING = [
    ("softmax_topk", {"top_k": 3}),
    ("softmax_topk", {"top_k": 2, "scaling": 2.5}),
    ("grouped_topk", {"top_k": 2, "groups": 4}),
]
LIMITED = [
    ("hierarchical_topk", {"groups": 4, "top_groups": 2}),
    ("softmax_group_topk", {"groups": 8, "top_groups": 3}),
    ("softmax_group_topk", {"groups": 4, "top_groups": 1, "renormalise": True}),
    ("sigmoid_group_topk", {"groups": 4, "top_groups": 2}),
]


def a_gate(width: int, experts: int, biased: bool = True) -> Gate:
    rng = np.random.default_rng([5, width, experts])
    weight = rng.standard_normal((width, experts), dtype=np.float32)
    bias = rng.standard_normal((2, experts), dtype=np.float32) if biased else (None, None)
    return Gate(weight, *bias)


def rows(count: int, width: int) -> np.ndarray:
    return np.random.default_rng([6, count]).standard_normal((count, width), dtype=np.float32)


def in_parts(router: Router, gate: Gate, x: np.ndarray, owner: np.ndarray) -> Any:
    """Each part scores its own experts, offers its best, and the offers are merged."""
    offers = []
    for part in np.unique(owner):
        experts = np.flatnonzero(owner == part)
        offers.append(offer_top_k(gate.logits_of(x, experts), experts, router.top_k))
    return router.merge(offers)


def check(router: Router, gate: Gate, x: np.ndarray, parts: int) -> None:
    whole = router.route(x, gate)
    owner = np.random.default_rng(parts).integers(parts, size=gate.weight.shape[1])
    merged = in_parts(router, gate, x, owner)
    assert np.array_equal(merged.experts, whole.experts) and merged.experts.dtype == np.int32
    assert merged.weights.tobytes() == whole.weights.tobytes()


def every_shape() -> None:
    """What is run once for each kernel: narrow and ragged gates, one row and many."""
    for width, experts in ((16, 8), (64, 64), (33, 72), (300, 128), (256, 200), (264, 512)):
        gate = a_gate(width, experts)
        for count in (1, 7, 130):
            x = rows(count, width)
            whole = gate.logits(x)
            for few in (np.array([experts - 1]), np.arange(0, experts, 3), np.arange(experts)):
                assert gate.logits_of(x, few).tobytes() == whole[:, few].tobytes(), (width, experts, count)
            for parts in (4, 13):
                check(make_router("softmax_topk", experts, top_k=min(8, experts)), gate, x, parts)


@pytest.mark.parametrize("kernel", ["Haswell", "SkylakeX", "Zen", "Prescott"])
def test_parts_of_the_gate_are_the_whole_on_every_kernel(kernel: str) -> None:
    if kernel not in runnable():
        pytest.skip(f"this processor does not run {kernel}")
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "2"}
    command = [sys.executable, "-c", "from tests.routing.test_places import every_shape; every_shape()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("kind", "params"), MERGING)
def test_merged_choices_are_those_of_one_place(kind: str, params: dict[str, Any]) -> None:
    router = make_router(kind, 16, **params)
    assert router.merges
    gate = a_gate(24, 16)
    for parts in (1, 3, 16):
        check(router, gate, rows(50, 24), parts)
    ties = Gate(np.repeat(a_gate(24, 4).weight, 4, axis=1))  # each logit four times: lower experts win
    x = rows(20, 24)
    x[3], x[4, 0], x[5] = 0.0, np.nan, np.inf
    with np.errstate(invalid="ignore"):
        for parts in (2, 5):
            check(router, ties, x, parts)


@pytest.mark.parametrize(("kind", "params"), LIMITED)
@pytest.mark.parametrize("biased", [False, True])
def test_choices_within_given_groups_are_those_of_one_place(
    kind: str, params: dict[str, Any], biased: bool
) -> None:
    router = make_router(kind, 32, top_k=4, **params)
    assert router.group_limit == (params["groups"], params["top_groups"])
    gate, x, context = a_gate(24, 32, biased), rows(60, 24), Context()
    whole = router.route(x, gate)
    groups = router.open_groups(router.scores(x, gate), gate, context)
    assert groups.shape == (60, params["top_groups"])
    per = 32 // params["groups"]
    assert all({*chosen} <= {*opened} for chosen, opened in zip(whole.experts // per, groups, strict=True))
    for given in (groups.astype(np.uint8), groups[:, ::-1]):  # as it travels; the order is no matter
        parts = [router.choose_within(router.scores(x[a:b], gate), gate, context, given[a:b])
                 for a, b in ((0, 1), (1, 20), (20, 60))]  # fmt: skip
        assert np.array_equal(np.concatenate([p.experts for p in parts]), whole.experts)
        assert np.concatenate([p.weights for p in parts]).tobytes() == whole.weights.tobytes()


def test_routers_say_where_they_can_be() -> None:
    plain = {}
    for kind in ROUTERS:
        with contextlib.suppress(ValueError):  # some need more than a number of choices
            plain[kind] = make_router(kind, 16, top_k=2)
    assert {kind for kind, router in plain.items() if router.merges} == {"softmax_topk", "grouped_topk"}
    assert not make_router("softmax_topk", 16, top_k=2, renormalise=False).merges  # needs all logits
    assert not any(router.group_limit for router in plain.values())  # all groups open
