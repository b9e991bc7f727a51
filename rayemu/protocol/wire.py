"""Messages as frames and back: msgpack header, aligned arrays, rows through the link's codec.

A frame that is altered, cut or forged raises `WireError` and nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, get_args

import numpy as np

from rayemu.compression import Codec, WireError
from rayemu.compression.wire import pack, unpack
from rayemu.protocol.messages import Dispatch, Message, Reply

_DTYPES = [np.dtype(t) for t in ("<f4", "<i4", "<i8", "|u1", "|b1")]
_DTYPE_CODE = {d: i for i, d in enumerate(_DTYPES)}
_CODED = -1  # in place of a dtype: the array went through the codec of the frame's level
_KINDS: list[type] = list(get_args(Message))
_KIND_OF = {kind: i for i, kind in enumerate(_KINDS)}
_SCALARS = {k: [f.name for f in dataclasses.fields(k) if f.name not in k.ARRAYS] for k in _KINDS}
_TYPES = {k: {f.name: str(f.type) for f in dataclasses.fields(k)} for k in _KINDS}
_CHECKS: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "bool": bool,
    "str": str,
    "float": (int, float),
    "list[str]": list,
    "dict[str, float]": dict,
    "dict[str, object]": dict,
}


class Wire:
    """Encodes and decodes for one run: `codecs[level]` compresses the rows of dispatches and replies."""

    def __init__(self, codecs: tuple[Codec, ...]) -> None:
        self.codecs = codecs

    def encode(self, message: Message, level: int = 0) -> np.ndarray:
        """Turn a message into one contiguous frame (uint8)."""
        kind = type(message)
        scalars = [getattr(message, name) for name in _SCALARS[kind]]
        arrays: list[Any] = []
        segments: list[Any] = []
        for name in kind.ARRAYS:
            array = getattr(message, name)
            if array is None:
                arrays.append(None)
            elif name == "rows" and kind in (Dispatch, Reply):
                encoded = self.codecs[level].encode(array)
                arrays.append([_CODED, list(array.shape), len(encoded.segments), encoded.meta])
                segments += encoded.segments
            else:
                array = np.ascontiguousarray(array)
                arrays.append([_DTYPE_CODE[array.dtype], list(array.shape)])
                segments.append(array)
        return pack([_KIND_OF[kind], level, scalars, arrays], segments)

    def decode(self, frame: Any) -> Message:
        """Turn a frame back into the message; arrays are views of the frame where the codec allows."""
        header, segments = unpack(frame)
        try:
            number, level, scalars, arrays = header
            kind = _KINDS[_index(number, len(_KINDS))]
            codec = self.codecs[_index(level, len(self.codecs))]
            names = _SCALARS[kind]
            if len(scalars) != len(names) or len(arrays) != len(kind.ARRAYS):  # type: ignore[attr-defined]
                raise WireError(f"{kind.__name__}: wrong number of fields")
            values = dict(zip(names, scalars, strict=True))
            for name, value in values.items():
                if not isinstance(value, _CHECKS[_TYPES[kind][name]]):
                    raise WireError(f"{kind.__name__}.{name}: unexpected {type(value).__name__}")
            at = 0
            for name, description in zip(kind.ARRAYS, arrays, strict=True):  # type: ignore[attr-defined]
                if description is None:
                    values[name] = None
                    continue
                code, shape = description[:2]
                count = description[2] if code == _CODED else 1
                taken = segments[at : at + _index(count, len(segments) - at + 1)]
                at += len(taken)
                if code == _CODED:
                    values[name] = codec.decode(description[3], taken, _shape(shape, 2))
                else:
                    values[name] = _array(_DTYPES[_index(code, len(_DTYPES))], _shape(shape, 4), taken[0])
            if at != len(segments):
                raise WireError(f"{len(segments) - at} segments too many")
            message = kind(**values)
            check = _BODY_CHECKS.get(kind)
            if check is not None:
                check(message)
            return message  # type: ignore[no-any-return]
        except WireError:
            raise
        except (TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise WireError(f"malformed header: {error}") from error


def _index(value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise WireError(f"number {value!r} out of range 0..{limit - 1}")
    return value


def _shape(shape: Any, rank: int) -> tuple[int, ...]:
    if not isinstance(shape, list) or len(shape) > rank:
        raise WireError(f"bad shape {shape!r}")
    return tuple(_index(n, 1 << 40) for n in shape)


def _array(dtype: np.dtype, shape: tuple[int, ...], segment: memoryview) -> np.ndarray:
    if math.prod(shape) * dtype.itemsize != len(segment):
        raise WireError(f"shape {shape} does not fit {len(segment)} bytes")
    return np.frombuffer(segment, dtype).reshape(shape)


def _check_dispatch(m: Dispatch) -> None:
    pairs = int(m.lot_rows.sum())
    lots = len(m.lot_rows)
    if m.rows.ndim != 2 or len(m.lot_modules) != lots or len(m.lot_experts) != lots or (m.lot_rows < 0).any():
        raise WireError("dispatch: lots do not fit together")
    if m.row_of_pair is None:
        if len(m.rows) != pairs:
            raise WireError(f"dispatch: {len(m.rows)} rows for {pairs} pairs")
    elif len(m.row_of_pair) != pairs or (pairs and not 0 <= m.row_of_pair.min() <= m.row_of_pair.max() < len(m.rows)):
        raise WireError("dispatch: row indices out of range")


def _check_reply(m: Reply) -> None:
    if m.spans.ndim != 2 or m.spans.shape[1] != 4 or (m.spans[:, :2] < 0).any():
        raise WireError("reply: bad spans")
    if int(m.spans[:, 1].sum()) != len(m.rows):
        raise WireError(f"reply: {len(m.rows)} rows for {int(m.spans[:, 1].sum())} pairs")
    m.spans = m.spans.copy()  # the relay marks codecs in it; views of frames are read-only


_BODY_CHECKS: dict[type, Callable[[Any], None]] = {Dispatch: _check_dispatch, Reply: _check_reply}
