"""Messages as frames and back: msgpack header, aligned arrays, rows through the link's codec.

A frame that is altered, cut or forged raises `WireError` and nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from itertools import islice
from operator import attrgetter
from typing import Any, TypeVar, get_args

import numpy as np

from rayemu.compression import Codec, WireError
from rayemu.compression.wire import PIECE_BYTES, pack_pieces, unpack
from rayemu.protocol.bounds import Bounds
from rayemu.protocol.messages import NODE_SHIFT, Dispatch, Message, Reply

_DTYPES = [np.dtype(t) for t in ("<f4", "<i4", "<i8", "|u1", "|b1", "<f8", "<u2")]
_DTYPE_CODE = {d: i for i, d in enumerate(_DTYPES)}
_CODED = -1  # in place of a dtype: the array went through the frame's codec
_KINDS: list[Any] = list(get_args(Message))
_KIND_OF = {kind: i for i, kind in enumerate(_KINDS)}
_SCALARS = {k: [f.name for f in dataclasses.fields(k) if f.name not in k.ARRAYS] for k in _KINDS}
_ORDER = {k: [*_SCALARS[k], *k.ARRAYS] for k in _KINDS}
_PYTHON = {"int": int, "bool": bool, "str": str, "float": float, "Rows": list, "list[str]": list}
_TYPES = {
    k: [_PYTHON.get(str(f.type), dict) for f in dataclasses.fields(k) if f.name not in k.ARRAYS]
    for k in _KINDS
}
_LARGEST = 1 << 40
_Coded = TypeVar("_Coded")
Clock = Callable[[], float]


def _scalars_of(kind: Any) -> Callable[[Any], tuple[Any, ...]]:
    names = _SCALARS[kind]
    get: Callable[[Any], Any] = attrgetter(*names)
    return get if len(names) > 1 else lambda message: (get(message),)


_GET_SCALARS = {kind: _scalars_of(kind) for kind in _KINDS}


def no_clock() -> float:
    """Time of those who have no clock."""
    return 0.0


class Wire:
    """Encodes and decodes for one run, whose `codecs` compress the rows of dispatches and replies.

    Whoever has clocks gives the wall's, to tell when frames were sent, and the processor's, to time coders.
    With the run's `bounds`, frames that name what it does not have are refused.
    """

    def __init__(
        self,
        codecs: tuple[Codec, ...],
        bounds: Bounds | None = None,
        wall_s: Clock = no_clock,
        processor_s: Clock = no_clock,
    ) -> None:
        self.codecs, self.bounds, self.wall_s, self.processor_s = codecs, bounds, wall_s, processor_s
        self.decoded_by = 0  # number of the codec of the frame that was decoded last
        self.coder_s = 0.0  # of the processor, for the rows last coded; 0 with the first codec, raw

    def encode(self, message: Message, codec: int = 0) -> np.ndarray:
        """Turn a message into one contiguous frame (uint8)."""
        return self.encode_pieces(message, codec, 1 << 62)[0]

    def encode_pieces(
        self,
        message: Message,
        codec: int = 0,
        piece_bytes: int = PIECE_BYTES,
        timed: bool = False,
        shared: bool = False,
    ) -> list[np.ndarray]:
        """Turn a message into a frame in pieces (uint8); large arrays are not copied and must not change.

        A timed one, if it brings rows through codecs, tells when this was. A `shared` one is for whoever
        reads large pieces where they lie.
        """
        kind = type(message)
        arrays: list[Any] = []
        segments: list[Any] = []
        for name in kind.ARRAYS:
            array = getattr(message, name)
            if array is None:
                arrays.append(None)
            elif name == "rows" and kind in (Dispatch, Reply):
                meta, encoded = self._clocked(codec, self.codecs[codec].encode, array)
                arrays.append([_CODED, *array.shape, len(encoded), meta])
                segments += encoded
                message.sent_at = self.wall_s() if timed else 0.0  # type: ignore[union-attr]
            else:
                arrays.append([_DTYPE_CODE[array.dtype], *array.shape])
                segments.append(array if array.flags.c_contiguous else np.ascontiguousarray(array))
        header = [_KIND_OF[kind], codec, _GET_SCALARS[kind](message), arrays]
        return pack_pieces(header, segments, piece_bytes, shared)

    def _clocked(self, codec: int, coder: Callable[..., _Coded], *args: Any) -> _Coded:
        """Run a coder and note how long it took: raw, the first, moves nothing and takes none."""
        if not codec:
            self.coder_s = 0.0
            return coder(*args)
        began = self.processor_s()
        coded = coder(*args)
        self.coder_s = self.processor_s() - began
        return coded

    def decode(self, frame: Any) -> Message:
        """Turn a frame, whole or in pieces, back into the message.

        Arrays are views of the frame where the codec allows.
        """
        header, segments = unpack(frame)
        try:
            number, coded_by, scalars, arrays = header
            self.decoded_by = _index(coded_by, len(self.codecs))
            kind = _KINDS[_index(number, len(_KINDS))]
            if list(map(type, scalars)) != _TYPES[kind] or len(arrays) != len(kind.ARRAYS):
                raise WireError(f"{kind.__name__}: fields of other types than {_TYPES[kind]}")
            taken = iter(segments)
            values: list[Any] = []
            for description in arrays:
                if description is None:
                    values.append(None)
                elif description[0] == _CODED:
                    _, rows, width, count, meta = description
                    shape = (_index(rows, _LARGEST), _index(width, _LARGEST))
                    coded = list(islice(taken, _index(count, 9)))
                    decode = self.codecs[self.decoded_by].decode
                    values.append(self._clocked(self.decoded_by, decode, meta, coded, shape))
                else:
                    values.append(_array(description, next(taken)))
            if next(taken, None) is not None:
                raise WireError("more segments than arrays")
            message = kind(**dict(zip(_ORDER[kind], scalars + values, strict=True)))
            check = _CHECKS.get(kind)
            if check is not None:
                check(message, len(self.codecs))
            if self.bounds is not None:
                self.bounds.check(message)
            return message  # type: ignore[no-any-return]
        except WireError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, StopIteration) as error:
            raise WireError(f"malformed header: {error}") from error


def _index(value: Any, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise WireError(f"number {value!r} out of range 0..{limit - 1}")
    return value


def _array(description: Any, segment: memoryview) -> np.ndarray:
    code, *shape = description
    dtype = _DTYPES[_index(code, len(_DTYPES))]
    for n in shape:
        _index(n, _LARGEST)
    if math.prod(shape) * dtype.itemsize != len(segment):
        raise WireError(f"shape {shape} does not fit {len(segment)} bytes")
    array = np.frombuffer(segment, dtype)
    return array if len(shape) == 1 else array.reshape(shape)


def _check_spans(table: Any) -> int:
    """Check the spans of a reply; return the sum of the pairs that they speak of."""
    total = 0
    for row in table:
        if len(row) != 4 or not all(type(n) is int and 0 <= n < 1 << 31 for n in row):
            raise WireError(f"spans: bad entry {row!r}")
        total += row[1]
    return total


def _check_sent(m: Dispatch | Reply) -> None:
    if not math.isfinite(m.sent_at):
        raise WireError(f"bad time of sending {m.sent_at}")


def _check_path(path: int, codecs: int) -> None:
    if not (0 <= path >> NODE_SHIFT < codecs and path & 0x0F < codecs):
        raise WireError(f"path {path} of {codecs} codecs")


def _check_dispatch(m: Dispatch, codecs: int) -> None:
    _check_sent(m)
    _check_path(m.path, codecs)
    lots = m.lots
    if lots.ndim != 2 or lots.shape[1] != 3 or lots.dtype != np.int32 or not len(lots):
        raise WireError(f"dispatch: lots {lots.dtype}{list(lots.shape)}, each [module, expert, pairs]")
    counts = lots[:, 2].tolist()
    if lots.min() < 0 or 0 in counts:
        raise WireError("dispatch: a lot of nothing, or of less")
    if not -1 <= m.distinct <= len(m.rows):
        raise WireError(f"dispatch: {m.distinct} distinct of {len(m.rows)} rows")
    _check_index(m, sum(counts))


def _check_reply(m: Reply, codecs: int) -> None:
    _check_sent(m)
    pairs = _check_spans(m.spans)
    for span in m.spans:
        _check_path(span[2], codecs)
        _check_path(span[3], codecs)
    _check_index(m, pairs)


def _check_index(m: Dispatch | Reply, pairs: int) -> None:
    index = m.row_of_pair
    if index is None:
        if len(m.rows) != pairs:
            raise WireError(f"{type(m).__name__}: {len(m.rows)} rows for {pairs} pairs")
    elif index.shape != (pairs,) or index.dtype != np.int32:
        raise WireError(f"{type(m).__name__}: row_of_pair {index.dtype}{list(index.shape)} for {pairs} pairs")
    elif pairs and not 0 <= index.min() <= index.max() < len(m.rows):
        raise WireError(f"{type(m).__name__}: row indices out of range")


_CHECKS: dict[type, Callable[[Any, int], None]] = {Dispatch: _check_dispatch, Reply: _check_reply}
