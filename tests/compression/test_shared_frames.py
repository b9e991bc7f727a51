"""The frame, version 2: what lies in memory that both sides share is left out of the checksum."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from rayemu.compression import WireError, pack, unpack
from rayemu.compression.wire import pack_pieces


def shared_frame(*segments: np.ndarray | bytes) -> list[np.ndarray]:
    """A frame of version 2, its large segments where they lie."""
    pieces = pack_pieces([7, "x"], segments, shared=True)
    assert len(pieces) > 1 and bytes(pieces[0][4:8]) == struct.pack("<I", 2)
    return pieces


def test_a_shared_frame_by_hand() -> None:
    """The layout of version 1, and a checksum of all but the large segments."""
    large, tail = np.arange(17_000, dtype=np.float32), np.arange(3)
    pieces = shared_frame(b"ab", large, tail)
    whole = b"".join(p.tobytes() for p in pieces)
    plain = pack([7, "x"], [b"ab", large, tail]).tobytes()
    assert whole[:4] == plain[:4] and whole[16:] == plain[16:]
    before, _, behind = whole.partition(large.tobytes())
    assert struct.unpack("<Q", whole[8:16]) == (xxh3_64_intdigest(before[16:] + behind),)
    header, segments = unpack(pieces)
    assert header == [7, "x"] and [bytes(s) for s in segments] == [b"ab", large.tobytes(), tail.tobytes()]
    assert np.shares_memory(np.frombuffer(segments[1], np.uint8), large), "it is read where it lies"


def test_without_large_segments_there_is_nothing_to_share() -> None:
    for piece_bytes in (1 << 16, 1 << 62):
        (piece,) = pack_pieces([7], [b"x" * 65_535], piece_bytes, shared=True)
        assert bytes(piece) == bytes(pack([7], [b"x" * 65_535]))


def test_every_bit_of_a_shared_frame_that_is_under_way_is_checked() -> None:
    pieces = shared_frame(b"ab", np.ones(20_000), np.arange(9), np.zeros(20_000), b"end")
    assert [p.size >= 1 << 16 for p in pieces] == [False, True, False, True, False]
    assert unpack(pieces)[0] == [7, "x"]
    flips = 0
    for number in (0, 2, 4):
        for bit in range(8 * len(pieces[number])):
            changed = pieces[number].copy()
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(WireError):
                unpack([*pieces[:number], changed, *pieces[number + 1 :]])
            flips += 1
    assert flips > 1000
    pieces[1][500:510] = 7  # what lies in shared memory is as the sender has it
    assert unpack(pieces)[0] == [7, "x"]


def test_a_shared_frame_is_read_in_the_pieces_it_was_made_of() -> None:
    pieces = [p.tobytes() for p in shared_frame(b"ab", np.ones(20_000), np.zeros(20_000), b"end")]
    head, first, gap, second, tail = pieces
    assert unpack(pieces)[0] == [7, "x"] and gap == b""
    for bad in (
        [b"".join(pieces)],
        [head + first, gap + second, tail],
        [head, first + gap + second + tail],
        [head[:40], head[40:] + first, gap, second, tail],
        [head, first[:-64], first[-64:], second, tail],
        pieces[:-1],
        [head, second, gap, first],
        [*pieces, b"", b"x"],
    ):
        with pytest.raises(WireError):
            unpack(bad)
    for kind in (1, 3):  # as another version it is nothing
        with pytest.raises(WireError):
            unpack([head[:4] + struct.pack("<I", kind) + head[8:], *pieces[1:]])
