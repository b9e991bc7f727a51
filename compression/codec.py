"""A codec: stages in a checked order that turn rows into segments and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, NamedTuple

import numpy as np

from .buffers import ALIGNMENT, Arena, New
from .errors import CodecError, WireError
from .raw import Raw
from .segments import Buffer, nbytes
from .stage import ArrayStage, ByteStage, PackStage, SelectStage, Stage

MAX_DECODED_BYTES = 1 << 31
FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)
# Bits of bfloat16 numbers: `bits.view(BFLOAT16)` is what `encode` takes for rows of them.
BFLOAT16 = np.dtype(np.uint16, metadata={"rayemu": "bfloat16"})


class Encoded(NamedTuple):
    """Encoded rows: `meta` (lists of whole numbers, fit for msgpack) and the segments, which may be views."""

    meta: list[Any]
    segments: list[Buffer]

    @property
    def nbytes(self) -> int:
        """Bytes of all segments."""
        return sum(map(nbytes, self.segments))


@dataclass(frozen=True)
class Codec:
    """Stages in a checked order; build one with `make_codec`. Immutable, picklable, safe to share by threads.

    Shapes: rows float32 [n, D], n from 0. Segments of a raw codec are views of the rows: pack or copy them
    before the rows change.
    """

    stages: tuple[Stage, ...]
    name: str = field(init=False, compare=False)
    lossless: bool = field(init=False, compare=False)
    row_local: bool = field(init=False, compare=False)
    _arrays: tuple[ArrayStage, ...] = field(init=False, compare=False, repr=False)
    _select: SelectStage | None = field(init=False, compare=False, repr=False)
    _pack: PackStage = field(init=False, compare=False, repr=False)
    _coders: tuple[ByteStage, ...] = field(init=False, compare=False, repr=False)
    _stored: np.dtype = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        stages = _check_order(self.stages)
        arrays = tuple(stage for stage in stages if isinstance(stage, ArrayStage))
        pack = next(stage for stage in stages if isinstance(stage, PackStage))
        narrow = arrays[-1].dtype if arrays else FLOAT32
        # A raw packer that others already imply is left out of the name.
        shown = stages
        if len(stages) > 1 and isinstance(stages[0], (ArrayStage, SelectStage)):
            shown = tuple(stage for stage in stages if not isinstance(stage, Raw))
        for attribute, value in {
            "stages": stages,
            "name": "+".join(map(str, shown)),
            "lossless": all(stage.lossless for stage in stages),
            "row_local": all(stage.row_local for stage in stages),
            "_arrays": arrays,
            "_select": next((stage for stage in stages if isinstance(stage, SelectStage)), None),
            "_pack": pack,
            "_coders": tuple(stage for stage in stages if isinstance(stage, ByteStage)),
            "_stored": FLOAT32 if pack.takes_float32 else narrow,
        }.items():
            object.__setattr__(self, attribute, value)

    def __str__(self) -> str:
        return self.name

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """The codec as a dict that `make_codec` accepts: stage names to their parameters, in order."""
        return {stage.stage_name: stage.parameters for stage in self.stages}

    def encode(self, x: np.ndarray, out: np.ndarray | None = None) -> Encoded:
        """Rows float32, float16 or bfloat16 [n, D] -> meta and segments, the same as of the rows in float32.

        bfloat16 rows are an array of `ml_dtypes.bfloat16`, or uint16 bits viewed as `BFLOAT16`.
        With `out`, contiguous memory of at least `buffer_bytes` of the shape, the segments are parts of it
        wherever a stage makes new bytes (zstd brings its own); without it each call makes new memory.
        Raises CodecError for another dtype or rank, from lossy codecs for a row with NaN or Inf, and for an
        `out` that is too small.
        """
        meta, segments = [], self._to_segments(x, np.empty if out is None else _arena(out))
        for coder in self._coders:
            sizes, segments = coder.encode(segments)
            meta.append(sizes)
        return Encoded(meta, segments)

    def decode(
        self,
        meta: Any,
        segments: Sequence[Buffer],
        shape: Sequence[int],
        out: np.ndarray | None = None,
        max_bytes: int = MAX_DECODED_BYTES,
    ) -> np.ndarray:
        """Meta and segments -> rows float32 [n, D] of the given shape, written to `out` where given.

        Without `out` the result may be a (read-only) view of the segments. Raises WireError, before it
        allocates, for anything that encode of such rows could not have made, and for a shape of more than
        `max_bytes` as float32; CodecError if `out` does not fit the shape.
        """
        rows = _checked_shape(shape, max_bytes)
        if out is not None:
            _check_out(out, rows)
        if type(meta) is not list or len(meta) != len(self._coders):
            raise WireError(f"{self.name}: meta must be a list of {len(self._coders)} entries")
        if self._coders:
            limits = self._segment_limits(rows)
            for coder, sizes in zip(reversed(self._coders), reversed(meta), strict=True):
                segments = coder.decode(sizes, segments, limits)
        return self._from_segments(segments, rows, out)

    def roundtrip(self, x: np.ndarray) -> np.ndarray:
        """What the receiver of rows x [n, D] would see, to the bit; may share memory with x."""
        if self.lossless:
            return _widened(_checked_rows(x))
        return self._from_segments(self._to_segments(x, np.empty), x.shape, None)

    def max_encoded_bytes(self, shape: Sequence[int]) -> int:
        """Largest sum of segment sizes for rows of this shape, in bytes; byte stages never make it larger."""
        return sum(self._segment_limits(_checked_shape(shape, 1 << 62)))

    def buffer_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of `out` that are enough for `encode` of any rows of this shape."""
        limits = self._segment_limits(_checked_shape(shape, 1 << 62))
        return sum(limits) + (len(limits) + 1) * ALIGNMENT

    def _to_segments(self, x: np.ndarray, new: New) -> list[Buffer]:
        x = _checked_rows(x)
        segments: list[Buffer] = []
        arrays = self._arrays
        if x.dtype != FLOAT32:
            if arrays and arrays[0].dtype == x.dtype:  # it is in that stage's own format already
                arrays[0].check(x)
                arrays = arrays[1:]
            else:
                x = _widened(x)
        for stage in arrays:
            last = stage is self._arrays[-1] and self._select is None and isinstance(self._pack, Raw)
            x, sides = stage.encode_sides(x, new if last else np.empty, new)
            segments += sides
        if x.dtype != self._stored:
            x = self._arrays[-1].decode(x)
        if self._select is None:
            return segments + self._pack.encode(x, new)
        return segments + self._select.encode(x, self._pack, new)

    def _from_segments(self, segments: Sequence[Buffer], shape: Any, out: np.ndarray | None) -> np.ndarray:
        if not self._arrays and self._select is None:
            return self._pack.decode(segments, shape, FLOAT32, out)
        shapes = self._shapes(shape)
        sides = sum(stage.sides for stage in self._arrays)
        if len(segments) < sides:
            raise WireError(f"{self.name}: expected more than {sides} segments, got {len(segments)}")
        inner, direct = shapes[-1], out if shapes[-1] == shapes[0] else None
        if self._select is None:
            x = self._pack.decode(segments[sides:], inner, self._stored, direct)
        else:
            x = self._select.decode(segments[sides:], inner, self._stored, self._pack, direct)
        for stage, outer in zip(reversed(self._arrays), reversed(shapes[:-1]), strict=True):
            sides -= stage.sides
            own = segments[sides : sides + stage.sides]
            x = stage.decode_sides(x, own, outer, out if outer == shapes[0] else None)
        return x

    def _shapes(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """The shape of the rows before the first array stage, and after each."""
        shapes = [tuple(shape)]
        for stage in self._arrays:
            shapes.append(stage.inner_shape(shapes[-1]))  # type: ignore[arg-type]
        return shapes  # type: ignore[return-value]

    def _segment_limits(self, shape: tuple[int, int]) -> list[int]:
        limits = []
        for stage, outer in zip(self._arrays, self._shapes(shape), strict=False):
            limits += stage.max_side_bytes(outer)
        inner = self._shapes(shape)[-1]
        limits += self._select.max_segment_bytes(inner) if self._select is not None else []
        return limits + self._pack.max_segment_bytes(inner, self._stored.itemsize)


def _check_order(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages with an implied raw filled in; in a wrong order, a CodecError that says what may follow."""
    if not stages:
        raise CodecError("a codec needs at least one stage; 'raw' sends the values as they are")
    done: list[Stage] = []
    for stage in stages:
        if isinstance(stage, ByteStage) and not any(isinstance(s, PackStage) for s in done):
            done.append(Raw())
        if not isinstance(stage, _may_follow(done)) or any(type(stage) is type(s) for s in done):
            before = f"{done[-1]} ({done[-1].kind})"
            raise CodecError(
                f"{stage} ({stage.kind}) cannot come after {before}; what may follow: {_names(done)}"
            )
        done.append(stage)
    if not any(isinstance(s, PackStage) for s in done):
        done.append(Raw())
    return tuple(done)


def _may_follow(done: Sequence[Stage]) -> tuple[type[Stage], ...]:
    packers = (SelectStage, PackStage, ByteStage)
    last = done[-1] if done else None
    # Array stages take float32, so nothing of their type follows one that narrows it.
    if last is None or (isinstance(last, ArrayStage) and last.dtype == FLOAT32):
        return (ArrayStage, *packers)
    if isinstance(last, ArrayStage):
        return packers
    return (PackStage, ByteStage) if isinstance(last, SelectStage) else (ByteStage,)


def _names(done: Sequence[Stage]) -> str:
    from . import STAGES  # the table imports this module

    used = {type(stage) for stage in done}
    names = [n for n, stage in STAGES.items() if issubclass(stage, _may_follow(done)) and stage not in used]
    return ", ".join(names) or "nothing"


def _checked_rows(x: np.ndarray) -> np.ndarray:
    """The rows, contiguous: float32, float16, or bfloat16 as uint16 bits."""
    if isinstance(x, np.ndarray) and x.ndim == 2:
        if x.dtype in (FLOAT32, FLOAT16):
            return np.ascontiguousarray(x)
        if is_bfloat16(x.dtype):
            return np.ascontiguousarray(x.view(np.uint16))
    got = f"{x.dtype} of rank {x.ndim}" if isinstance(x, np.ndarray) else type(x).__name__
    raise CodecError(f"rows must be an array [n, D] of float32, float16 or bfloat16, not {got}")


def is_bfloat16(dtype: np.dtype) -> bool:
    """Whether arrays of this dtype are rows of bfloat16, ours or those of ml_dtypes."""
    if dtype == np.uint16:
        return bool(dtype.metadata) and dtype.metadata == BFLOAT16.metadata
    return dtype.name == "bfloat16"  # of ml_dtypes, which need not be installed


def _widened(x: np.ndarray) -> np.ndarray:
    """Checked rows in float32, to the bit."""
    if x.dtype == FLOAT32:
        return x
    if x.dtype == FLOAT16:
        return x.astype(np.float32)
    bits = x.astype(np.uint32)
    np.left_shift(bits, np.uint32(16), out=bits)
    return bits.view(np.float32)


def _check_out(out: np.ndarray, rows: tuple[int, int]) -> None:
    if out.shape != rows or out.dtype != FLOAT32 or not out.flags.writeable:
        raise CodecError(f"out must be writeable float32 {rows}, not {out.dtype} {out.shape}")
    if out.strides[1] != 4 and out.size and rows[1] > 1:
        raise CodecError("out must be contiguous along each row")


def _arena(out: np.ndarray) -> New:
    if not isinstance(out, np.ndarray) or not out.flags.c_contiguous or not out.flags.writeable:
        raise CodecError("out must be a contiguous, writeable array")
    return Arena(out).new


def _checked_shape(shape: Sequence[int], max_bytes: int) -> tuple[int, int]:
    try:
        n, width = map(index, shape)
    except (TypeError, ValueError):
        raise WireError(f"shape must be two whole numbers, not {shape!r}") from None
    # Widths of 0 count as 1, so that the number of rows is bounded too.
    if n < 0 or width < 0 or (n or 1) * (width or 1) * 4 > max_bytes:
        raise WireError(f"shape [{n}, {width}] is negative or more than {max_bytes} bytes")
    return n, width
