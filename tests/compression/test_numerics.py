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


def check_groups(x: np.ndarray, y: np.ndarray, group: int, largest: float, bound) -> None:
    """|x - x'| <= bound(|x|, scale) in each group, where scale >= max|x| / largest."""
    for start in range(0, x.shape[1], group):
        a, b = x[:, start : start + group].astype(np.float64), y[:, start : start + group].astype(np.float64)
        peak = np.abs(a).max(axis=1, keepdims=True)
        assert (np.abs(a - b) <= bound(np.abs(a), np.maximum(peak / largest, 2.0**-126))).all()
        assert not b[(a == 0).all(axis=1)].any()


def int4_bound(magnitude: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Half a step of the scale rounded up to a bfloat16 (at most 2^-7 more)."""
    return scale * (1 + 2.0**-7) * (0.5 + 2.0**-18)


def fp8_bound(magnitude: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Half a unit of the last of three mantissa bits, or of the smallest denormal 2^-9."""
    return np.maximum(magnitude * 2.0**-4, scale * 2.0**-10) * (1 + 2.0**-14)


@settings(max_examples=300, deadline=None)
@given(any_rows)
def test_int4_error_bound(x) -> None:
    y = make_codec("int4").roundtrip(x)
    assert np.isfinite(y).all()
    check_groups(x, y, 32, 7, int4_bound)
    check_groups(x, make_codec("int4(group=0)").roundtrip(x), x.shape[1], 7, int4_bound)


@settings(max_examples=300, deadline=None)
@given(any_rows)
def test_fp8_error_bound(x) -> None:
    y = make_codec("fp8").roundtrip(x)
    assert np.isfinite(y).all()
    check_groups(x, y, 128, 448, fp8_bound)
    check_groups(x, make_codec("fp8(group=16)").roundtrip(x), 16, 448, fp8_bound)


def test_int4_bytes_by_hand() -> None:
    scales, pairs = segments("int4", [[7.0, -7.0, 1.0, 0.5, 1.5], [0, 0, 0, 0, 0]])
    assert struct.unpack("<HH", scales) == (0x3F80, 0x0080)  # 1.0 and 2^-126 as bfloat16
    (coarser, _) = segments("int4", [[7.0078125]])  # between two bfloat16 scales: the larger
    assert struct.unpack("<H", coarser) == (0x3F81,)
    # 7, -7 | 1, 0 (0.5 rounds to even) | 2 (1.5 rounds to even) and the padding
    assert pairs == bytes([0x97, 0x01, 0x02, 0, 0, 0])
    (_, _, kept) = segments("sparse+int4", [[7.0, 0, -7.0, 1.0], [0, 0, 0, 0], [0, 3.5, 0, 0]])
    assert list(kept) == [0x97, 0x01, 0x07]  # an odd row's last half is empty


def test_fp8_bytes_by_hand() -> None:
    values = [448.0, -448.0, 1.0, 1.0625, 1.1875, 2.0**-9, -(2.0**-10), 1.5 * 2.0**-9]
    scales, codes = segments("fp8", [values])
    assert struct.unpack("<f", scales) == (1.0,)
    # 1.0625 and 1.1875 lie between 1, 1.125 and 1.25: ties, to the even one; so do the last two.
    assert codes == bytes([0x7E, 0xFE, 0x38, 0x38, 0x3A, 0x01, 0x80, 0x02])


def test_every_fp8_code_and_the_points_between() -> None:
    """Against ml_dtypes, which implements the format independently."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is the reference for fp8")
    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)
    exact = np.sort(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
    between = (exact[1:] + exact[:-1]) / 2
    near = np.concatenate([np.nextafter(between, np.float32(-1e9)), np.nextafter(between, np.float32(1e9))])
    x = np.concatenate([exact, between, near]).astype(np.float32)
    x = np.concatenate([x, np.full(-len(x) % 448, 448, np.float32), [448]]).astype(np.float32)[None]
    codec = make_codec("fp8(group=0)")  # the largest value is 448: scale 1
    encoded = codec.encode(x)
    assert np.asarray(encoded.segments[0]).ravel() == [1.0]
    expected = x.astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(np.asarray(encoded.segments[1]).ravel(), expected.view(np.uint8).ravel())
    assert np.array_equal(codec.roundtrip(x), expected.astype(np.float32))


def test_planes_by_hand() -> None:
    # 1.0 = 0x3F800000 turned by one bit: 0x7F000000; -1.0: 0x7F000001; -0.0: 0x00000001
    assert segments("planes", [[1.0, -1.0, -0.0]]) == [b"\0\1\1", b"\0\0\0", b"\0\0\0", b"\x7f\x7f\0"]
    assert segments("bf16+planes", [[1.0, -1.0, -0.0]]) == [b"\0\1\1", b"\x7f\x7f\0"]


def test_blocks_by_hand() -> None:
    row = [0.0] * 4 + [0, 0, 5.0, 0] + [0.0] * 4 + [6.0, 7.0]  # the last block is short
    bitmap, values = segments("blocks(4)", [row, [0.0] * 14])
    assert bitmap == bytes([0b1010, 0])
    assert np.frombuffer(values, np.float32).tolist() == [0, 0, 5, 0, 6, 7]
    assert segments("blocks(size=4,threshold=5)", [row])[0] == bytes([0b1000])


def test_delta_by_hand() -> None:
    x = [[1.0, 2.0], [1.5, 2.0], [3.0, 3.0], [5.0, 5.0]]
    bases, values = segments("delta(3)", x)
    assert np.frombuffer(bases, np.float32).reshape(2, 2).tolist() == [[1, 2], [5, 5]]
    assert np.frombuffer(values, np.float32).reshape(4, 2).tolist() == [[0, 0], [0.5, 0], [2, 1], [0, 0]]
    assert np.array_equal(make_codec("delta(3)").roundtrip(np.array(x, np.float32)), x)


def test_delta_makes_similar_rows_finer() -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((1, 256), dtype=np.float32)
    x = base + 0.01 * rng.standard_normal((16, 256), dtype=np.float32)
    plain, delta = (np.abs(make_codec(name).roundtrip(x) - x)[1:] for name in ("int4", "delta+int4"))
    assert delta.mean() < plain.mean() / 20


def test_project_is_the_best_approximation_of_its_rank() -> None:
    """Against NumPy's SVD: the squared error is the sum of the dropped squared singular values."""
    rng = np.random.default_rng(0)
    for shape in ((300, 40), (40, 300), (50, 50)):
        x = (rng.standard_normal(shape) * np.linspace(3, 0.1, shape[1])).astype(np.float32)
        dropped = np.linalg.svd(x.astype(np.float64), compute_uv=False)[10:]
        error = make_codec("project(10)").roundtrip(x).astype(np.float64) - x
        assert (error**2).sum() == pytest.approx((dropped**2).sum(), rel=1e-4)
    low = (rng.standard_normal((200, 5)) @ rng.standard_normal((5, 128))).astype(np.float32)
    codec = make_codec("project(8)+int8")
    y = codec.roundtrip(low)
    assert np.linalg.norm(y - low) < 0.01 * np.linalg.norm(low) and low.nbytes / codec.encode(low).nbytes > 4


def test_delta_refuses_what_float32_cannot_say() -> None:
    x = np.array([[FLT_MAX], [-FLT_MAX]], np.float32)
    with pytest.raises(CodecError, match="row 1 differs from its base"):
        make_codec("delta").encode(x)


@pytest.mark.parametrize(
    ("codec", "least"),
    [("int8(group=128)", 3.87), ("int4", 7.1), ("fp8", 3.87), ("sparse+int8", 9.0)],
)
def test_sizes(codec: str, least: float) -> None:
    x = np.random.default_rng(0).standard_normal((256, 2048), dtype=np.float32)
    if codec.startswith("sparse"):
        x[np.random.default_rng(1).random(x.shape) < 0.7] = 0
    assert x.nbytes / make_codec(codec).encode(x).nbytes >= least


@pytest.mark.parametrize(("codec", "least"), [("bf16+planes+zstd", 2 * 1.45), ("planes+zstd", 1.17)])
def test_gaussian_rows_shrink_without_loss(codec: str, least: float) -> None:
    """Bounds: 16 / (8 + H) = 1.529 and 32 / (24 + H) = 1.209, H = 2.46 bits of the exponent's entropy."""
    x = np.random.default_rng(0).standard_normal((1024, 1024), dtype=np.float32)
    assert x.nbytes / make_codec(codec).encode(x).nbytes >= least
