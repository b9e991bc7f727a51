"""Rows as one self-describing frame: the codec's name, the rows' dtype and shape, and the rows."""

from __future__ import annotations

import numpy as np

from .bf16 import Bf16
from .codec import BFLOAT16, FLOAT16, FLOAT32, MAX_DECODED_BYTES, Codec, is_bfloat16
from .errors import CodecError, WireError
from .fp16 import MAX as FLOAT16_MAX
from .segments import Buffer
from .wire import MAX_FRAME_BYTES, pack, unpack

_DTYPES = (FLOAT32, FLOAT16, BFLOAT16)  # their places are their codes in the header
_BFLOAT16 = Bf16()


def encode_frame(codec: Codec, x: np.ndarray) -> np.ndarray:
    """Rows float32, float16 or bfloat16 [n, D], as `Codec.encode` takes them, -> one frame, uint8 [bytes].

    Its header is [codec name, code of the dtype, shape, meta].
    """
    meta, segments = codec.encode(x)
    dtype = 0 if x.dtype == FLOAT32 else 1 if x.dtype == FLOAT16 else 2
    return pack([codec.name, dtype, list(x.shape), meta], segments)


def decode_frame(
    codec: Codec,
    frame: Buffer,
    out: np.ndarray | None = None,
    max_frame_bytes: int = MAX_FRAME_BYTES,
    max_bytes: int = MAX_DECODED_BYTES,
) -> np.ndarray:
    """One frame -> rows [n, D] of the dtype that was encoded, in `out` where given.

    bfloat16 rows come as uint16 bits of dtype `BFLOAT16`, if `out` is not of `ml_dtypes.bfloat16`. What a
    lossy codec gives is rounded to a narrow dtype, to its largest finite number at most.
    Raises WireError if another codec wrote the frame; CodecError if `out` does not fit it.
    """
    header, segments = unpack(frame, max_frame_bytes)
    if type(header) is not list or len(header) != 4:
        raise WireError("the frame's header is not that of encoded rows")
    name, code, shape, meta = header
    if name != codec.name:
        raise WireError(f"the frame holds rows of codec {name!r}, expected was {codec.name!r}")
    if type(code) is not int or not 0 <= code < len(_DTYPES):
        raise WireError(f"unknown dtype {code!r}; known are 0 to {len(_DTYPES) - 1}")
    if type(shape) is not list:
        raise WireError(f"shape must be two whole numbers, not {shape!r}")
    if out is not None and tuple(shape) != out.shape:
        raise WireError(f"the frame holds rows {shape}, expected were {list(out.shape)}")
    if code == 0:
        return codec.decode(meta, segments, shape, out, max_bytes)
    rows = codec.decode(meta, segments, shape, None, max_bytes)
    narrow = _float16(rows, codec.lossless) if code == 1 else _bfloat16(rows, codec.lossless)
    if out is None:
        return narrow
    fits = out.dtype == FLOAT16 if code == 1 else is_bfloat16(out.dtype)
    if not fits or not out.flags.writeable:
        raise CodecError(f"out must be writeable {('float16', 'bfloat16')[code - 1]}, not {out.dtype}")
    np.copyto(out.view(np.uint16), narrow.view(np.uint16))
    return out


def _float16(rows: np.ndarray, exact: bool) -> np.ndarray:
    if exact:
        with np.errstate(over="ignore"):  # only in a forged frame
            return rows.astype(FLOAT16)
    return np.clip(rows, -FLOAT16_MAX, FLOAT16_MAX).astype(FLOAT16)


def _bfloat16(rows: np.ndarray, exact: bool) -> np.ndarray:
    if not exact:
        return _BFLOAT16.encode(np.ascontiguousarray(rows)).view(BFLOAT16)
    return (rows.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(BFLOAT16)
