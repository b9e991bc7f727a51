"""Hash routing: balanced, and nothing but the row counts."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from rayemu.routing import Context, Gate, make_router

GATE = Gate(np.zeros((16, 64), np.float32))


@pytest.mark.parametrize("k", [1, 2, 8])
def test_experts_are_used_alike(k: int) -> None:
    x = np.random.default_rng(0).standard_normal((20_000, 16), dtype=np.float32)
    experts, weights = make_router("hash", 64, top_k=k).route(x, GATE)
    assert experts.shape == (20_000, k) and (np.sort(experts)[:, 1:] > np.sort(experts)[:, :-1]).all()
    assert (weights == np.float32(1 / k)).all()
    assert stats.chisquare(np.bincount(experts.ravel(), minlength=64)).pvalue > 0.001


def test_neighbouring_rows_have_nothing_in_common() -> None:
    x = np.random.default_rng(1).standard_normal((20_000, 16), dtype=np.float32)
    router = make_router("hash", 64, top_k=1)
    before = router.route(x, GATE).experts
    x[:, 3] = np.nextafter(x[:, 3], np.float32(9))
    same = int((router.route(x, GATE).experts == before).sum())
    assert stats.binomtest(same, 20_000, 1 / 64).pvalue > 0.001


def test_equal_rows_go_the_same_way_in_every_layer_and_the_gate_is_not_asked() -> None:
    x = np.repeat(np.random.default_rng(2).standard_normal((30, 16), dtype=np.float32), 2, axis=0)
    router = make_router("hash", 64, top_k=4)
    first = router.route(x, GATE).experts
    np.testing.assert_array_equal(first[::2], first[1::2])
    other = Gate(np.random.default_rng(3).standard_normal((16, 64), dtype=np.float32))
    np.testing.assert_array_equal(router.route(x, other, Context(layer=5)).experts, first)


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"routing.top_k is 9; allowed: 1 to 8"):
        make_router("hash", 8, top_k=9)
    assert np.sort(
        make_router("hash", 8, top_k=8)
        .route(np.ones((1, 2), np.float32), Gate(np.zeros((2, 8), np.float32)))
        .experts
    ).tolist() == [list(range(8))]
