"""What every codec promises, checked on every codec."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rayemu.compression import BFLOAT16, STAGES, CodecError, WireError, decode_frame, encode_frame, make_codec

CODECS = [
    "raw",
    "fp16",
    "bf16",
    "int8",
    "int8(group=16)",
    "int8(group=128)",
    "sparse",
    "sparse(0.5)",
    "zstd",
    "raw+zstd(3)",
    "fp16+int8",
    "bf16+zstd",
    "bf16+sparse(0.5)+zstd",
    "fp16+sparse(0.5)",
    "fp16+sparse+int8(group=16)",
    "int8+zstd",
    "int8(group=128)+zstd(3)",
    "sparse+int8",
    "sparse(0.0)+int8(group=128)+zstd(1)",
    "sparse(0.5)+int8(group=16)",
    "sparse+zstd",
    "sparse(1.0)+zstd(7)",
    "int4",
    "int4(group=0)",
    "int4(group=16)+zstd",
    "fp8",
    "fp8(group=0)",
    "sparse+fp8(group=16)",
    "sparse(0.1)+int4",
    "blocks",
    "blocks(size=16,threshold=0.5)",
    "blocks(4)+int8",
    "bf16+blocks(8)",
    "blocks+int4+zstd",
    "planes",
    "planes+zstd",
    "bf16+planes+zstd",
    "fp16+planes",
    "sparse+planes+zstd",
    "delta",
    "delta(4)+int8+zstd",
    "delta+fp16",
    "delta+sparse(0.1)+int4",
    "project",
    "project(8)+int8",
    "delta(4)+project(16)+bf16+zstd",
]
SHAPES = [(0, 64), (0, 0), (5, 0), (1, 1), (1, 1000), (3, 7), (7, 128), (16, 300), (40, 1024), (2, 20000)]

every_codec = pytest.mark.parametrize("codec", [make_codec(name) for name in CODECS], ids=CODECS)
ROW_LOCAL = [name for name in CODECS if "delta" not in name and "project" not in name]
every_row_local_codec = pytest.mark.parametrize(
    "codec", [make_codec(name) for name in ROW_LOCAL], ids=ROW_LOCAL
)


def rows_like(shape: tuple[int, int], seed: int = 0, zeros: float = 0.6) -> np.ndarray:
    """Rows of different magnitudes, with zeros of both signs, an all-zero and a constant row."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, dtype=np.float32)
    x *= np.float32(10.0) ** rng.integers(-3, 4, (shape[0], 1)).astype(np.float32)
    x[rng.random(shape) < zeros] = 0.0
    x[rng.random(shape) < 0.05] = -0.0
    if shape[0] > 2:
        x[1] = 0.0
        x[2] = 3.25
    return x


def bits(x: np.ndarray) -> np.ndarray:
    assert x.dtype == np.float32
    return np.ascontiguousarray(x).view(np.uint32)


def test_every_stage_is_covered() -> None:
    assert {stage for name in CODECS for stage in make_codec(name).config} == set(STAGES)


@every_codec
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decode_gives_what_roundtrip_says(codec, shape) -> None:
    x = rows_like(shape)
    before = x.copy()
    meta, segments = codec.encode(x)
    received = [memoryview(bytes(np.ascontiguousarray(s).tobytes())) for s in segments]
    y = codec.decode(meta, received, shape)
    assert y.shape == shape and y.dtype == np.float32
    assert np.array_equal(bits(y), bits(codec.roundtrip(x)))
    out = np.full(shape, np.nan, np.float32)
    assert codec.decode(meta, received, list(shape), out) is out
    assert np.array_equal(bits(out), bits(y))
    assert np.array_equal(bits(x), bits(before)), "encode must not change its input"
    assert sum(len(s) for s in received) <= codec.max_encoded_bytes(shape)
    assert codec.encode(x).nbytes == sum(len(s) for s in received)


