"""What a stage of a codec is: its type, its parameters, and how stages write themselves as text.

Shapes: n rows, D width, V values in all (n x D, or fewer after a selecting stage).

Three types of stage follow each other, each group in this order:
- array->array: any number; float32 [n, D] to an array of another dtype or content, the same shape but for
  `project`; a stage may add segments of its own, which come first;
- array->segments: exactly one packer, `raw` where none is named. It may follow one selector, which keeps only
  some values of each row and leaves it to the packer how those are stored;
- bytes->bytes: any number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from .buffers import New
from .segments import Buffer

ARRAY = "array->array"
SEGMENTS = "array->segments"
BYTES = "bytes->bytes"


@dataclass(frozen=True)
class Stage:
    """One step of a codec. Subclasses are frozen dataclasses whose fields are the stage's parameters."""

    kind: ClassVar[str]
    stage_name: ClassVar[str]

    @property
    def lossless(self) -> bool:
        """True if decoding gives back the stage's input to the bit, NaN and negative zero included."""
        raise NotImplementedError

    @property
    def row_local(self) -> bool:
        """True if what a row decodes to depends on that row alone."""
        return True

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def __str__(self) -> str:
        listed = ",".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.stage_name}({listed})" if listed else self.stage_name

    @classmethod
    def parameter_names(cls) -> list[str]:
        """Names of the parameters, in the order in which they may be given without a name."""
        return [f.name for f in fields(cls) if f.default is not MISSING]


class ArrayStage(Stage):
    """array->array: same shape, another dtype or content."""

    kind = ARRAY
    dtype: ClassVar[np.dtype]  # what encode gives
    sides: ClassVar[int] = 0  # segments of its own that travel beside those of the packer

    def encode_sides(self, x: np.ndarray, new: New, new_side: New) -> tuple[np.ndarray, list[Buffer]]:
        """float32 [n, D] -> (`dtype` of `inner_shape`, its own segments), each in memory from its `new`."""
        return self.encode(x, new), []

    def decode_sides(
        self, y: np.ndarray, sides: Sequence[Buffer], shape: tuple[int, int], out: np.ndarray | None
    ) -> np.ndarray:
        """The inverse, to float32 rows of `shape`; into `out` where given."""
        return self.decode(y, out)

    def inner_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The shape that rows of `shape` are encoded to."""
        return shape

    def max_side_bytes(self, shape: tuple[int, int]) -> list[int]:
        """Largest size of each of its own segments."""
        return []

    def check(self, y: np.ndarray) -> None:
        """Refuse, as `encode` would, rows that come in `dtype` already."""

    def encode(self, x: np.ndarray, new: New = np.empty) -> np.ndarray:
        """float32 [n, D] -> `dtype` [n, D], in memory from `new`."""
        raise NotImplementedError

    def decode(self, y: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """`dtype` [n, D] -> float32 [n, D]; float32 passes through, for the packers that store float32."""
        raise NotImplementedError


class PackStage(Stage):
    """array->segments: how values are stored."""

    kind = SEGMENTS
    # Whether it stores float32 only; otherwise it stores whatever dtype the array stages gave.
    takes_float32: ClassVar[bool]

    def encode(self, x: np.ndarray, new: New = np.empty) -> list[Buffer]:
        """[n, D] -> segments, in memory from `new`."""
        raise NotImplementedError

    def decode(
        self, segments: Sequence[Buffer], shape: tuple[int, int], dtype: np.dtype, out: np.ndarray | None
    ) -> np.ndarray:
        """Segments -> [n, D]; into `out` when it is float32 and given. `dtype` is what encode was given."""
        raise NotImplementedError

    def encode_kept(self, values: np.ndarray, counts: np.ndarray, new: New = np.empty) -> list[Buffer]:
        """The kept values [V] of all rows, counts [n] of them in each row -> segments."""
        raise NotImplementedError

    def decode_kept(self, segments: Sequence[Buffer], counts: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Segments -> kept values [V]."""
        raise NotImplementedError

    def max_segment_bytes(self, shape: tuple[int, int], itemsize: int) -> list[int]:
        """Largest size of each segment for values of `itemsize` bytes, whether all or some are kept."""
        raise NotImplementedError


class SelectStage(Stage):
    """array->segments in front of a packer: which values are stored."""

    kind = SEGMENTS

    def encode(self, x: np.ndarray, pack: PackStage, new: New = np.empty) -> list[Buffer]:
        """[n, D] -> the selector's own segment followed by the packer's."""
        raise NotImplementedError

    def decode(
        self,
        segments: Sequence[Buffer],
        shape: tuple[int, int],
        dtype: np.dtype,
        pack: PackStage,
        out: np.ndarray | None,
    ) -> np.ndarray:
        """Segments -> [n, D], zeros where nothing was kept."""
        raise NotImplementedError

    def max_segment_bytes(self, shape: tuple[int, int]) -> list[int]:
        """Largest size of each of the selector's own segments."""
        raise NotImplementedError


class ByteStage(Stage):
    """bytes->bytes: segment by segment, losslessly."""

    kind = BYTES

    def encode(self, segments: Sequence[Buffer]) -> tuple[list[int], list[Buffer]]:
        """Segments -> (meta, as many segments, none larger)."""
        raise NotImplementedError

    def decode(self, meta: Any, segments: Sequence[Buffer], limits: Sequence[int]) -> list[Buffer]:
        """The inverse; refuses, before allocating, a segment that would be larger than its limit in bytes."""
        raise NotImplementedError
