"""The frame: one contiguous, versioned, checksummed buffer with a small header and aligned segments.

Layout of version 1, little-endian, offsets in bytes:

    0   magic      4 bytes  "RYMU"
    4   version    u32      1
    8   checksum   u64      xxh3_64 of every byte from offset 16 to the end
    16  total      u64      size of the whole frame
    24  header     u32      size of the header
    28  count      u32      number of segments
    32  sizes      u64 each size of each segment
    ..  header              msgpack: an array or a map
    ..  segments            each at the next multiple of 64 from the frame's start, zeros in between

The frame ends where its last segment (or, without segments, its header) ends.

A transport whose messages have several parts may carry a frame in pieces, cut around its large segments:
these need not be copied into the frame, nor out of it. Where these lie in memory that sender and receiver
share, nothing can happen to them on the way: with version 2 the checksum leaves them out.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from xxhash import xxh3_64, xxh3_64_intdigest

from .errors import CodecError, WireError
from .segments import Buffer, nbytes

MAGIC = b"RYMU"
VERSION, SHARED_VERSION = 1, 2
ALIGNMENT = 64
MAX_FRAME_BYTES = 1 << 31
MAX_HEADER_BYTES = 1 << 16
MAX_HEADER_ITEMS = 4096  # of one array or map in the header: msgpack allocates what a length claims
MAX_SEGMENTS = 1024
PIECE_BYTES = 1 << 16  # segments from this size on are pieces of their own

_MARK, _SHARED_MARK = (
    int.from_bytes(MAGIC + struct.pack("<I", version), "little") for version in (VERSION, SHARED_VERSION)
)
_PRELUDE = struct.Struct("<QQQII")
_HASHED = 16
_CHECKSUM = struct.Struct("<Q")
_ZEROS = bytes(_PRELUDE.size + 8 * MAX_SEGMENTS)  # enough for an open prelude with all sizes
_GAPS = [bytes(size) for size in range(ALIGNMENT)]
_SIZES = [struct.Struct(f"<{count}Q") for count in range(17)]


def pack(header: list[Any] | dict[Any, Any], segments: Sequence[Buffer] = ()) -> np.ndarray:
    """One frame, uint8 [bytes], of a header that msgpack can write and buffers (each copied once).

    Raises CodecError for a header or segments beyond the limits that `unpack` enforces.
    """
    return pack_pieces(header, segments, 1 << 62)[0]


def pack_pieces(
    header: list[Any] | dict[Any, Any],
    segments: Sequence[Buffer] = (),
    piece_bytes: int = PIECE_BYTES,
    shared: bool = False,
) -> list[np.ndarray]:
    """The same frame in pieces, uint8 [bytes] each; segments of at least `piece_bytes` are not copied.

    They must not change until all is sent. Every second piece is such a segment; those of a `shared` frame
    are left out of its checksum. Raises CodecError as `pack` does.
    """
    head = msgpack.packb(header)
    if (
        len(head) > MAX_HEADER_ITEMS and _most_items(header) > MAX_HEADER_ITEMS
    ):  # an item takes a byte or more
        raise CodecError(
            f"a list or dict in a frame's header holds up to {MAX_HEADER_ITEMS} items, not "
            f"{_most_items(header)}; what is larger must travel as a segment"
        )
    if len(head) > MAX_HEADER_BYTES or len(segments) > MAX_SEGMENTS or not isinstance(header, (list, dict)):
        raise CodecError(
            f"a frame holds a list or dict of up to {MAX_HEADER_BYTES} bytes and up to {MAX_SEGMENTS} "
            f"segments, not a {type(header).__name__} of {len(head)} bytes and {len(segments)} segments"
        )
    sizes = list(map(nbytes, segments))
    table = _table(len(sizes))
    start = _PRELUDE.size + table.size
    end = start + len(head)
    pieces: list[np.ndarray] = []
    run: list[Buffer] = [_ZEROS[:start], head]  # copied bytes since the last piece
    for size, segment in zip(sizes, segments, strict=True):
        gap = -end % ALIGNMENT
        end += gap + size
        run.append(_GAPS[gap])
        if size < piece_bytes:
            run.append(segment)
        else:
            pieces += [_joined(run), np.frombuffer(_contiguous(segment), np.uint8)]
            run = []
    if end > MAX_FRAME_BYTES:
        raise CodecError(f"a frame may have up to {MAX_FRAME_BYTES} bytes, not {end}")
    if run:
        pieces.append(_joined(run))
    first = pieces[0].data
    shared = shared and len(pieces) > 1
    _PRELUDE.pack_into(first, 0, _SHARED_MARK if shared else _MARK, 0, end, len(head), len(sizes))
    table.pack_into(first, _PRELUDE.size, *sizes)
    _CHECKSUM.pack_into(first, 8, _checksum([piece.data for piece in pieces[:: 1 + shared]]))
    return pieces


def unpack(
    buffer: Buffer | Sequence[Buffer], max_bytes: int = MAX_FRAME_BYTES
) -> tuple[Any, list[memoryview]]:
    """A frame's header (list or dict) and its segments as views of the buffer, read-only where that is.

    A list or tuple of buffers is a frame in pieces. Everything is checked before it is believed: sizes
    against the buffer, then the checksum, then the header.
    Raises WireError, and nothing else, for bytes that `pack` did not write.
    """
    pieces = [_bytes(piece) for piece in buffer] if isinstance(buffer, (list, tuple)) else [_bytes(buffer)]
    size = sum(map(len, pieces))
    if not _PRELUDE.size <= size <= max_bytes or len(pieces[0]) < _PRELUDE.size:
        raise WireError(f"a frame of {size} bytes; allowed are {_PRELUDE.size} to {max_bytes}")
    view = pieces[0]
    mark, checksum, total, head_size, count = _PRELUDE.unpack_from(view)
    shared = mark == _SHARED_MARK
    if mark != _MARK and not shared:
        if view[:4] != MAGIC:
            raise WireError("not a frame: wrong magic")
        raise WireError(f"frame version {mark >> 32}; this program reads {VERSION} and {SHARED_VERSION}")
    if shared and len(pieces) < 2:
        raise WireError(f"frame of version {SHARED_VERSION} in one piece, with nothing that is shared")
    if total != size or head_size > MAX_HEADER_BYTES or count > MAX_SEGMENTS:
        raise WireError(
            f"frame claims {total} bytes, {head_size} of header, {count} segments; has {size} bytes"
        )
    table = _table(count)
    start = _PRELUDE.size + table.size
    end = start + head_size
    if end > len(view):
        raise WireError(f"frame's header ends at {end} of {len(view)} bytes")
    stop = end
    places = []
    for length in table.unpack_from(view, _PRELUDE.size):
        begin = stop + -stop % ALIGNMENT
        stop = begin + length
        places.append((begin, stop))
    if stop != size:
        raise WireError(f"frame's segments end at {stop} of {size} bytes")
    if _checksum(pieces[:: 1 + shared]) != checksum:
        raise WireError("frame's checksum does not match")
    header = _header(view[start:end])
    if len(pieces) == 1:
        return header, [view[begin:stop] for begin, stop in places]
    return header, _segments(pieces, places)


def header_bytes(frame: Sequence[np.ndarray]) -> int:
    """Size of the header of a frame in pieces, as `pack_pieces` made it."""
    return int(_PRELUDE.unpack_from(frame[0].data)[3])


def frame_bytes(header: int, segments: Sequence[int]) -> int:
    """Size of a frame with a header and segments of so many bytes."""
    end = _PRELUDE.size + 8 * len(segments) + header
    for size in segments:
        end += -end % ALIGNMENT + size
    return end


def _most_items(header: Any) -> int:
    """The length of the longest list or dict in a header."""
    if isinstance(header, dict):
        return max(len(header), *map(_most_items, header.values()), 0)
    return max(len(header), *map(_most_items, header), 0) if isinstance(header, (list, tuple)) else 0


def _joined(run: list[Buffer]) -> np.ndarray:
    try:
        return np.frombuffer(bytearray().join(run), np.uint8)
    except TypeError:  # an array with gaps
        return np.frombuffer(bytearray().join(map(_contiguous, run)), np.uint8)


def _checksum(pieces: list[memoryview]) -> int:
    if len(pieces) == 1:
        return xxh3_64_intdigest(pieces[0][_HASHED:])
    state = xxh3_64(pieces[0][_HASHED:])
    for piece in pieces[1:]:
        state.update(piece)
    return state.intdigest()


def _segments(pieces: list[memoryview], places: list[tuple[int, int]]) -> list[memoryview]:
    """Cut segments, each within one piece, out of a frame in pieces."""
    segments = []
    low, number = 0, 0
    for begin, stop in places:
        if begin == stop:
            segments.append(pieces[0][:0])
            continue
        while begin - low >= len(pieces[number]):
            low += len(pieces[number])
            number += 1
        if stop - low > len(pieces[number]):
            raise WireError(f"frame's segment at {begin} to {stop} is cut at {low + len(pieces[number])}")
        segments.append(pieces[number][begin - low : stop - low])
    return segments


def _header(view: memoryview) -> Any:
    try:
        header = msgpack.unpackb(
            view, strict_map_key=False, max_array_len=MAX_HEADER_ITEMS, max_map_len=MAX_HEADER_ITEMS
        )
    except Exception as error:  # msgpack raises from half a dozen families for malformed bytes
        raise WireError(f"frame's header is not readable: {type(error).__name__}: {error}") from None
    if not isinstance(header, (list, dict)):
        raise WireError(f"frame's header must be a list or a dict, not {type(header).__name__}")
    return header


def _table(count: int) -> struct.Struct:
    return _SIZES[count] if count < len(_SIZES) else struct.Struct(f"<{count}Q")


def _contiguous(segment: Buffer) -> Buffer:
    """The segment, copied only if it is an array with gaps."""
    return np.ascontiguousarray(segment) if isinstance(segment, np.ndarray) else segment


def _bytes(buffer: Buffer) -> memoryview:
    try:
        view = memoryview(buffer)
        return view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, ValueError, BufferError):
        raise WireError(f"a frame must be a contiguous buffer, not {type(buffer).__name__}") from None