@every_codec
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_encoding_into_a_buffer_gives_the_same_bytes(codec, shape) -> None:
    x = rows_like(shape)
    memory = np.full(codec.buffer_bytes(shape), 0xA5, np.uint8)
    fresh, reused = codec.encode(x), codec.encode(x, memory)
    assert reused.meta == fresh.meta
    for a, b in zip(fresh.segments, reused.segments, strict=True):
        assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    made = [s for s in reused.segments if isinstance(s, np.ndarray) and s.size and not np.shares_memory(s, x)]
    assert all(np.shares_memory(s, memory) for s in made)


def test_a_buffer_that_is_too_small_or_unfit_is_refused() -> None:
    codec, x = make_codec("int8"), rows_like((4, 100))
    for out in (np.empty(400, np.uint8), np.empty(4000, np.uint8)[::2], b"x" * 4000):
        with pytest.raises(CodecError, match="out"):
            codec.encode(x, out)  # type: ignore[arg-type]


@every_codec
def test_bytes_are_a_function_of_the_rows(codec) -> None:
    x = rows_like((9, 130))
    first, second = encode_frame(codec, x), encode_frame(codec, x.copy())
    assert bytes(first) == bytes(second)


@every_codec
def test_lossless_is_exact_to_the_bit(codec) -> None:
    x = rows_like((33, 257))
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 3.4e38, -1e-40], np.float32)
    x[5, :7] = special
    bits(x)[5, 8] = 0xFFC12345  # a NaN with a payload
    if codec.lossless:
        assert np.array_equal(bits(codec.decode(*codec.encode(x), x.shape)), bits(x))
        assert np.array_equal(bits(codec.roundtrip(x)), bits(x))
    else:
        with pytest.raises(CodecError, match="row 5 "):
            codec.encode(x)


@pytest.mark.parametrize(
    "codec", [make_codec(name) for name in CODECS if not make_codec(name).lossless], ids=str
)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(7, 40), (300, 513)])
def test_lossy_refuses_with_the_row_number(codec, bad, shape) -> None:
    x = rows_like(shape)
    x[shape[0] - 2, shape[1] - 1] = bad
    x[shape[0] - 1, 0] = bad
    with pytest.raises(CodecError, match=f"row {shape[0] - 2} ") as caught:
        codec.encode(x)
    assert caught.value.row == shape[0] - 2
    assert isinstance(caught.value, ValueError)


@every_codec
def test_codecs_say_whether_they_are_row_local(codec) -> None:
    assert codec.row_local == ("delta" not in codec.name and "project" not in codec.name)


@every_row_local_codec
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_do_not_know_their_neighbours(codec, data) -> None:
    n, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 300))
    values = st.floats(-60000, 60000, width=32) | st.sampled_from([0.0, -0.0, 1e-45, 1e-38])
    x = data.draw(arrays(np.float32, (n, width), elements=values, fill=st.just(0.0)))
    whole = codec.roundtrip(x)
    order = data.draw(st.permutations(range(n)))
    chosen = order[: data.draw(st.integers(1, n))]
    assert np.array_equal(bits(codec.roundtrip(x[chosen])), bits(whole[chosen]))
    for i in chosen:
        assert np.array_equal(bits(codec.roundtrip(x[i : i + 1])[0]), bits(whole[i]))


@pytest.mark.parametrize("name", [name for name in ROW_LOCAL if "zstd" not in name])
def test_row_bytes_do_not_know_their_neighbours(name) -> None:
    """Before the byte stages, the segments of all rows are those of each row, one after the other."""
    codec = make_codec(name)
    x = rows_like((40, 1000), seed=3)
    together = [np.ascontiguousarray(s).tobytes() for s in codec.encode(x).segments]
    alone = [codec.encode(x[i : i + 1]).segments for i in range(len(x))]
    assert together and {len(segments) for segments in alone} == {len(together)}
    for place, segment in enumerate(together):
        assert segment == b"".join(np.ascontiguousarray(row[place]).tobytes() for row in alone)


