"""Files as other systems write them, made by their rules and not by the code under test."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from rayemu.traces import Trace, from_choices


def history(path: Path, loads: np.ndarray) -> Path:
    """A load history in JSON, loads [W, L, E]."""
    path.write_text(json.dumps({"load_history": [{"logical_expert_load": w.tolist()} for w in loads]}))
    return path


def tensors(path: Path, content: dict[str, np.ndarray]) -> Path:
    """A safetensors file with the official package."""
    from safetensors.numpy import save_file

    save_file(content, path)
    return path


def statistics(folder: Path, ranks: list[dict[str, np.ndarray]], experts: int, per_token: int = 2) -> Path:
    """TensorRT-LLM's statistics: counts by "<iteration>_<layer>" of each rank."""
    folder.mkdir(exist_ok=True)
    (folder / "meta_info.json").write_text(
        json.dumps({"num_experts": experts, "num_experts_per_token": per_token})
    )
    for rank, content in enumerate(ranks):
        tensors(folder / f"rank{rank}.safetensors", content)
    return folder


class _Global:
    """Pickles as a reference to module.name without that needing to exist."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class _Storage:
    def __init__(self, kind: str, key: str, length: int, device: str) -> None:
        self.identity = ("storage", _Global("torch", kind), key, device, length)


class _Tensor:
    def __init__(
        self, storage: _Storage, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
    ) -> None:
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())


class _Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]  # the one in Python: it can be overridden
    def persistent_id(self, found: Any) -> Any:
        return found.identity if isinstance(found, _Storage) else None

    def save(self, found: Any, save_persistent_id: bool = True) -> None:
        if isinstance(found, _Global):
            self.write(b"c" + f"{found.module}\n{found.name}\n".encode())
        elif isinstance(found, _Tensor):
            self.save(_Global("torch._utils", "_rebuild_tensor_v2"))
            self.save(found.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(found, save_persistent_id)


KINDS = {
    "i8": "LongStorage",
    "i4": "IntStorage",
    "i2": "ShortStorage",
    "u1": "ByteStorage",
    "f4": "FloatStorage",
}


def torch_file(
    path: Path, content: Any, device: str = "cuda:0", compression: int = zipfile.ZIP_STORED
) -> Path:
    """What torch.save writes of plain data and of arrays, which become tensors, here on a GPU."""
    storages: list[bytes] = []

    def as_tensors(found: Any) -> Any:
        if isinstance(found, np.ndarray):
            whole = np.ascontiguousarray(found)
            storages.append(whole.tobytes())
            kind = KINDS[whole.dtype.str[1:]]
            storage = _Storage(kind, str(len(storages) - 1), whole.size, device)
            return _Tensor(storage, whole.shape, tuple(n // whole.itemsize for n in whole.strides), 0)
        if isinstance(found, dict):
            return {key: as_tensors(value) for key, value in found.items()}
        return [as_tensors(entry) for entry in found] if isinstance(found, list) else found

    ready = as_tensors(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        with archive.open(f"{path.stem}/data.pkl", "w") as file:
            _Pickler(file, 2).dump(ready)
        archive.writestr(f"{path.stem}/byteorder", "little")
        for key, data in enumerate(storages):
            archive.writestr(f"{path.stem}/data/{key}", data)
        archive.writestr(f"{path.stem}/version", "3\n")
    return path


def pickled(path: Path, program: bytes) -> Path:
    """A .pt file with a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/data/0", struct.pack("<4q", 1, 2, 3, 4))
    return path


LOADS = np.array([[[5, 0, 3], [1, 1, 6]], [[2, 2, 4], [8, 0, 0]]])  # [W 2, L 2, E 3]


def small() -> Trace:
    """Four tokens of two layers, two choices each but for one, in windows of three tokens and one."""
    choices = np.array([[[0, 1], [2, 1]], [[2, 0], [0, 1]], [[1, -1], [2, 0]], [[2, 1], [1, 0]]])
    return from_choices(choices, np.array([0, 3, 4]), 3, np.array([3, 4]))
