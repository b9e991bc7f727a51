"""What every router of scope "row" owes: a row is routed the same in any company, order and place."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from rayemu.routing import ROUTERS, Context, Gate, Router, Routing, make_router

KINDS = [kind for kind, strategy in ROUTERS.items() if strategy.scope == "row"]
# Besides the defaults of each.
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("grouped_topk", {"groups": 4}),
    ("grouped_topk", {"groups": 16, "renormalise": False}),
    ("hierarchical_topk", {"groups": 4, "top_groups": 2}),
    ("hierarchical_topk", {"groups": 16, "top_groups": 5, "renormalise": False}),
    ("top_p", {"p": 0.7, "renormalise": True}),
    ("noisy_topk", {"renormalise": False, "seed": 3}),
]
CASES = [(kind, {}) for kind in KINDS] + OTHERS
ROWS, EXPERTS = 150, 32


@cache
def _whole(
    kind: str, params: tuple[tuple[str, Any], ...], k: int
) -> tuple[np.ndarray, Gate, Router, Routing]:
    rng = np.random.default_rng(9)
    gate = Gate(rng.standard_normal((40, EXPERTS), dtype=np.float32) / 4)
    x = rng.standard_normal((ROWS, 40), dtype=np.float32)
    router = make_router(kind, EXPERTS, top_k=k, **dict(params))
    return x, gate, router, router.route(x.copy(), gate, Context(layer=2))


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(("kind", "params"), CASES)
def test_rows_do_not_depend_on_company_or_order(kind: str, params: dict[str, Any], k: int) -> None:
    x, gate, router, whole = _whole(kind, tuple(params.items()), k)
    rng = np.random.default_rng(k)
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            for count in (1, 2, 3, 16, 77, ROWS):
                some = rng.choice(ROWS, count, replace=False)
                found = router.route(x[some], gate, Context(layer=2))
                np.testing.assert_array_equal(found.experts, whole.experts[some])
                np.testing.assert_array_equal(
                    found.weights.view(np.uint32), whole.weights[some].view(np.uint32)
                )


@pytest.mark.parametrize(("kind", "params"), CASES)
def test_scores_are_all_that_a_choice_needs(kind: str, params: dict[str, Any]) -> None:
    """Collected from several places, in any order, they give what each row got: what a coordinator does."""
    x, gate, router, whole = _whole(kind, tuple(params.items()), 5)
    parts = [router.scores(x[low : low + 40], gate) for low in range(0, ROWS, 40)]
    assert all(part.dtype == np.float32 for part in parts)
    found = router.choose(np.concatenate(parts), gate, Context(layer=2))
    np.testing.assert_array_equal(found.experts, whole.experts)
    np.testing.assert_array_equal(found.weights, whole.weights)


@pytest.mark.parametrize("k", [1, 5, EXPERTS])
@pytest.mark.parametrize(("kind", "params"), CASES)
def test_choices_are_different_experts_of_weights_that_count(
    kind: str, params: dict[str, Any], k: int
) -> None:
    if k == EXPERTS and params.get("top_groups"):
        return  # not all experts are open
    _, _, router, (experts, weights) = _whole(kind, tuple(params.items()), k)
    assert experts.dtype == np.int32 and weights.dtype == np.float32
    assert experts.shape == weights.shape and experts.shape[1] <= router.most(EXPERTS)
    for row in experts.tolist():
        chosen = [e for e in row if e >= 0]
        assert len(set(chosen)) == len(chosen) >= 1 and max(chosen) < EXPERTS
        assert row == chosen + [-1] * (len(row) - len(chosen)), "no choice comes last"
    assert np.isfinite(weights).all() and (weights >= 0).all() and not weights[experts < 0].any()


@pytest.mark.parametrize(("kind", "params"), CASES)
def test_nothing_is_kept_and_nothing_of_the_caller_s_changes(kind: str, params: dict[str, Any]) -> None:
    x, gate, router, whole = _whole(kind, tuple(params.items()), 5)
    rows, weight, context = x.copy(), gate.weight.copy(), Context(layer=2)
    again = router.route(x, gate, context)
    np.testing.assert_array_equal(again.experts, whole.experts)
    np.testing.assert_array_equal(x, rows)
    np.testing.assert_array_equal(gate.weight, weight)
    assert router.new_state(EXPERTS) is None and context.state is None
    none = router.route(x[:0], gate)
    assert none.experts.shape == none.weights.shape == (0, 5)
