"""The frame, version 1: golden bytes, limits, and what is refused."""

from __future__ import annotations

import struct
import tracemalloc
from array import array

import numpy as np
import pytest
import zstandard
from xxhash import xxh3_64_intdigest

from rayemu.compression import (
    CodecError,
    WireError,
    decode_frame,
    encode_frame,
    make_codec,
    pack,
    pack_pieces,
    unpack,
)
from rayemu.compression.wire import MAX_HEADER_BYTES, MAX_SEGMENTS

GOLDEN_SMALL = bytes.fromhex(
    "52594d5501000000"  # RYMU, version 1
    "9528701c6e6fc379"  # checksum
    "3400000000000000"  # 52 bytes in all
    "1400000000000000"  # 20 of header, no segments
    "82a568656c6c6f93010281a16bc3a477696465c0"
)


def hand_made(head: bytes, segments: list[bytes], **fields: int) -> bytes:
    """A frame by the documented layout, with a right checksum over possibly wrong fields."""
    table = b"".join(struct.pack("<Q", fields.get(f"size{i}", len(s))) for i, s in enumerate(segments))
    body = table + head
    for segment in segments:
        body += bytes(-(32 + len(body)) % 64) + segment
    total, size = fields.get("total", 32 + len(body)), fields.get("header", len(head))
    body = struct.pack("<QII", total, size, fields.get("count", len(segments))) + body
    return b"RYMU" + struct.pack("<IQ", fields.get("version", 1), xxh3_64_intdigest(body)) + body


def test_golden_frame_without_segments() -> None:
    assert bytes(pack({"hello": [1, 2, {"k": True}], "wide": None})) == GOLDEN_SMALL
    header, segments = unpack(GOLDEN_SMALL)
    assert header == {"hello": [1, 2, {"k": True}], "wide": None} and segments == []


def test_golden_frame_with_segments() -> None:
    frame = bytes(pack([7, "x"], [b"abc", b"", np.array([[1.0], [2.0]], np.float32)]))
    prelude = "52594d5501000000f30374467bb7b37f88000000000000000400000003000000"
    sizes = "030000000000000000000000000000000800000000000000"
    header = "9207a178"
    golden = (
        bytes.fromhex(prelude + sizes + header) + bytes(4) + b"abc" + bytes(61) + struct.pack("<2f", 1, 2)
    )
    assert frame == golden
    header, segments = unpack(golden)
    assert header == [7, "x"]
    assert [bytes(s) for s in segments] == [b"abc", b"", struct.pack("<2f", 1, 2)]


def test_golden_frame_of_encoded_rows() -> None:
    x = np.array([[127, -127, 0.5, 1.5], [0, 0, 0, 0]], np.float32)
    frame = bytes(encode_frame(make_codec("int8"), x))
    header = b"\x94\xa4int8\x00\x92\x02\x04\x90"
    golden = hand_made(
        header, [struct.pack("<2f", 1, 2.0**-126), struct.pack("<8b", 127, -127, 0, 2, 0, 0, 0, 0)]
    )
    assert frame == golden
    assert decode_frame(make_codec("int8"), golden).tolist() == [[127, -127, 0, 2], [0, 0, 0, 0]]


@pytest.mark.parametrize("count", [0, 1, 3, 16, 17, MAX_SEGMENTS])
def test_segments_come_back_aligned_and_uncopied(count) -> None:
    rng = np.random.default_rng(count)
    parts = [rng.bytes(int(n)) for n in rng.integers(0, 300, count)]
    frame = pack({"n": count}, parts)
    assert frame.dtype == np.uint8 and frame.ndim == 1
    header, segments = unpack(frame)
    assert header == {"n": count} and [bytes(s) for s in segments] == parts
    for segment in segments:
        if len(segment):
            view = np.frombuffer(segment, np.uint8)
            assert np.shares_memory(view, frame)
            assert (view.ctypes.data - frame.ctypes.data) % 64 == 0


