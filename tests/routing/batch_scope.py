"""What tests of routers of scope "batch" share: contexts, and what holds for all of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from rayemu.routing import Context, Gate, Router, Routing, make_router

INF, NAN = math.inf, math.nan
NO_GATE = Gate(np.zeros((1, 1), np.float32))


def context(
    rows: int, experts: int, modules: int = 4, nodes: int = 2, state: Any = None, batch: int = 0
) -> Context:
    """Rows in turn at home at each module, experts in even blocks, modules in even nodes."""
    holders = np.arange(experts) * modules // experts == np.arange(modules)[:, None]  # [M, E]
    node = np.arange(modules, dtype=np.int32) * nodes // modules
    return Context(0, batch, (np.arange(rows) % modules).astype(np.int16), holders, node, state)


def choose(router: Router, logits: Any, given: Context | None = None) -> Routing:
    """Choices from logits [T, E]."""
    scores = np.array(logits, np.float32)
    return router.choose(scores, NO_GATE, context(*scores.shape) if given is None else given)


def normal(rows: int, experts: int, seed: int = 0) -> np.ndarray:
    """Logits [T, E] as a random gate gives them."""
    return np.random.default_rng(seed).standard_normal((rows, experts), dtype=np.float32)


@st.composite
def odd_logits(draw: st.DrawFn, experts: int = 8) -> np.ndarray:
    """Logits [T, E] with ties, infinities, NaN and huge numbers, or as a gate gives them."""
    if draw(st.booleans()):
        return normal(draw(st.integers(1, 9)), experts, draw(st.integers(0, 1000)))
    value = st.sampled_from([-INF, -INF, INF, NAN, -1e30, 3e38, 0.0, 1.0])
    row = st.lists(value, min_size=experts, max_size=experts)
    return np.array(draw(st.lists(row, min_size=1, max_size=5)), np.float32)


def check_routing(routing: Routing, logits: np.ndarray, top_k: int) -> None:
    """K different experts or -1 after them; weights finite, >= 0, 0 at -1; NaN where logits have it."""
    assert routing.experts.shape == routing.weights.shape == (len(logits), top_k)
    assert routing.experts.dtype == np.int32 and routing.weights.dtype == np.float32
    for row, chosen, weights in zip(logits, routing.experts.tolist(), routing.weights, strict=True):
        there = [e for e in chosen if e >= 0]
        assert there and chosen == there + [-1] * (top_k - len(there))
        assert len({*there}) == len(there) and max(there) < len(row)
        if np.isnan(row).any():
            assert np.isnan(weights).any()
        else:
            assert np.isfinite(weights).all() and (weights >= 0).all()
            assert (weights[len(there) :] == 0).all()


def same(one: Routing, other: Routing) -> None:
    """Equal to the bit, NaN too."""
    np.testing.assert_array_equal(one.experts, other.experts)
    np.testing.assert_array_equal(one.weights.view(np.uint32), other.weights.view(np.uint32))


def router(kind: str, experts: int = 8, **params: Any) -> Router:
    """A checked router."""
    return make_router(kind, experts, **params)
