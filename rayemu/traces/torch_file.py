"""Reads what `torch.save` wrote, without torch and without running anything in it.

A .pt file is a zip of a pickle (data.pkl), which names tensors by type, shape and strides, and of their
storages (data/0, data/1, ...), uncompressed. A pickle is a program for a small stack machine that may call
whatever it names. Here the operations are interpreted one by one: those that build plain data do that, a call
is made only to what rebuilds a tensor, and everything else is refused by name. So nothing is ever imported or
called for a file. (The set is that of torch's own `weights_only` reader, torch/_weights_only_unpickler.py,
less what recorder dumps do not need.)
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rayemu.traces.errors import TraceError

_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_DTYPES = {"uint16": "u2", "uint32": "u4", "uint64": "u8"}  # without a storage type of their own
_MOST_PICKLE_BYTES = 1 << 30
_MOST_DIMENSIONS = 32

_PUSHES = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"}
_TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}
_TEXTS |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_NOTHING = {"PROTO", "FRAME"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Name(NamedTuple):
    """A global that a pickle names, as data."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Storage(NamedTuple):
    values: np.ndarray
    bfloat16: bool


def load(path: Path) -> Any:
    """The data in a .pt file: dicts, lists, tuples, numbers, texts, and NumPy arrays for tensors.

    Raises TraceError for a file that is damaged, or whose pickle names anything but data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: info for info in archive.infolist()}
            inside = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(inside) != 1:
                raise TraceError("a zip, but no file of torch.save: data.pkl is not in it")
            root = inside[0].removesuffix("data.pkl")

            def part(name: str) -> bytes:
                info = entries.get(root + name)
                if info is None:
                    raise TraceError(f"the storage {name} is missing (cut off?)")
                if info.compress_type != zipfile.ZIP_STORED:  # torch writes none; so sizes are honest
                    raise TraceError(f"{name} is compressed, which torch.save never does")
                return archive.read(info)

            if entries[inside[0]].file_size > _MOST_PICKLE_BYTES:
                raise TraceError(f"its pickle has {entries[inside[0]].file_size} bytes; allowed: 1 GiB")
            order: Literal["<", ">"] = (
                ">" if root + "byteorder" in entries and part("byteorder") == b"big" else "<"
            )
            return _Machine(part, order).run(part("data.pkl"))
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise TraceError(f"damaged, or written by torch before 1.6 (save it again): {error}") from None


def is_torch(path: Path) -> bool:
    """Whether a zip file is one of torch.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.count("/") == 1 and name.endswith("/data.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return False


class _Machine:
    """Interprets one pickle."""

    def __init__(self, part: Callable[[str], bytes], order: Literal["<", ">"]) -> None:
        self._part, self._order = part, order
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, _Storage] = {}

    def run(self, program: bytes) -> Any:
        try:
            for operation, argument, _ in pickletools.genops(program):
                if operation.name == "STOP":
                    return self._result(self._stack.pop())
                self._step(operation.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            if isinstance(error, TraceError):
                raise
            raise TraceError(f"damaged pickle: {type(error).__name__}: {error}") from None
        raise TraceError("damaged pickle: it has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PUSHES or name in _TEXTS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _NOTHING:
            pass
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "POP":
            stack.pop()
        elif name in ("GLOBAL", "INST"):  # INST would also call it: no data is made so
            stack.append(_allowed(_Name(*argument.split(" ", 1))))
            if name == "INST":
                raise TraceError(f"its pickle makes a {stack[-1]}, which is no data; nothing of it was run")
        elif name == "STACK_GLOBAL":
            called, module = stack.pop(), stack.pop()
            stack.append(_allowed(_Name(str(module), str(called))))
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "APPEND":
            value = stack.pop()
            _of(stack[-1], list).append(value)
        elif name == "APPENDS":
            values = self._since_mark()
            _of(stack[-1], list).extend(values)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], key, value)
        elif name == "SETITEMS":
            values = self._since_mark()
            for key, value in zip(values[::2], values[1::2], strict=True):
                _set(stack[-1], key, value)
        elif name == "LIST":
            stack.append(self._since_mark())
        elif name == "DICT":
            made: dict[Any, Any] = {}
            values = self._since_mark()
            for key, value in zip(values[::2], values[1::2], strict=True):
                _set(made, key, value)
            stack.append(made)
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            stack.append(self._call(called, arguments))
        else:
            raise TraceError(
                f"its pickle has the operation {name}, which is not for data; nothing of it was run"
            )

    def _since_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _storage(self, found: Any) -> _Storage:
        """What ("storage", type, key, device, length) names; the device does not matter here."""
        label, kind, key, _, length = _of(found, tuple)
        if label != "storage" or not isinstance(kind, _Name) or not isinstance(key, str):
            raise TraceError("damaged pickle: a storage without type or key")
        if key not in self._storages:
            code = _STORAGES.get(kind.name, "u1")  # UntypedStorage: bytes
            raw = self._part(f"data/{key}")
            bfloat16 = code == "bfloat16"
            dtype = np.dtype("u2" if bfloat16 else code).newbyteorder(self._order)
            if len(raw) != _of(length, int) * dtype.itemsize:
                raise TraceError(f"the storage {key} has {len(raw)} bytes for {length} of {kind} (cut off?)")
            self._storages[key] = _Storage(np.frombuffer(raw, dtype), bfloat16)
        return self._storages[key]

    def _call(self, called: Any, arguments: Any) -> Any:
        if not isinstance(called, _Name) or not isinstance(arguments, tuple):
            raise TraceError("its pickle calls what is no function; nothing of it was run")
        if called == ("collections", "OrderedDict") and not arguments:
            return {}
        if called == ("torch", "Size") and len(arguments) == 1:
            return tuple(arguments[0])
        if called.name == "_rebuild_tensor_v2":
            return _tensor(_of(arguments[0], _Storage), *arguments[1:4])
        if called.name == "_rebuild_tensor_v3":
            storage, dtype = _of(arguments[0], _Storage), _of(arguments[6], _Name)
            if dtype.name not in _DTYPES:
                raise TraceError(f"a tensor of type {dtype}; save it as an integer or float32 tensor")
            values = storage.values.view(np.dtype(_DTYPES[dtype.name]).newbyteorder(self._order))
            return _tensor(_Storage(values, False), *arguments[1:4])
        raise TraceError(f"its pickle calls {called}, which is no data; nothing of it was run")

    @staticmethod
    def _result(value: Any) -> Any:
        if value is _MARK or isinstance(value, (_Name, _Storage)):
            raise TraceError("its pickle holds no data")
        return value