def test_buffers_of_every_kind() -> None:
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    cells = [
        x,
        x[::2],
        x[:, :3],
        np.empty((0, 5)),
        memoryview(x),
        bytearray(b"ab"),
        x.astype(np.float16),
        array("d", [1.5, -2.0]),
    ]
    frame = pack([], cells)
    assert [bytes(s) for s in unpack(frame)[1]] == [
        *(np.ascontiguousarray(c).tobytes() for c in cells[:4]),
        x.tobytes(),
        b"ab",
        x.astype(np.float16).tobytes(),
        struct.pack("=2d", 1.5, -2.0),
    ]
    for received in (
        frame,
        frame.tobytes(),
        bytearray(frame),
        memoryview(frame),
        memoryview(b"?" + bytes(frame))[1:],
    ):
        assert unpack(received)[0] == []
    for wrong in (None, 5, "text", frame[::2], [1, 2]):
        with pytest.raises(WireError):
            unpack(wrong)


def test_pack_refuses_what_unpack_would_not_read() -> None:
    with pytest.raises(CodecError, match="list or dict"):
        pack([b"x" * MAX_HEADER_BYTES])
    with pytest.raises(CodecError):
        pack("text")  # type: ignore[arg-type]
    with pytest.raises(CodecError, match="segments"):
        pack([], [b""] * (MAX_SEGMENTS + 1))


HEADER = b"\x91\x01"


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"", "bytes"),
        (b"RYMU", "bytes"),
        (b"x" * 100, "magic"),
        (hand_made(HEADER, [], version=0), "frame version 0; this program reads 1 and 2"),
        (hand_made(HEADER, [], version=3), "frame version 3; this program reads 1 and 2"),
        (hand_made(HEADER, [], version=1 << 31), "frame version 2147483648; this program reads 1 and 2"),
        (hand_made(HEADER, [], version=2), "frame of version 2 in one piece"),
        (hand_made(HEADER, [b"abc" * 50_000], version=2), "frame of version 2 in one piece"),
        (hand_made(HEADER, [b"abc"], total=66), "claims"),
        (hand_made(HEADER, [b"abc"], total=1 << 60), "claims"),
        (hand_made(HEADER, [b"abc"]) + b"x", "claims"),
        (hand_made(HEADER, [b"abc"], header=1 << 31), "claims"),
        (hand_made(HEADER, [b"abc"], header=60000), "header ends"),
        (hand_made(HEADER, [b"abc"], count=1 << 31), "claims"),
        (hand_made(HEADER, [b"abc"], count=1000), "header ends"),
        (hand_made(HEADER, [b"abc"], size0=2), "segments end"),
        (hand_made(HEADER, [b"abc"], size0=1 << 63), "segments end"),
        (hand_made(HEADER, [b"abc", b"d"], size0=(1 << 64) - 1), "segments end"),
        (hand_made(HEADER, [b"abc"], count=0), "segments end"),
        (hand_made(b"", []), "not readable"),
        (hand_made(b"\x01", []), "list or a dict"),
        (hand_made(b"\xa1x", []), "list or a dict"),
        (hand_made(b"\x91\x01\x02", []), "not readable"),
        (hand_made(b"\x92\x01", []), "not readable"),
        (hand_made(b"\x91\xc1", []), "not readable"),
        (hand_made(b"\x91\xa2\xff\xfe", []), "not readable"),
        (hand_made(b"\x81\x91\x01\x02", []), "not readable"),
        (hand_made(b"\x91" * 5000 + b"\x01", []), "not readable"),
        (hand_made(b"\xdd\xff\xff\xff\xff", []), "not readable"),
        (hand_made(b"\x91\xd6\xff\xff\xff\xff\xff", []), "list"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)),
)
def test_malformed_frames_are_refused(frame, says) -> None:
    try:
        header, _ = unpack(frame)
    except WireError as error:
        assert says in str(error)
    else:
        assert says == "list" and isinstance(header, list), "only a timestamp extension may be read"


def test_limit_on_frame_size() -> None:
    frame = pack([1], [b"x" * 1000])
    assert unpack(frame, max_bytes=len(frame))
    with pytest.raises(WireError, match="allowed"):
        unpack(frame, max_bytes=len(frame) - 1)


