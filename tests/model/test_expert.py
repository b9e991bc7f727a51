"""One expert: the formulas in float64, hand-made numbers, and rows that ignore each other."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy.special import erf
from threadpoolctl import threadpool_limits

from rayemu.model import Expert, expert_forward
from rayemu.model import expert as module
from rayemu.numerics import scratch

ACTIVATIONS = ["swiglu", "clamped_swiglu", "gelu", "relu"]


def _expert(width: int, inner: int, activation: str, seed: int = 0) -> Expert:
    rng = np.random.default_rng(seed)
    columns = inner * (2 if "swiglu" in activation else 1)
    up = rng.standard_normal((width, columns), dtype=np.float32) / np.float32(width**0.5)
    down = rng.standard_normal((inner, width), dtype=np.float32) / np.float32(inner**0.5)
    if activation != "clamped_swiglu":
        return Expert(up, down, activation)
    biases = (rng.standard_normal(n, dtype=np.float32) for n in (columns, width))  # gpt-oss has both
    return Expert(up, down, activation, *biases)


def _in_float64(expert: Expert, x: np.ndarray) -> np.ndarray:
    hidden = x.astype(np.float64) @ expert.up.astype(np.float64)
    if expert.up_bias is not None:
        hidden += expert.up_bias
    if expert.activation == "swiglu":
        gate, up = np.split(hidden, 2, axis=1)
        hidden = gate / (1 + np.exp(-gate)) * up
    elif expert.activation == "clamped_swiglu":
        gate, up = np.split(hidden, 2, axis=1)
        gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
        hidden = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
    elif expert.activation == "gelu":
        hidden = hidden * 0.5 * (1 + erf(hidden / math.sqrt(2)))
    else:
        hidden = np.maximum(hidden, 0)
    y = hidden @ expert.down.astype(np.float64)
    return y if expert.down_bias is None else y + expert.down_bias


def _rows(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((count, width), dtype=np.float32)


def test_tiny_swiglu_by_hand() -> None:
    # gate = 2 x0, up = 3 x1, down doubles: silu(2) * 3 * 2 for x = (1, 1)
    expert = Expert(np.array([[2, 0], [0, 3]], np.float32), np.array([[2, 0]], np.float32))
    y = expert_forward(expert, np.array([[1, 1], [-1, 2], [0, 5]], np.float32))
    silu = 2 / (1 + math.exp(-2))
    silu_minus = -2 / (1 + math.exp(2))
    np.testing.assert_allclose(y, [[silu * 6, 0], [silu_minus * 12, 0], [0, 0]], rtol=1e-6)


def test_tiny_relu_by_hand() -> None:
    expert = Expert(np.array([[1, -1]], np.float32), np.array([[10], [100]], np.float32), "relu")
    np.testing.assert_array_equal(expert_forward(expert, np.array([[3], [-2]], np.float32)), [[30], [200]])


def test_tiny_clamped_swiglu_with_biases_by_hand() -> None:
    # gate = 2 x0 + 1, up = 3 x1 - 1, y = 2 hidden + 5
    up, down = np.array([[2, 0], [0, 3]], np.float32), np.array([[2, 0]], np.float32)
    biases = np.array([1, -1], np.float32), np.array([5, 4], np.float32)
    x = np.array([[1, 1], [100, 100], [-100, 1], [1, -100]], np.float32)
    y = expert_forward(Expert(up, down, "clamped_swiglu", *biases), x)
    swish = [3 / (1 + math.exp(-1.702 * 3)), 7 / (1 + math.exp(-1.702 * 7)), 0.0]
    hidden = [swish[0] * (2 + 1), swish[1] * (7 + 1), swish[2], swish[0] * (-7 + 1)]
    np.testing.assert_allclose(y, [[2 * h + 5, 4] for h in hidden], rtol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("count", [1, 2, 100])
def test_equals_float64(activation: str, count: int) -> None:
    expert, x = _expert(96, 200, activation), 3 * _rows(count, 96)
    x = 2 * x if activation == "clamped_swiglu" else x  # beyond 7, both ways
    np.testing.assert_allclose(expert_forward(expert, x), _in_float64(expert, x), atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_rows_give_no_rows(activation: str) -> None:
    assert expert_forward(_expert(16, 24, activation), np.empty((0, 16), np.float32)).shape == (0, 16)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("width", "inner"), [(16, 20), (64, 96), (100, 333), (256, 512)])
def test_rows_keep_their_bits_in_any_company(width: int, inner: int, activation: str) -> None:
    expert, x = _expert(width, inner, activation), _rows(300, width)
    whole = expert_forward(expert, x)
    rng = np.random.default_rng(4)
    counts = {1: (1, 2, 3, 9, 16, 50, 171, 300), 2: (1, 60)}
    for threads in counts:
        with threadpool_limits(threads, user_api="blas"):
            for count in counts[threads]:
                group = rng.choice(300, count, replace=False)
                np.testing.assert_array_equal(expert_forward(expert, x[group]), whole[group])


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    expert, x = _expert(64, 96, "swiglu"), _rows(100, 64)
    whole = expert_forward(expert, x)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 33 * 192)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 1)
    np.testing.assert_array_equal(expert_forward(expert, x), whole)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scratch_memory_is_bounded_whatever_the_rows(
    activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass makes 64 MiB of hidden values at most, an activation three times 256 KiB; here a thousandth."""
    asked: dict[str, int] = {}

    def noting(name: str, rows: int, columns: int) -> np.ndarray:
        asked[name] = max(asked.get(name, 0), rows * columns)
        return scratch(name, rows, columns)

    monkeypatch.setattr(module, "scratch", noting)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 1 << 14)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 1 << 10)
    expert, x = _expert(16, 64, activation), _rows(3000, 16)
    expert_forward(expert, x)
    assert x.shape[0] * expert.up.shape[1] > 10 * (1 << 14), "many passes"
    assert asked["hidden"] <= (1 << 14) + 12 * expert.up.shape[1]  # whole tiles of up to 12 rows
    assert asked.get("activation", 0) <= 3 * (1 << 9)


def test_out_is_filled_and_weights_and_input_are_left_alone() -> None:
    expert, x = _expert(64, 96, "swiglu"), _rows(20, 64)
    before = x.copy(), expert.up.copy(), expert.down.copy()
    out = np.empty((20, 64), np.float32)
    assert expert_forward(expert, x, out=out) is out
    np.testing.assert_array_equal(out, expert_forward(expert, x))
    for old, new in zip(before, (x, expert.up, expert.down), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_huge_values_neither_warn_nor_turn_into_nan(activation: str) -> None:
    expert = _expert(16, 24, activation)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = expert_forward(expert, 1000 * _rows(40, 16))
    assert np.isfinite(y).all()


def test_gelu_is_the_exact_one() -> None:
    x = np.linspace(-9, 9, 2001, dtype=np.float32)[:, None]
    y = expert_forward(Expert(np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), "gelu"), x)
    np.testing.assert_allclose(y, x * 0.5 * (1 + erf(x.astype(np.float64) / math.sqrt(2))), atol=1e-6)