@every_codec
def test_views_and_odd_buffers(codec) -> None:
    wide = rows_like((24, 400))
    expected = codec.roundtrip(np.ascontiguousarray(wide[::2, 17:317]))
    meta, segments = codec.encode(wide[::2, 17:317])
    shape = (12, 300)
    assert np.array_equal(bits(codec.decode(meta, segments, shape)), bits(expected))
    assert np.array_equal(bits(codec.roundtrip(wide[::2, 17:317])), bits(expected))
    transposed = np.asfortranarray(wide[::2, 17:317])
    assert np.array_equal(bits(codec.roundtrip(transposed)), bits(expected))
    # Segments at odd addresses, and into strided rows.
    odd = [memoryview(b"?" + np.ascontiguousarray(s).tobytes())[1:] for s in segments]
    out = np.full((12, 1000), np.nan, np.float32)
    codec.decode(meta, odd, shape, out[:, 350:650])
    assert np.array_equal(bits(out[:, 350:650]), bits(expected))
    assert np.isnan(out[:, :350]).all() and np.isnan(out[:, 650:]).all()
    assert np.array_equal(bits(codec.decode(meta, odd, shape)), bits(expected))


@every_codec
def test_name_config_and_pickle_give_the_same_codec(codec) -> None:
    assert make_codec(codec.name) == codec == make_codec(codec.config) == pickle.loads(pickle.dumps(codec))
    assert make_codec(codec.name).name == codec.name == str(codec)
    assert hash(make_codec(codec.config)) == hash(codec)
    assert make_codec(codec) is codec


@every_codec
@pytest.mark.parametrize("kind", ["float16", "bfloat16 bits", "bfloat16 of ml_dtypes"])
def test_narrow_rows_encode_as_they_would_in_float32(codec, kind) -> None:
    x = np.clip(rows_like((20, 130), zeros=0.3), -60000, 60000)
    if kind == "float16":
        narrow = x.astype(np.float16)
        wide = narrow.astype(np.float32)
    else:
        wide = make_codec("bf16").roundtrip(x)
        upper = (bits(wide) >> 16).astype(np.uint16)
        narrow = upper.view(BFLOAT16) if kind == "bfloat16 bits" else upper.view(ml_dtypes.bfloat16)
    strided = np.repeat(narrow, 2, axis=0)[::2]
    for rows in (narrow, strided):
        encoded, expected = codec.encode(rows), codec.encode(wide)
        assert encoded.meta == expected.meta
        for a, b in zip(encoded.segments, expected.segments, strict=True):
            assert np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
        assert np.array_equal(bits(codec.roundtrip(rows)), bits(codec.roundtrip(wide)))
    if not codec.lossless:
        broken = np.array(narrow)
        broken.view(np.uint16)[7, 3] = 0x7FFF  # a NaN in either format
        with pytest.raises(CodecError, match="row 7 "):
            codec.encode(broken if kind == "float16" else broken.view(narrow.dtype))


@every_codec
@pytest.mark.parametrize("kind", ["float16", "bfloat16 bits", "bfloat16 of ml_dtypes"])
def test_frames_give_back_the_dtype_that_they_were_given(codec, kind) -> None:
    x = np.clip(rows_like((20, 130), zeros=0.3), -60000, 60000)
    x[3, :8] = [60000, -60000, 0, -0.0, 1e-7, -1e-7, 1, -1]
    kinds = {"float16": np.float16, "bfloat16 of ml_dtypes": ml_dtypes.bfloat16}
    if kind in kinds:
        given = x.astype(kinds[kind])
        expected = codec.roundtrip(given).astype(kinds[kind])
    else:
        given = x.astype(ml_dtypes.bfloat16).view(np.uint16).view(BFLOAT16)
        expected = codec.roundtrip(given).astype(ml_dtypes.bfloat16)
    frame = encode_frame(codec, given)
    found = decode_frame(codec, frame)
    assert found.dtype == (np.float16 if kind == "float16" else BFLOAT16)
    assert np.array_equal(found.view(np.uint16), expected.view(np.uint16))
    if codec.lossless:
        assert np.array_equal(found.view(np.uint16), given.view(np.uint16))
    strided = np.zeros((20, 260), given.dtype)[:, ::2]
    assert decode_frame(codec, frame, strided) is strided
    assert np.array_equal(np.array(strided).view(np.uint16), expected.view(np.uint16))
    for wrong in (np.empty((20, 130), dtype) for dtype in (np.float32, np.int16, np.uint8)):
        with pytest.raises(CodecError, match="16, not"):
            decode_frame(codec, frame, wrong)


