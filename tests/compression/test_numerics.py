"""Error bounds and rounding, against formulas and hand-made bytes."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rayemu.compression import CodecError, make_codec

FLT_MAX = float(np.finfo(np.float32).max)
EDGES = [0.0, -0.0, 1e-45, -1e-45, 1.2e-38, 1e-36, 1.5e-36, 1.0, 127.0, 255.5, 3e38, FLT_MAX, -FLT_MAX]
any_value = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from(
    [float(np.float32(v)) for v in EDGES]
)
any_rows = arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 70)), elements=any_value)


def segments(name: str, values: list[list[float]]) -> list[bytes]:
    encoded = make_codec(name).encode(np.array(values, np.float32))
    return [np.ascontiguousarray(s).tobytes() for s in encoded.segments]


def check_int8(x: np.ndarray, y: np.ndarray, group: int) -> None:
    """|x - x'| <= scale * (1/2 + 2^-14) with scale = max|x| / 127, at least 2^-126, in each group."""
    for start in range(0, x.shape[1], group):
        a, b = x[:, start : start + group].astype(np.float64), y[:, start : start + group].astype(np.float64)
        scale = np.maximum(np.abs(a).max(axis=1, keepdims=True) / 127, 2.0**-126)
        assert (np.abs(a - b) <= scale * (0.5 + 2.0**-14)).all()
        assert not b[(a == 0).all(axis=1)].any()


@settings(max_examples=300, deadline=None)
@given(any_rows)
def test_int8_error_bound(x) -> None:
    y = make_codec("int8").roundtrip(x)
    assert np.isfinite(y).all()
    check_int8(x, y, x.shape[1])
    check_int8(x, make_codec("int8(group=16)").roundtrip(x), 16)


@settings(max_examples=200, deadline=None)
@given(any_rows)
def test_sparse_int8_error_bound(x) -> None:
    """Groups run over the kept values of a row; here zeros are dropped by hand first."""
    plain, grouped = make_codec("sparse+int8").roundtrip(x), make_codec("sparse+int8(group=16)").roundtrip(x)
    check_int8(x, plain, x.shape[1])
    for i, row in enumerate(x):
        kept = np.flatnonzero(row.view(np.uint32))
        assert not grouped[i][np.setdiff1d(np.arange(len(row)), kept)].any()
        if kept.size:
            check_int8(row[kept][None], grouped[i][kept][None], 16)


@settings(max_examples=300, deadline=None)
@given(any_rows)
def test_bf16_error_bound_and_nearest(x) -> None:
    y = make_codec("bf16").roundtrip(x)
    a, b = x.astype(np.float64), y.astype(np.float64)
    assert not (y.view(np.uint32) & 0xFFFF).any()
    assert np.isfinite(y).all()
    assert (np.abs(a - b) <= np.maximum(np.abs(a) * 2.0**-8, 2.0**-134)).all()
    assert np.array_equal(np.signbit(x), np.signbit(y))


@settings(max_examples=300, deadline=None)
@given(arrays(np.float32, (3, 40), elements=st.floats(-65504, 65504, width=32)))
def test_fp16_error_bound(x) -> None:
    y = make_codec("fp16").roundtrip(x)
    a, b = x.astype(np.float64), y.astype(np.float64)
    assert (np.abs(a - b) <= np.maximum(np.abs(a) * 2.0**-11, 2.0**-25)).all()


@settings(max_examples=100, deadline=None)
@given(any_rows, st.sampled_from([1e-45, 0.1, 1.0, 100.0, 1e38, 1e300]))
def test_sparse_drops_what_is_within_the_threshold(x, threshold) -> None:
    y = make_codec({"sparse": threshold}).roundtrip(x)
    kept = np.abs(x.astype(np.float64)) > threshold
    assert np.array_equal(y, np.where(kept, x, np.float32(0)))
    narrow = make_codec({"bf16": None, "sparse": threshold}).roundtrip(x)
    b = make_codec("bf16").roundtrip(x)
    assert np.array_equal(narrow, np.where(np.abs(b.astype(np.float64)) > threshold, b, np.float32(0)))


@pytest.mark.parametrize("threshold", [0.1, 0.3, 7e-8, 1e6])
def test_sparse_threshold_in_half_precision(threshold) -> None:
    h = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)[None]
    y = make_codec({"fp16": None, "sparse": threshold}).roundtrip(h)
    assert np.array_equal(y, np.where(h.astype(np.float64) > threshold, h, np.float32(0)))


def test_int8_bytes_by_hand() -> None:
    # Scales 1, 2^-126 (an all-zero row) and 2; ties go to the even neighbour.
    rows = [[127, -127, 0.5, 1.5, 2.5, -0.5, -1.5], [0] * 7, [254, 1, 3, 5, -1, -3, 0]]
    scales, q = segments("int8", rows)
    assert scales == struct.pack("<3f", 1, 2.0**-126, 2)
    assert q == struct.pack("<21b", 127, -127, 0, 2, 2, 0, -2, *[0] * 7, 127, 0, 2, 2, 0, -2, 0)