def test_nested_header_does_not_allocate_what_it_claims() -> None:
    """Each of these arrays claims the most items allowed and holds the next one."""
    frame = hand_made(b"\xdc\x0f\xff" * 400, [])
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            unpack(frame)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def bomb(claimed: int | None) -> bytes:
    """A gigabyte of zeros in some tens of kilobytes; `claimed` replaces the size in its header."""
    if not hasattr(bomb, "made"):
        compressor = zstandard.ZstdCompressor(level=1).compressobj(size=1 << 30)
        chunk = bytes(1 << 24)
        bomb.made = b"".join([*(compressor.compress(chunk) for _ in range(64)), compressor.flush()])
    made: bytes = bomb.made
    # A frame header with a 4-byte content size has it after magic, descriptor and window byte.
    assert made[4] >> 6 == 2
    start = 5 if made[4] & 0x20 else 6
    return made if claimed is None else made[:start] + struct.pack("<I", claimed) + made[start + 4 :]


@pytest.mark.parametrize(
    ("segment", "size", "says"),
    [
        (bomb(None), 16 * 1024, "declared were"),
        (bomb(None), 1 << 30, "claims"),
        (bomb(16 * 1024), 16 * 1024, "zstd"),
        (b"x" * 50, 16 * 1024, "not a frame"),
        (b"", 16 * 1024, "not a frame"),
        (struct.pack("<II", 0x184D2A50, 4) + b"abcd", 16 * 1024, "zstd"),  # a skippable frame
        (
            zstandard.ZstdCompressor(write_content_size=False).compress(bytes(16384)),
            16 * 1024,
            "declared were",
        ),
        (zstandard.ZstdCompressor().compress(bytes(16384)) + b"more", 16 * 1024, "zstd"),
        (zstandard.ZstdCompressor().compress(bytes(16384)) * 2, 16 * 1024, "zstd"),
        (zstandard.ZstdCompressor().compress(bytes(16384))[:-3], 16 * 1024, "zstd"),
        # By hand: a frame header that wants a window of 2 GiB for 16,384 bytes.
        (bytes.fromhex("28b52ffd80a800400000"), 16 * 1024, "window"),
    ],
    ids=range(11),
)
def test_zstd_bombs_are_refused_before_allocation(segment, size, says) -> None:
    codec = make_codec("raw+zstd")
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=says):
            codec.decode([[size]], [segment], (4, 1024))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_zstd_frame_by_hand() -> None:
    """One raw block of 64 bytes in a single-segment frame, after the format's specification."""
    x = np.arange(16, dtype=np.float32)[None]
    frame = bytes.fromhex("28b52ffd2040010200") + x.tobytes()
    assert make_codec("zstd").decode([[64]], [frame], (1, 16)).tolist() == x.tolist()


def test_incompressible_segments_are_kept_as_they_are() -> None:
    x = (
        np.random.default_rng(0)
        .integers(0, 1 << 32, (8, 64), dtype=np.uint64)
        .astype(np.uint32)
        .view(np.float32)
    )
    meta, segments = make_codec("zstd").encode(x)
    assert meta == [[0]] and bytes(segments[0]) == x.tobytes()


def test_int8_refuses_scales_and_values_no_encoder_writes() -> None:
    codec = make_codec("int8")
    good = np.ones(2, np.float32)
    q = np.ones((2, 3), np.int8)
    codec.decode([], [good, q], (2, 3))
    for scale in (0.0, -1.0, np.nan, np.inf, 1e-40, 3e36):
        with pytest.raises(WireError, match="scale"):
            codec.decode([], [np.array([1, scale], np.float32), q], (2, 3))
    with pytest.raises(WireError, match="-128"):
        codec.decode([], [good, np.array([[0, 0, 0], [0, 0, -128]], np.int8)], (2, 3))


def test_int4_refuses_padding_that_is_not_zero() -> None:
    scale = np.full(1, 0x3F80, np.uint16)
    for name, before, shape in (("int4", [], (1, 3)), ("sparse+int4", [b"\x07"], (1, 3))):
        codec = make_codec(name)
        assert codec.decode([], [*before, scale, b"\x21\x03"], shape).tolist() == [[1, 2, 3]]
        with pytest.raises(WireError, match="padding"):
            codec.decode([], [*before, scale, b"\x21\x13"], shape)


