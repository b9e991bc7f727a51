"""Tensors of a directory of safetensors files, read one at a time, as float32.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the
data. Files are mapped, not read: only the pages of the tensors that are asked for are touched. (The official
package's NumPy front end refuses bfloat16, which is what published checkpoints hold.)
"""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32

_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_INDEX = "model.safetensors.index.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: says which file or tensor, what was found and what was expected."""


class Entry(NamedTuple):
    """Where one tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int


class TensorFile:
    """One mapped safetensors file. Raises CheckpointError when its header does not describe it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._data: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        size = self._data.size
        length = int.from_bytes(self._data[:8].tobytes(), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(f"{path}: no safetensors file, or cut off: {size} bytes, header {length}")
        try:
            header = json.loads(self._data[8 : 8 + length].tobytes())
            self.entries = {
                name: self._entry(name, fields, 8 + length)
                for name, fields in header.items()
                if name != "__metadata__"
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path}: damaged safetensors header: {error}") from error

    def _entry(self, name: str, fields: dict[str, Any], data_start: int) -> Entry:
        dtype, shape = str(fields["dtype"]), tuple(int(n) for n in fields["shape"])
        start, end = (int(offset) for offset in fields["data_offsets"])
        if not 0 <= start <= end <= self._data.size - data_start or any(n < 0 for n in shape):
            raise CheckpointError(f"{self.path}: {name} lies outside the file (cut off?)")
        if dtype in _DTYPES and end - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
            raise CheckpointError(f"{self.path}: {name} has {end - start} bytes for {dtype} {list(shape)}")
        return Entry(dtype, shape, data_start + start)

    def read(self, name: str, part: int | None = None) -> F32:
        """The tensor `name`, or its part [part]; a view of the file where it is float32 already."""
        dtype, shape, start = self.entries[name]
        if dtype not in _DTYPES:
            raise CheckpointError(f"{self.path}: {name} has type {dtype}; allowed: {', '.join(_DTYPES)}")
        raw = np.frombuffer(self._data, _DTYPES[dtype], math.prod(shape), start).reshape(shape)
        if part is not None:
            raw = raw[part]
        if dtype == "BF16":  # the upper half of a float32
            return np.left_shift(raw, 16, dtype=np.uint32).view(np.float32)
        return raw.astype(np.float32, copy=False)


class TensorFiles:
    """All tensors of a checkpoint directory: one file, or shards with an index."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[str, TensorFile] = {}

    @cached_property
    def file_of(self) -> dict[str, str]:
        """File name of each tensor, from the index or from the files' headers."""
        index = self.directory / _INDEX
        if index.is_file():
            try:
                names = {str(k): str(v) for k, v in json.loads(index.read_bytes())["weight_map"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index}: damaged index: {error!r}") from error
            for tensor, name in names.items():
                if Path(name).name != name:
                    raise CheckpointError(
                        f"{index}: {tensor} is in {name!r}; allowed: a file beside the index"
                    )
            return names
        files = sorted(path.name for path in self.directory.glob("*.safetensors"))
        if not files:
            raise CheckpointError(
                f"{self.directory}: no *.safetensors files; save the model with safetensors"
            )
        return {tensor: name for name in files for tensor in self._file(name).entries}

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    def entry(self, name: str) -> Entry | None:
        """Type and shape of tensor `name`, None when the checkpoint has no such tensor."""
        file = self.file_of.get(name)
        return None if file is None else self._file(file).entries.get(name)

    def read(self, name: str, shape: tuple[int, ...], part: int | None = None) -> F32:
        """The tensor `name`, which must have `shape`, or its part [part]."""
        problem = self.problem(name, shape)
        if problem:
            raise CheckpointError(f"{self.directory}: {problem}")
        return self._file(self.file_of[name]).read(name, part)

    def problem(self, name: str, shape: tuple[int, ...]) -> str | None:
        """What is wrong with tensor `name`, or None."""
        entry = self.entry(name)
        if entry is None:
            return f"{name} is missing; expected shape {list(shape)}"
        if entry.shape != shape:
            return f"{name} has shape {list(entry.shape)}; expected {list(shape)}"
        if entry.dtype not in _DTYPES:
            return f"{name} has type {entry.dtype}; allowed: {', '.join(_DTYPES)}"
        return None

    def _file(self, name: str) -> TensorFile:
        if name not in self._open:
            self._open[name] = TensorFile(self.directory / name)
        return self._open[name]
