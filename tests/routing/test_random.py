"""The random baseline: uniform, and another for every seed and layer."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rayemu.routing import Context, Gate, make_router

GATE = Gate(np.zeros((16, 32), np.float32))
X = np.random.default_rng(0).standard_normal((20_000, 16), dtype=np.float32)


@pytest.mark.parametrize(("seed", "layer"), [(0, 0), (1, 0), (0, 1), (2**64 - 1, 99)])
def test_experts_are_used_alike(seed: int, layer: int) -> None:
    router = make_router("random", 32, top_k=3, seed=seed)
    experts, weights = router.route(X, GATE, Context(layer=layer))
    assert (np.sort(experts)[:, 1:] > np.sort(experts)[:, :-1]).all()
    assert (weights == np.float32(1 / 3)).all()
    assert stats.chisquare(np.bincount(experts.ravel(), minlength=32)).pvalue > 0.001


@pytest.mark.parametrize("other", [(1, 0), (0, 1)])
def test_seeds_and_layers_have_nothing_in_common(other: tuple[int, int]) -> None:
    """Of 3 of 32 experts, 3 * 3/32 are expected to be the same."""
    first = make_router("random", 32, top_k=3).route(X, GATE).experts
    router = make_router("random", 32, top_k=3, seed=other[0])
    second = router.route(X, GATE, Context(layer=other[1])).experts
    same = (first[:, :, None] == second[:, None, :]).sum(axis=(1, 2))
    wanted = stats.hypergeom(32, 3, 3).pmf(range(4)) * len(X)
    assert stats.chisquare(np.bincount(same, minlength=4), wanted).pvalue > 0.001


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"routing.top_k is 0; allowed: 1 to 8"):
        make_router("random", 8, top_k=0)
    with pytest.raises(ValueError, match=r"routing.seed is -1; allowed: 0 and above"):
        make_router("random", 8, top_k=1, seed=-1)