def test_frames_of_unknown_dtypes_are_refused() -> None:
    for code in (3, -1, True, "f", None, 1.0):
        with pytest.raises(WireError, match="dtype"):
            decode_frame(make_codec("raw"), pack(["raw", code, [1, 1], []], [bytes(4)]))


def test_sparse_refuses_bitmaps_that_do_not_fit() -> None:
    codec = make_codec("sparse")
    one = np.ones(1, np.float32)
    assert codec.decode([], [b"\x04", one], (1, 3)).tolist() == [[0, 0, 1]]
    for bitmap, values in ((b"\x08", one), (b"\x05", one), (b"\x00", one), (b"", one), (b"\x04\x00", one)):
        with pytest.raises(WireError):
            codec.decode([], [bitmap, values], (1, 3))


@pytest.mark.parametrize("name", ["fp16", "bf16", "bf16+sparse", "fp16+zstd"])
def test_half_precision_refuses_nan_and_inf(name) -> None:
    codec = make_codec(name)
    inf = 0x7C00 if "fp16" in name else 0x7F80
    for bits in (inf, inf | 0x8000, inf | 1, 0xFFFF):
        values = np.full((1, 3), bits, np.uint16)
        parts = [b"\x07", values] if "sparse" in name else [values]
        with pytest.raises(WireError, match="NaN or Inf"):
            codec.decode([[0]] if "zstd" in name else [], parts, (1, 3))


def test_a_frame_in_pieces_is_the_same_frame() -> None:
    large, small = np.arange(70_000, dtype=np.float32), b"tail"
    header = [1, "x"]
    pieces = pack_pieces(header, [small, large, b"", small, large[:1]])
    assert [p.size for p in pieces if p.size >= 1 << 16] == [large.nbytes] and len(pieces) == 3
    assert np.shares_memory(pieces[1], large), "large segments are not copied"
    whole = pack(header, [small, large, b"", small, large[:1]])
    assert b"".join(p.tobytes() for p in pieces) == whole.tobytes()
    found, segments = unpack(pieces)
    assert found == header
    assert [bytes(s) for s in segments] == [small, large.tobytes(), b"", small, large[:1].tobytes()]


@pytest.mark.parametrize("large", [1 << 16, (1 << 16) + 1])  # with and without a gap behind it
def test_empty_segments_of_a_frame_in_pieces_may_lie_anywhere(large: int) -> None:
    rows = np.arange(large, dtype=np.uint8)
    for segments in ([rows, b""], [rows, b"", b""], [b"", rows, b"", rows, b""], [b"x", b"", rows, b""]):
        pieces = pack_pieces([1], segments)
        assert len(pieces) > 1
        header, found = unpack(pieces)
        assert header == [1]
        assert [bytes(segment) for segment in found] == [bytes(segment) for segment in segments]


def test_pieces_cut_anywhere_are_read_right_or_refused() -> None:
    whole = bytes(pack([7], [b"abc" * 30, b"", b"d" * 200]))
    expected = [bytes(s) for s in unpack(whole)[1]]
    refused = 0
    for first in range(len(whole) + 1):
        for second in range(first, len(whole) + 1, 7):
            try:
                header, segments = unpack([whole[:first], whole[first:second], whole[second:]])
            except WireError:
                refused += 1
            else:
                assert header == [7] and [bytes(s) for s in segments] == expected
    assert 0 < refused


def test_altered_missing_and_swapped_pieces_are_refused() -> None:
    pieces = [p.tobytes() for p in pack_pieces([7], [np.ones(20_000), np.zeros(20_000)])]
    assert unpack(pieces)[0] == [7]
    changed = bytearray(pieces[1])
    changed[500] ^= 1
    for bad in (
        [],
        pieces[:-1],
        pieces[::-1],
        [pieces[0], bytes(changed), *pieces[2:]],
        [*pieces, b"x"],
        [None],
    ):
        with pytest.raises(WireError):
            unpack(bad)
