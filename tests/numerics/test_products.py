"""Rows of a matrix product must not depend on their neighbours, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from rayemu.numerics import blas_info, exact_matmul, row_invariant

needs_exact_blas = pytest.mark.skipif(
    not row_invariant(), reason="this BLAS is not row-invariant; set OPENBLAS_CORETYPE=Sandybridge"
)

# [K, N] around every border of the rule: one column, narrow, wide, long K, long K with a ragged end.
SHAPES = [
    (1, 1),
    (20, 1),
    (3, 5),
    (16, 32),
    (64, 63),
    (64, 64),
    (33, 77),
    (256, 8),
    (257, 8),
    (256, 1024),
    (300, 65),
    (1000, 10),
    (550, 300),
    (1978, 76),
    (715, 589),
    (512, 3584),
    (1792, 512),
]


def _case(inner: int, columns: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, inner, columns])
    x = rng.standard_normal((rows, inner), dtype=np.float32)
    return x, rng.standard_normal((inner, columns), dtype=np.float32)


@pytest.mark.parametrize(("inner", "columns"), SHAPES)
def test_product_is_right(inner: int, columns: int) -> None:
    x, w = _case(inner, columns, 37)
    wanted = x.astype(np.float64) @ w.astype(np.float64)
    np.testing.assert_allclose(exact_matmul(x, w), wanted, atol=1e-5 * inner**0.5, rtol=1e-5)


@needs_exact_blas
@pytest.mark.parametrize(("inner", "columns"), SHAPES)
def test_rows_keep_their_bits_in_any_company(inner: int, columns: int) -> None:
    x, w = _case(inner, columns, 333)
    whole = exact_matmul(x, w)
    rng = np.random.default_rng(1)
    counts = {1: (1, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 64, 100, 200, 333), 2: (1, 17, 200)}
    for threads in counts:
        with threadpool_limits(threads, user_api="blas"):
            np.testing.assert_array_equal(exact_matmul(x, w), whole)
            for count in counts[threads]:
                group = rng.choice(333, count, replace=False)
                np.testing.assert_array_equal(exact_matmul(x[group], w), whole[group])


@needs_exact_blas
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(1, 200), st.integers(1, 90), st.integers(0, 2**31), st.data())
def test_any_shape_keeps_bits(inner: int, columns: int, rows: int, seed: int, data: st.DataObject) -> None:
    x, w = _case(inner, columns, rows, seed)
    group = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=rows))
    np.testing.assert_array_equal(exact_matmul(x[group], w), exact_matmul(x, w)[group])


@pytest.mark.parametrize("columns", [8, 100])
@pytest.mark.parametrize("rows", [0, 1, 7, 500])
def test_out_is_filled_and_returned(rows: int, columns: int) -> None:
    x, w = _case(300, columns, rows)
    wide = np.full((rows, columns + 9), 7, np.float32)
    out = wide[:, 4:-5]  # rows of it are strided
    assert exact_matmul(x, w, out=out) is out
    np.testing.assert_array_equal(out, exact_matmul(x, w))
    assert (wide[:, :4] == 7).all() and (wide[:, -5:] == 7).all()


def test_strided_rows_give_the_same_bits() -> None:
    x, w = _case(300, 100, 40)
    wide = np.zeros((40, 700), np.float32)
    wide[:, 13:313] = x
    np.testing.assert_array_equal(exact_matmul(wide[:, 13:313], w), exact_matmul(x, w))


def test_probe_notices_a_product_that_depends_on_the_company(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        y = x @ w
        return y if len(x) > 5 else np.nextafter(y, np.float32(9))

    monkeypatch.setattr("rayemu.numerics.products.exact_matmul", careless)
    assert not row_invariant()


def test_blas_is_named() -> None:
    assert all(entry["num_threads"] >= 1 for entry in blas_info())