def _allowed(name: _Name) -> _Name:
    """The name, if it is one that data needs. Raises TraceError."""
    torch_types = name.module == "torch" and (name.name in _STORAGES or name.name in _DTYPES)
    others = {
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch.storage", "UntypedStorage"),
        ("torch", "Size"),
        ("collections", "OrderedDict"),
    }
    if torch_types or name in others:
        return name
    raise TraceError(f"its pickle names {name}, which is no data; nothing of it was run")


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """The array of a tensor: a view of its storage; float32 for bfloat16. Raises TraceError."""
    shape, strides = _of(shape, tuple), _of(strides, tuple)
    sizes = [_of(offset, int), *(_of(n, int) for n in (*shape, *strides))]
    if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS or min(sizes) < 0:
        raise TraceError(f"damaged tensor: shape {list(shape)}, strides {list(strides)}, offset {offset}")
    total = 1
    for n in shape:
        total *= n
    if total == 0:
        return np.zeros(shape if max(shape) < 1 << 32 else (0,), storage.values.dtype)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if last >= storage.values.size or total > storage.values.size:
        raise TraceError(f"damaged tensor: shape {list(shape)} does not lie within its storage")
    step = storage.values.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(
        storage.values[offset:], shape, [n * step for n in strides], writeable=False
    )
    if storage.bfloat16:  # the upper half of a float32
        return np.left_shift(view, 16, dtype=np.uint32).view(np.float32)
    return view


def _of(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TraceError(f"damaged pickle: found {type(value).__name__}, expected {kind.__name__}")
    return value


def _set(target: Any, key: Any, value: Any) -> None:
    if not isinstance(key, (str, int, float)) and key is not None:
        raise TraceError(f"its pickle has a key of type {type(key).__name__}; allowed: text and numbers")
    _of(target, dict)[key] = value