def test_int8_groups_by_hand() -> None:
    rows = [[127.0] + [1.0] * 15 + [254.0] + [-2.0] * 15 + [-508.0, 4.0]]
    scales, q = segments("int8(group=16)", rows)
    assert scales == struct.pack("<3f", 1, 2, 4)
    assert q == struct.pack("<34b", 127, *[1] * 15, 127, *[-1] * 15, -127, 1)


def test_sparse_bytes_by_hand() -> None:
    rows = [[0, 1, 0, -2, 0, 0, 0, 0, 0, 3], [0] * 10, [4, 0, 0, 0, 0, 0, 0, 5, 0, -0.0]]
    bitmap, values = segments("sparse", rows)
    assert bitmap == bytes([0b1010, 0b10, 0, 0, 0b10000001, 0b10])
    assert values == struct.pack("<6f", 1, -2, 3, 4, 5, -0.0)
    bitmap, values = segments("sparse(2)", rows)
    assert bitmap == bytes([0, 0b10, 0, 0, 0b10000001, 0])
    assert values == struct.pack("<3f", 3, 4, 5)
    bitmap, scales, q = segments("sparse+int8", [[0, 127, -63, 0], [0] * 4, [254, 0, 0, 2]])
    assert bitmap == bytes([0b0110, 0, 0b1001])
    assert scales == struct.pack("<2f", 1, 2)
    assert q == struct.pack("<4b", 127, -63, 127, 1)


def test_half_bytes_by_hand() -> None:
    # 1, then ties below and above an even neighbour, the largest finite, -0, and the smallest denormal.
    rows = [[1, 1 + 2**-11, 1 + 3 * 2**-11, 65504, -0.0, 2**-24]]
    assert segments("fp16", rows) == [struct.pack("<6H", 0x3C00, 0x3C00, 0x3C02, 0x7BFF, 0x8000, 1)]
    rows = [[1, 1 + 2**-8, 1 + 3 * 2**-8, -FLT_MAX, -0.0, 2**-133, 1 + 2**-8 + 2**-23]]
    expected = (0x3F80, 0x3F80, 0x3F82, 0xFF7F, 0x8000, 1, 0x3F81)
    assert segments("bf16", rows) == [struct.pack("<7H", *expected)]


def test_bf16_rounds_as_ml_dtypes_does() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(1)
    x = rng.integers(0, 1 << 32, 400_000, dtype=np.uint64).astype(np.uint32)
    x[::3] = (x[::3] & 0xFFFF0000) | 0x8000  # ties
    rows = x.view(np.float32)
    rows = rows[np.isfinite(rows) & (np.abs(rows) < 3.38e38)][None]
    encoded = np.asarray(make_codec("bf16").encode(rows).segments[0])
    assert np.array_equal(encoded, rows.astype(ml_dtypes.bfloat16).view(np.uint16))


@pytest.mark.parametrize("value", [65520.0, -65520.0, 1e6, FLT_MAX])
def test_fp16_refuses_what_would_become_infinite(value) -> None:
    x = np.ones((4, 5), np.float32)
    x[2, 3] = value
    with pytest.raises(CodecError, match="row 2 holds a value beyond 65504"):
        make_codec("fp16").encode(x)
    x[2, 3] = 65519.0
    assert make_codec("fp16").roundtrip(x)[2, 3] == 65504.0


def test_no_warnings_from_extreme_rows(recwarn) -> None:
    tiny = np.full((1, 64), 1e-45, np.float32)
    huge = np.full((1, 64), FLT_MAX, np.float32)
    x = np.concatenate([tiny, huge, -huge, np.zeros_like(tiny)])
    for name in ("bf16", "int8", "int8(group=16)", "sparse+int8", "sparse(1e300)", "zstd"):
        assert np.isfinite(make_codec(name).roundtrip(x)).all()
    for name in ("fp16", "int8", "sparse(0.5)+int8"):
        with pytest.raises(CodecError):
            make_codec(name).encode(np.full((1, 4), np.nan if name != "fp16" else FLT_MAX, np.float32))
    assert not recwarn.list


@pytest.mark.parametrize(("name", "bound"), [("int8", 8e-5), ("int8(group=128)", 4.5e-5)])
def test_mean_square_error_on_gaussian_rows(name, bound) -> None:
    x = np.random.default_rng(0).standard_normal((256, 2048), dtype=np.float32)
    assert np.mean((make_codec(name).roundtrip(x) - x) ** 2, dtype=np.float64) < bound


@pytest.mark.parametrize(
    ("name", "zeros", "ratio"),
    [("int8(group=128)", 0.0, 3.87), ("sparse+int8", 0.7, 9.0), ("int8", 0.0, 3.99)],
)
def test_size_against_float32(name, zeros, ratio) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 2048), dtype=np.float32)
    x[rng.random(x.shape) < zeros] = 0
    assert x.nbytes / make_codec(name).encode(x).nbytes > ratio
