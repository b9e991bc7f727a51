"""Rows of a matrix product must not depend on their neighbours, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from rayemu.numerics import ByElement, blas_info, exact_matmul, kernels, products
from rayemu.numerics.blas import one_thread
from rayemu.numerics.products import keeps_rows
from rayemu.numerics.scratch import _local as buffers_of_thread
from rayemu.numerics.scratch import forget_scratch
from rayemu.numerics.ways import edges

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


def test_probe_notices_a_product_that_depends_on_the_company() -> None:
    class Careless(ByElement):
        def product(self, x: np.ndarray, w: np.ndarray, out: np.ndarray) -> None:
            np.matmul(x, w, out=out)
            if len(x) <= 5:
                np.nextafter(out, np.float32(9), out=out)

    assert not keeps_rows(Careless())


def test_by_element_is_the_chain_in_the_order_of_k() -> None:
    x, w = _case(40, 7, 5)
    wanted = np.zeros((5, 7), np.float32)
    for row in range(5):
        for column in range(7):
            total = np.float32(0)
            for k in range(40):
                total = np.float32(total + np.float32(x[row, k] * w[k, column]))
            wanted[row, column] = total
    made = np.empty((5, 7), np.float32)
    ByElement().product(x, w, made)
    np.testing.assert_array_equal(made, wanted)
    assert keeps_rows(ByElement())


def test_the_last_way_is_taken_when_no_other_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "keeps_rows", lambda tried: False)
    monkeypatch.setattr(products, "_way", None)
    assert isinstance(products.way(), ByElement)


@pytest.mark.parametrize("columns", [1, 7, 8, 15, 16, 24, 320, 328, 480, 640, 641, 1000, 7168])
@pytest.mark.parametrize("block", [320, 96])
def test_edges_cover_the_ends_of_every_block_once(columns: int, block: int) -> None:
    """Against the cuts that OpenBLAS makes, block by block, written down as a list of columns."""
    ends: list[int] = []
    start = 0
    while start < columns:
        left = columns - start
        size = left
        if left >= 2 * block:
            size = block
        elif left > block:
            size = (left // 2 + 7) // 8 * 8
        if size >= 16:
            whole = size // 8 * 8
            ends += [*range(start, start + 8), *range(start + whole - 8, start + whole)]
        start += size
    _, parts = edges(columns, block)
    covered = [column for _, runs in parts for low, high, _ in runs for column in range(low, high)]
    assert sorted(covered) == sorted(ends)
    for width, runs in parts:
        assert width <= block and runs[0][2] == 8 and runs[-1][2] + runs[-1][1] - runs[-1][0] == width - 8


def test_threads_of_blas_are_restored_by_the_last_of_several() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = [entry["num_threads"] for entry in blas_info()]
        first, second = one_thread(), one_thread()
        assert first.__enter__() == max(before) and second.__enter__() == max(before)
        first.__exit__(None, None, None)
        assert all(entry["num_threads"] == 1 for entry in blas_info())
        second.__exit__(None, None, None)
        assert [entry["num_threads"] for entry in blas_info()] == before


def test_blas_is_named() -> None:
    assert all(entry["num_threads"] >= 1 for entry in blas_info())
    assert blas_info()[0]["version"] in kernels()


@pytest.mark.parametrize("shapes", [((0, 5), (5, 3)), ((4, 0), (0, 3)), ((4, 5), (5, 0)), ((0, 0), (0, 0))])
def test_empty_products(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """As NumPy has them: a sum of nothing is 0."""
    x, w = (np.ones(shape, np.float32) for shape in shapes)
    y = exact_matmul(x, w)
    assert y.shape == (shapes[0][0], shapes[1][1]) and not y.any()


def test_what_would_round_twice_or_be_copied_is_refused() -> None:
    x, w = np.ones((20, 8), np.float32), np.ones((8, 40), np.float32)
    for arguments in ((x.astype(float), w), (x, w.astype(np.float16)), (np.asfortranarray(x), w)):
        with pytest.raises(TypeError, match="wanted: float32, each row contiguous"):
            exact_matmul(*arguments)
    with pytest.raises(TypeError, match="strides"):
        exact_matmul(x, w, np.empty((20, 40), np.float32, order="F"))


def test_a_huge_product_takes_little_memory() -> None:
    """What is padded is a part of the rows: the whole of them would be kept by the thread for good."""
    forget_scratch()
    for columns in (8, 40, 200):
        exact_matmul(np.ones((40_001, 500), np.float32), np.ones((500, columns), np.float32))
    buffers = buffers_of_thread.__dict__.values()
    assert all(buffer.nbytes <= 64 << 20 for buffer in buffers)  # the least of a buffer; x has 76 MiB
