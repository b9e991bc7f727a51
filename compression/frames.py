"""Rows as one self-describing frame: the codec's name, the shape and the rows."""

from __future__ import annotations

import numpy as np

from .codec import MAX_DECODED_BYTES, Codec
from .errors import WireError
from .segments import Buffer
from .wire import MAX_FRAME_BYTES, pack, unpack


def encode_frame(codec: Codec, x: np.ndarray) -> np.ndarray:
    """Rows float32 [n, D] -> one frame, uint8 [bytes], header [codec name, shape, meta]."""
    meta, segments = codec.encode(x)
    return pack([codec.name, list(x.shape), meta], segments)


def decode_frame(
    codec: Codec,
    frame: Buffer,
    out: np.ndarray | None = None,
    max_frame_bytes: int = MAX_FRAME_BYTES,
    max_bytes: int = MAX_DECODED_BYTES,
) -> np.ndarray:
    """One frame -> rows float32 [n, D], in `out` where given; WireError if another codec wrote the frame."""
    header, segments = unpack(frame, max_frame_bytes)
    if type(header) is not list or len(header) != 3:
        raise WireError("the frame's header is not that of encoded rows")
    name, shape, meta = header
    if name != codec.name:
        raise WireError(f"the frame holds rows of codec {name!r}, expected was {codec.name!r}")
    if type(shape) is not list:
        raise WireError(f"shape must be two whole numbers, not {shape!r}")
    if out is not None and tuple(shape) != out.shape:
        raise WireError(f"the frame holds rows {shape}, expected were {list(out.shape)}")
    return codec.decode(meta, segments, shape, out, max_bytes)