def test_what_rounds_beyond_a_narrow_dtype_is_its_largest_number() -> None:
    x = np.full((1, 32), 65504, np.float16)
    found = decode_frame(make_codec("int4"), encode_frame(make_codec("int4"), x))
    wide = make_codec("int4").roundtrip(x)
    assert wide.max() > 65520 and found.max() == 65504 and np.isfinite(found).all()


@every_codec
def test_wrong_rows_are_refused(codec) -> None:
    plain = np.zeros((2, 3), np.uint16)  # not said to be bfloat16
    wrong = (np.zeros((2, 3)), plain, np.zeros(3, np.float32), np.zeros((1, 2, 3), np.float32), [[1.0]], None)
    for x in wrong:
        with pytest.raises(CodecError, match="float32"):
            codec.encode(x)


@every_codec
def test_decode_refuses_what_does_not_belong(codec) -> None:
    x = rows_like((6, 200))
    meta, segments = codec.encode(x)
    meta_bad = [None, {}, 5, "x", [*meta, []], [[1]] * 3, [None], [[True] * len(segments)], [[-1] * 9]]
    for bad in meta_bad:
        with pytest.raises(WireError):
            codec.decode(bad, segments, x.shape)
    near = [] if "blocks" in codec.name else [(6, 201), (6, 199)]  # zeros at the end may be many or few
    for bad in (
        *near,
        (7, 200),
        (-1, 200),
        (6,),
        6,
        None,
        (6, 200, 1),
        "ab",
        (6.0, 200),
        (2**70, 1),
    ):
        with pytest.raises(WireError):
            codec.decode(meta, segments, bad)
    for bad in (segments[:-1], [*segments, b""], [], [None] * len(segments), [b"x" * 11] * len(segments)):
        with pytest.raises(WireError):
            codec.decode(meta, bad, x.shape)
    with pytest.raises(WireError, match="more than 4000 bytes"):
        codec.decode(meta, segments, x.shape, max_bytes=4000)
    read_only = np.empty((6, 200), np.float32)
    read_only.flags.writeable = False
    for out in (
        np.empty((6, 201), np.float32),
        np.empty((6, 200)),
        read_only,
        np.empty((200, 6), np.float32).T,
    ):
        with pytest.raises(CodecError, match="out"):
            codec.decode(meta, segments, x.shape, out)


@every_codec
def test_frames_describe_themselves(codec) -> None:
    x = rows_like((6, 200))
    frame = encode_frame(codec, x)
    assert np.array_equal(bits(decode_frame(codec, frame.tobytes())), bits(codec.roundtrip(x)))
    out = np.empty_like(x)
    assert decode_frame(codec, frame, out) is out
    with pytest.raises(WireError, match="expected were"):
        decode_frame(codec, frame, np.empty((5, 200), np.float32))
    other = make_codec("raw" if codec.name != "raw" else "bf16")
    with pytest.raises(WireError, match="expected was"):
        decode_frame(other, frame)


@pytest.mark.parametrize("name", ["bf16", "int8", "sparse+int8+zstd"])
def test_threads_do_not_share_scratch(name) -> None:
    codec = make_codec(name)
    inputs = [rows_like((300, 700), seed) for seed in range(4)]
    expected = [bits(codec.roundtrip(x)) for x in inputs]

    def work(i: int) -> bool:
        y = codec.decode(*codec.encode(inputs[i % 4]), inputs[i % 4].shape)
        return np.array_equal(bits(y), expected[i % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(60)))


def test_the_threads_numpy_settings_are_left_alone() -> None:
    before = np.getbufsize()
    x = rows_like((300, 700))
    make_codec("int8").roundtrip(x)
    x[299, 699] = np.nan
    with pytest.raises(CodecError):
        make_codec("int8").encode(x)
    assert np.getbufsize() == before


def test_raw_does_not_copy() -> None:
    x = rows_like((16, 64))
    codec = make_codec("raw")
    meta, segments = codec.encode(x)
    assert np.shares_memory(segments[0], x)
    assert np.shares_memory(codec.decode(meta, segments, x.shape), x)
