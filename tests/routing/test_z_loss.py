"""The router z-loss, against SciPy's logsumexp."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from rayemu.routing import router_z_loss


@given(st.integers(1, 9), st.integers(1, 70), st.floats(0, 500), st.integers(0, 2**31))
def test_equals_scipy(rows: int, experts: int, spread: float, seed: int) -> None:
    logits = (spread * np.random.default_rng(seed).standard_normal((rows, experts))).astype(np.float32)
    wanted = np.mean(logsumexp(logits.astype(np.float64), axis=1) ** 2)
    assert router_z_loss(logits) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.filterwarnings("error")
def test_by_hand_and_at_its_ends() -> None:
    # ln(1 + 3) and ln(2 + 2): both ln 4
    logits = np.log(np.array([[1, 3], [2, 2]], np.float32))
    assert router_z_loss(logits) == pytest.approx(math.log(4) ** 2, rel=1e-6)
    inf = math.inf
    assert router_z_loss(np.array([[-inf, 0.0]], np.float32)) == 0
    for row in ([-inf, -inf], [inf, 0.0], [inf, -inf]):
        assert router_z_loss(np.array([row], np.float32)) == inf
    assert math.isnan(router_z_loss(np.array([[math.nan, 0.0]], np.float32)))
    assert math.isnan(router_z_loss(np.empty((0, 4), np.float32)))
