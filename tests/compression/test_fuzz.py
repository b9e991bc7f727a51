"""Altered, cut, spliced and random frames: each is refused with WireError, or decodes within its cap."""

from __future__ import annotations

import struct
import tracemalloc

import msgpack
import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from rayemu.compression import WireError, decode_frame, encode_frame, make_codec

NAMES = [
    "raw",
    "fp16",
    "bf16",
    "int8",
    "int8(group=16)",
    "int4",
    "fp8(group=16)",
    "sparse",
    "sparse(0.5)+int8(group=16)+zstd",
    "blocks(4)+int8",
    "planes+zstd",
    "bf16+planes",
    "delta(4)+int4",
    "zstd",
]
CAP = 1 << 16
ODD_NUMBERS = [
    0,
    1,
    -1,
    2,
    15,
    255,
    256,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**63,
    2**64 - 1,
    True,
    None,
    1.5,
    "x",
    [],
]


def frames(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    made = []
    for name in NAMES:
        for shape in ((0, 8), (1, 40), (6, 50), (20, 64)):
            x = rng.standard_normal(shape, dtype=np.float32)
            x[rng.random(shape) < 0.6] = 0
            made.append((name, bytes(encode_frame(make_codec(name), x))))
        made.append((name, bytes(encode_frame(make_codec(name), x.astype(np.float16)))))
    return made


def seal(frame: bytearray) -> bytes:
    """The frame with the checksum that its bytes ask for: what someone who knows the format could send."""
    if len(frame) >= 16:
        struct.pack_into("<Q", frame, 8, xxh3_64_intdigest(memoryview(frame)[16:]))
    return bytes(frame)


def alter(frame: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(0, min(len(frame), int(rng.choice([32, 128, 1 << 20])))))
        how = rng.integers(0, 4)
        if how == 0:
            frame[place] ^= 1 << int(rng.integers(0, 8))
        elif how == 1:
            frame[place] = int(rng.choice([0, 1, 127, 128, 255]))
        elif how == 2:
            del frame[place : place + int(rng.integers(1, 20))]
        else:
            frame[place:place] = rng.bytes(int(rng.integers(1, 20)))
        if not frame:
            return


def strange(value: object, rng: np.random.Generator) -> object:
    """The header with some of its parts replaced."""
    if rng.random() < 0.15:
        return ODD_NUMBERS[int(rng.integers(0, len(ODD_NUMBERS)))]
    if isinstance(value, list):
        changed = [strange(v, rng) for v in value]
        return changed + changed[:1] if rng.random() < 0.05 else changed
    return value


def mutant(pool: list[tuple[str, bytes]], rng: np.random.Generator) -> tuple[str, bytes, bool]:
    """A codec's name, a frame, and whether it must be refused whatever it holds."""
    name, original = pool[int(rng.integers(0, len(pool)))]
    frame = bytearray(original)
    kind = int(rng.integers(0, 7))
    if kind == 0:
        alter(frame, rng)
        return name, bytes(frame), bytes(frame) != original
    if kind == 1:
        return name, original[: int(rng.integers(0, len(original)))], True
    if kind == 2:
        return name, rng.bytes(int(rng.integers(0, 400))), True
    other = pool[int(rng.integers(0, len(pool)))][1]
    if kind == 3:
        cut = int(rng.integers(1, min(len(frame), len(other))))
        spliced = original[:cut] + other[cut:]
        return name, spliced, spliced not in (original, other)
    if kind == 4:
        alter(frame, rng)
        return name, seal(frame), False
    if kind == 5:
        cut = int(rng.integers(16, min(len(frame), len(other)) + 1))
        joined = bytearray(original[:cut] + other[cut:])
        if len(joined) >= 24:
            struct.pack_into("<Q", joined, 16, len(joined))
        return name, seal(joined), False
    return name, rebuilt(original, rng), False


def rebuilt(frame: bytes, rng: np.random.Generator) -> bytes:
    """The frame with a strange header and strange segments, well-formed as a frame."""
    head, count = struct.unpack_from("<II", frame, 24)
    sizes = struct.unpack_from(f"<{count}Q", frame, 32)
    start = 32 + 8 * count
    header = msgpack.packb(strange(msgpack.unpackb(frame[start : start + head]), rng))
    segments, stop = [], start + head
    for size in sizes:
        begin = -(-stop // 64) * 64
        stop = begin + size
        segment = bytearray(frame[begin:stop])
        if segment and rng.random() < 0.4:
            alter(segment, rng)
        segments.append(bytes(segment))
    body = b"".join(struct.pack("<Q", len(s)) for s in segments) + header
    for segment in segments:
        body += bytes(-(32 + len(body)) % 64) + segment
    body = struct.pack("<QII", 32 + len(body), len(header), len(segments)) + body
    return seal(bytearray(frame[:16] + body))


def run(count: int, seed: int) -> int:
    rng = np.random.default_rng(seed)
    pool = frames(rng)
    refused = 0
    for i in range(count):
        name, frame, must_refuse = mutant(pool, rng)
        try:
            y = decode_frame(make_codec(name), frame, max_bytes=CAP)
        except WireError:
            refused += 1
        else:
            assert not must_refuse, (seed, i, name, frame.hex())
            assert y.dtype in (np.float32, np.float16, np.uint16) and y.nbytes <= CAP
            if not make_codec(name).lossless:
                assert np.isfinite(y).all(), (seed, i, name, frame.hex())
    return refused


def test_fuzz_frames() -> None:
    tracemalloc.start()
    try:
        run(500, seed=1)
        assert tracemalloc.get_traced_memory()[1] < 64 * CAP
    finally:
        tracemalloc.stop()
    assert run(20_000, seed=2) > 10_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 110))
def test_fuzz_a_million_frames(seed) -> None:
    assert run(100_000, seed) > 50_000
