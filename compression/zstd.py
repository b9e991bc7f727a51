"""zstd: Zstandard over each segment."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import zstandard

from .errors import CodecError, WireError
from .segments import Buffer, nbytes
from .stage import ByteStage

LEVELS = range(1, 20)
MAX_WINDOW_BYTES = 1 << 23  # what level 19 uses; larger windows are a way to ask a receiver for memory
MIN_BYTES = 64  # below this a frame's own bytes eat the gain


class _Contexts(threading.local):
    """Compressors by level and one decompressor for each thread: they are costly to make, not to reuse."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_CONTEXTS = _Contexts()


@dataclass(frozen=True)
class Zstd(ByteStage):
    """Zstandard over each segment, at a level from 1 (fast) to 19 (small).

    A segment that would not shrink is kept as it is. Meta: for each segment its size before compression in
    bytes, or 0 if it was kept as it is.
    """

    level: int = 1

    stage_name = "zstd"
    lossless = True

    def __post_init__(self) -> None:
        if type(self.level) is not int or self.level not in LEVELS:
            raise CodecError(f"zstd: level is {self.level!r}, allowed is a whole number from 1 to 19")

    def encode(self, segments: Sequence[Buffer]) -> tuple[list[int], list[Buffer]]:
        compressor = _CONTEXTS.compressors.get(self.level)
        if compressor is None:
            compressor = zstandard.ZstdCompressor(level=self.level)
            _CONTEXTS.compressors[self.level] = compressor
        sizes: list[int] = []
        packed: list[Buffer] = []
        for segment in segments:
            size = nbytes(segment)
            if size >= MIN_BYTES:
                small = compressor.compress(segment)
                if len(small) < size:
                    sizes.append(size)
                    packed.append(small)
                    continue
            sizes.append(0)
            packed.append(segment)
        return sizes, packed

    def decode(self, meta: Any, segments: Sequence[Buffer], limits: Sequence[int]) -> list[Buffer]:
        if type(meta) is not list or len(meta) != len(segments) or len(segments) != len(limits):
            raise WireError(f"zstd: expected the sizes of {len(limits)} segments")
        for size, segment, limit in zip(meta, segments, limits, strict=True):
            if type(size) is not int or not 0 <= size <= limit:
                raise WireError(f"zstd: a segment claims {size!r} bytes, allowed are {limit}")
            if size:
                _check_frame(segment, size)
        return [
            _decompress(segment, size) if size else segment
            for size, segment in zip(meta, segments, strict=True)
        ]


def _check_frame(segment: Buffer, size: int) -> None:
    """WireError unless the frame's own header, which decompress() trusts, claims the declared size."""
    try:
        frame = zstandard.get_frame_parameters(segment)
    except (zstandard.ZstdError, TypeError, ValueError, BufferError) as error:
        raise WireError(f"zstd: not a frame: {error}") from None
    if frame.content_size != size:
        raise WireError(f"zstd: the frame holds {frame.content_size} bytes, declared were {size}")
    if frame.window_size > max(size, MAX_WINDOW_BYTES):
        raise WireError(f"zstd: the frame wants a window of {frame.window_size} bytes")
    if frame.dict_id:
        raise WireError(f"zstd: the frame wants dictionary {frame.dict_id}")


def _decompress(segment: Buffer, size: int) -> bytes:
    try:
        plain = _CONTEXTS.decompressor.decompress(segment, allow_extra_data=False)
    except (zstandard.ZstdError, MemoryError) as error:
        raise WireError(f"zstd: {error}") from None
    if len(plain) != size:
        raise WireError(f"zstd: got {len(plain)} bytes, declared were {size}")
    return plain
