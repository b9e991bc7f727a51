"""Tensors of a directory of safetensors files, read one at a time, as float32.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the
data. Files are mapped, not read: only the pages of the tensors that are asked for are touched. (The official
package's NumPy front end refuses bfloat16, which is what published checkpoints hold.)

Which files: model.safetensors alone where there is one; else those that the index names; else the shards
model-N-of-M.safetensors. This is what transformers does, but for the shards without an index. Files of other
names (adapters, drafts) are left alone.
"""

from __future__ import annotations

import json
import math
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rayemu.model.quantised import E4M3, MX_BLOCK, mxfp4, scaled_blocks
from rayemu.numerics import F32

_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
_CODES = {"F8_E4M3": "u1", "U8": "u1"}  # what only quantised checkpoints hold
_INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"}  # of statistics, not of checkpoints
_MESSAGE = 2000  # characters of an error
_LONGEST_NAME = 255  # bytes of a file's, on all common file systems
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")
_SCALES = "_scale_inv"  # after the name of an FP8 tensor
_MX_CODES, _MX_SCALES = "_blocks", "_scales"  # in place of an MXFP4 tensor, after its name


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: says which file or tensor, what was found and what was expected.

    In one line of printable characters, whatever names and values the files hold.
    """

    def __init__(self, message: str) -> None:
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        super().__init__(text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]} ...")


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
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path}: damaged safetensors header: {error}") from error

    def _entry(self, name: str, fields: dict[str, Any], data_start: int) -> Entry:
        dtype, shape = str(fields["dtype"]), tuple(int(n) for n in fields["shape"])
        start, end = (int(offset) for offset in fields["data_offsets"])
        if not 0 <= start <= end <= self._data.size - data_start or any(n < 0 for n in shape):
            raise CheckpointError(f"{self.path}: {name} lies outside the file (cut off?)")
        kind = _DTYPES.get(dtype) or _CODES.get(dtype) or _INTEGERS.get(dtype)
        if kind and end - start != math.prod(shape) * np.dtype(kind).itemsize:
            raise CheckpointError(f"{self.path}: {name} has {end - start} bytes for {dtype} {list(shape)}")
        return Entry(dtype, shape, data_start + start)

    def raw(self, name: str, part: int | None = None) -> npt.NDArray[Any]:
        """The tensor `name`, or its part [part], as it lies in the file; bfloat16 and codes as integers."""
        dtype, shape, start = self.entries[name]
        kind = _DTYPES.get(dtype) or _CODES.get(dtype) or _INTEGERS.get(dtype)
        if kind is None:
            raise CheckpointError(f"{self.path}: {name} has type {dtype}; allowed: {', '.join(_DTYPES)}")
        raw = np.frombuffer(self._data, kind, math.prod(shape), start).reshape(shape)
        return raw if part is None else raw[part]

    def read(self, name: str, part: int | None = None) -> F32:
        """The tensor `name`, or its part [part]; a view of the file where it is float32 already."""
        raw, dtype = self.raw(name, part), self.entries[name].dtype
        if dtype == "BF16":  # the upper half of a float32
            return np.left_shift(raw, 16, dtype=np.uint32).view(np.float32)
        if dtype == "F8_E4M3":
            return E4M3[raw]
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is noticed
            return raw.astype(np.float32, copy=False)


class TensorFiles:
    """All tensors of a checkpoint directory.

    `fp8_block` (rows, columns) is what one scale of an FP8 tensor is for; `mxfp4` allows MXFP4 tensors.
    `notes` says which files were passed over, for the user to read.
    """

    def __init__(
        self, directory: Path, fp8_block: tuple[int, int] | None = None, mxfp4: bool = False
    ) -> None:
        self.directory = directory
        self.fp8_block, self.mxfp4 = fp8_block, mxfp4
        self.notes: list[str] = []
        self._open: dict[str, TensorFile] = {}

    @cached_property
    def file_of(self) -> dict[str, str]:
        """File name of each tensor, from the index or from the files' headers."""
        single, index = self.directory / _SINGLE, self.directory / _INDEX
        if single.is_file():
            if index.is_file():
                self._note_index(index)
            return dict.fromkeys(self._file(_SINGLE).entries, _SINGLE)
        if index.is_file():
            names = _weight_map(index)
            gone = sorted({name for name in names.values() if not (self.directory / name).is_file()})
            if gone:
                more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
                raise CheckpointError(
                    f"{self.directory / gone[0]}: cannot be read: no such file, though {index.name} names it"
                    f"{more}; download the missing files"
                )
            return names
        return self._of_shards()

    def _note_index(self, index: Path) -> None:
        try:
            named = set(_weight_map(index).values()) - {_SINGLE}
        except CheckpointError as error:
            self.notes.append(f"{error}; {_SINGLE} is read")
            return
        if named:
            gone = sorted(name for name in named if not (self.directory / name).is_file())
            why = f"stale, since {gone[0]} is not there" if gone else "ignored, as transformers does"
            self.notes.append(f"{self.directory}: {_SINGLE} is read; {_INDEX} beside it is {why}")

    def _of_shards(self) -> dict[str, str]:
        """File name of each tensor where there is no index."""
        files = sorted(path.name for path in self.directory.glob("*.safetensors"))
        shards = {name: match[1] for name in files if (match := _SHARD.fullmatch(name))}
        sets = sorted(set(shards.values()))
        if len(sets) > 1:
            raise CheckpointError(
                f"{self.directory}: shards of several models, of {' and of '.join(sets)} files, and no "
                f"{_INDEX} that says which; remove those that do not belong to the model"
            )
        if not sets:
            found = f"; found {', '.join(files[:5])}" if files else ""
            raise CheckpointError(
                f"{self.directory}: no *.safetensors files of a model ({_SINGLE}, or {_INDEX}, or one set of "
                f"shards model-N-of-M.safetensors){found}; save the model with safetensors"
            )
        of: dict[str, str] = {}
        for name in shards:
            for tensor in self._file(name).entries:
                if tensor in of:
                    raise CheckpointError(f"{self.directory}: {tensor} is both in {of[tensor]} and in {name}")
                of[tensor] = name
        return of

    def __contains__(self, name: str) -> bool:
        return name in self.file_of

    def packed(self, name: str) -> bool:
        """Whether tensor `name` [..., N] is there as MXFP4: as codes [..., N / 32, 16] and scales."""
        return name + _MX_CODES in self

    def entry(self, name: str) -> Entry | None:
        """Type and shape of tensor `name`, None when the checkpoint has no such tensor."""
        file = self.file_of.get(name)
        return None if file is None else self._file(file).entries.get(name)

    def read(
        self, name: str, shape: tuple[int, ...], part: int | None = None, minus_infinity: bool = False
    ) -> F32:
        """The tensor `name`, which must have `shape`, or its part [part], dequantised.

        Raises CheckpointError where a value is NaN or infinite; -inf is let through with `minus_infinity`.
        """
        problem = self.problem(name, shape)
        if problem:
            raise CheckpointError(f"{self.directory}: {problem}")
        values = self._values(name, part)
        fine = np.isfinite(values)
        if minus_infinity:
            fine |= values == -np.inf
        if not fine.all():
            where = tuple(int(n) for n in np.argwhere(~fine)[0])
            place = list(where if part is None else (part, *where))
            raise CheckpointError(
                f"{self.directory}: {name} holds {values[where]} at {place}; allowed: finite numbers"
            )
        return values

    def _values(self, name: str, part: int | None) -> F32:
        if self.packed(name):
            codes, scales = (
                self._file(self.file_of[tensor]).raw(tensor, part)
                for tensor in (name + _MX_CODES, name + _MX_SCALES)
            )
            return mxfp4(codes, scales)
        file = self._file(self.file_of[name])
        values = file.read(name, part)
        if file.entries[name].dtype == "F8_E4M3":
            assert self.fp8_block is not None
            scales = self._file(self.file_of[name + _SCALES]).read(name + _SCALES, part)
            scaled_blocks(values, scales, self.fp8_block)
        return values

    def problem(self, name: str, shape: tuple[int, ...], dtype: str | None = None) -> str | None:
        """What is wrong with tensor `name`, or None. Its type may be a float's, or must be `dtype`."""
        if dtype is None and self.packed(name):
            return self._packed_problem(name, shape)
        entry = self.entry(name)
        if entry is None:
            return f"{name} is missing; expected shape {list(shape)}"
        if entry.shape != shape:
            return f"{name} has shape {list(entry.shape)}; expected {list(shape)}"
        if dtype is not None:
            return None if entry.dtype == dtype else f"{name} has type {entry.dtype}; expected {dtype}"
        if entry.dtype == "F8_E4M3" and len(shape) > 1:
            return self._scale_problem(name, shape)
        if entry.dtype not in _DTYPES:
            return f"{name} has type {entry.dtype}; allowed: {', '.join(_DTYPES)}, or F8_E4M3 with scales"
        if name + _SCALES in self:
            return f"{name} has type {entry.dtype} beside {name}{_SCALES}; expected F8_E4M3"
        return None

    def _packed_problem(self, name: str, shape: tuple[int, ...]) -> str | None:
        """What is wrong with the codes and scales of the MXFP4 tensor `name` of `shape`, or None."""
        if not self.mxfp4:
            return f"{name}{_MX_CODES} is there, but config.json has no quantization_config of mxfp4"
        if name in self:
            return f"{name} is there twice: also as {name}{_MX_CODES}"
        if shape[-1] % MX_BLOCK:
            return f"{name}{_MX_CODES} is there, but {shape[-1]} values are no multiple of {MX_BLOCK}"
        scales = (*shape[:-1], shape[-1] // MX_BLOCK)
        codes = self.problem(name + _MX_CODES, (*scales, MX_BLOCK // 2), "U8")
        return codes or self.problem(name + _MX_SCALES, scales, "U8")

    def _scale_problem(self, name: str, shape: tuple[int, ...]) -> str | None:
        """What is wrong with the scales of the FP8 tensor `name`, or None."""
        if self.fp8_block is None:
            return f"{name} has type F8_E4M3, but config.json has no quantization_config of fp8 in blocks"
        blocks = tuple(-(-n // b) for n, b in zip(shape[-2:], self.fp8_block, strict=True))
        scales = self.entry(name + _SCALES)
        if scales is not None and scales.dtype == "F8_E4M3":
            return f"{name}{_SCALES} has type F8_E4M3; allowed: {', '.join(_DTYPES)}"
        return self.problem(name + _SCALES, (*shape[:-2], *blocks))

    def _file(self, name: str) -> TensorFile:
        if name not in self._open:
            self._open[name] = TensorFile(self.directory / name)
        return self._open[name]


def _weight_map(index: Path) -> dict[str, str]:
    """File name of each tensor, as the index says. Raises CheckpointError where it is damaged."""
    try:
        names = {str(k): str(v) for k, v in json.loads(index.read_bytes())["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: damaged index: {type(error).__name__} {error}") from error
    for tensor, name in names.items():
        if Path(name).name != name or len(os.fsencode(name)) > _LONGEST_NAME or "\0" in name:
            raise CheckpointError(f"{index}: {tensor} is in {name!r}; allowed: a file beside the index")
    return names
