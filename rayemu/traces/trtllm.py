"""TensorRT-LLM: statistics of its experts, and the configuration of its load balancer.

Followed: NVIDIA/TensorRT-LLM, tensorrt_llm/_torch/expert_statistic.py (a folder of meta_info.json with
num_experts and num_experts_per_token, rankN.safetensors with a tensor "<iteration>_<layer>" of counts [E],
and lately rankN_raw.safetensors with the choices [T, K] under the same names), and of its folder
examples/ep_load_balancer utils.py (the ranks' counts are added up) and generate_eplb_config.py (YAML with
num_slots, layer_updates_per_iter and initial_global_assignments: layer -> experts by slot, rank by rank).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from rayemu.model.tensor_files import CheckpointError, TensorFile
from rayemu.traces.errors import TraceError
from rayemu.traces.plan import Plan, make_plan, refuse_empty_slots
from rayemu.traces.source import MOST_NUMBERS, Format, Source, count, shown, write_text
from rayemu.traces.trace import Trace, check_choices

_META = "meta_info.json"
_ASSIGNMENTS = "initial_global_assignments"
_RANK = re.compile(r"rank(\d+)\.safetensors")
_KEY = re.compile(r"(\d{1,9})_(\d{1,9})")
_TYPES = {"I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U8": "u1"}


class Trtllm(Format):
    """TensorRT-LLM: statistics (a folder of meta_info.json and safetensors); plans in YAML."""

    name, suffix = "trtllm", ".yaml"

    def recognises(self, source: Source) -> bool:
        if (_folder(source.path) / _META).is_file():
            return source.path.is_dir() or source.path.name == _META or source.path.suffix == ".safetensors"
        return source.path.is_file() and _ASSIGNMENTS in _ends(source.path)

    def read(self, source: Source) -> Trace | Plan:
        if source.path.is_file() and source.path.name != _META and source.path.suffix != ".safetensors":
            return _read_config(source)
        return _read_statistics(_folder(source.path))

    def write(self, path: Path, trace: Trace) -> None:
        if path.exists() and not path.is_dir():
            raise TraceError(f"{path} is a file; statistics are a folder, give --out another name")
        path.mkdir(parents=True, exist_ok=True)
        per_token = 1 if trace.choices is None else trace.choices.shape[2]
        meta = {"num_experts": trace.experts, "num_experts_per_token": per_token}
        names = [
            (f"{window}_{layer}", trace.loads[window, place])
            for window in range(len(trace.loads))
            for place, layer in enumerate(trace.layers.tolist())
        ]
        _write_tensors(path / "rank0.safetensors", names)
        write_text(path / _META, json.dumps(meta) + "\n")

    def write_plan(self, path: Path, plan: Plan) -> None:
        refuse_empty_slots(plan, self.name)
        lines = [f"{_ASSIGNMENTS}:"]
        for number, row in zip(plan.layer_numbers, plan.phy2log.tolist(), strict=True):
            lines.append(f"  {number}: {row}")
        lines += [f"num_slots: {plan.phy2log.shape[1]}", "layer_updates_per_iter: 0"]
        write_text(path, "\n".join(lines) + "\n")


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _ends(path: Path) -> str:
    """The beginning and the end of a text file, where keys of a large configuration are."""
    with open(path, "rb") as file:
        first = file.read(4096)
        size = file.seek(0, 2)
        file.seek(max(0, size - 4096))
        last = file.read()
    if b"\0" in first:
        return ""
    return (first + b"\n" + last).decode("utf-8", "replace")


def _read_config(source: Source) -> Plan:
    from rayemu.plain_yaml import parse  # not above: most traces need no YAML

    try:  # neither nesting nor merges can crash or fill the process
        config = parse(source.path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise TraceError(f"damaged YAML: {error}") from None
    assignments = config.get(_ASSIGNMENTS) if isinstance(config, dict) else None
    if not isinstance(assignments, dict) or not assignments:
        raise TraceError(f"{_ASSIGNMENTS}: expected experts by layer, like 3: [0, 1, 2]")
    slots = None if config.get("num_slots") is None else count(config["num_slots"], "num_slots")
    rows: dict[int, list[int]] = {}
    for layer, row in assignments.items():
        if isinstance(layer, str) and layer.isdecimal() and len(layer) < 10:  # in JSON, keys are texts
            layer = int(layer)
        if not _is_int(layer) or layer < 0:
            raise TraceError(f"{_ASSIGNMENTS}: {shown(layer)} is no layer; expected a number")
        if not isinstance(row, list) or not all(_is_int(expert) and abs(expert) < 1 << 31 for expert in row):
            raise TraceError(f"layer {layer}: expected a list of experts")
        slots = slots or len(row)
        if len(row) != slots:
            raise TraceError(f"layer {layer} has {len(row)} slots; expected num_slots, {slots}")
        rows[layer] = row
    layers = sorted(rows)
    if len(rows) * (slots or 0) > MOST_NUMBERS:
        raise TraceError(f"{_ASSIGNMENTS}: more than {MOST_NUMBERS} slots")
    table = np.array([rows[layer] for layer in layers], np.int64)
    devices = source.devices or (count(config["ep_size"], "ep_size") if "ep_size" in config else None)
    return make_plan(table, source.experts, devices, layers, source.shared, "trtllm")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_statistics(folder: Path) -> Trace:
    try:
        meta = json.loads((folder / _META).read_bytes())
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{_META}: damaged JSON: {error}") from None
    if not isinstance(meta, dict):
        raise TraceError(f"{_META}: expected an object with num_experts")
    experts = count(meta.get("num_experts"), f"{_META}: num_experts")
    ranks = sorted(int(m[1]) for path in folder.iterdir() if (m := _RANK.fullmatch(path.name)))
    if not ranks:
        raise TraceError("no rank*.safetensors beside meta_info.json")
    loads: dict[tuple[int, int], np.ndarray] = {}
    for rank in ranks:
        for key, values in _tensors(folder / f"rank{rank}.safetensors"):
            if values.shape != (experts,):
                raise TraceError(f"rank {rank}: {key} has shape {list(values.shape)}; expected [{experts}]")
            loads[key] = loads.get(key, 0) + values.astype(np.int64)
    iterations, layers = (sorted({key[n] for key in loads}) for n in (0, 1))
    if len(loads) != len(iterations) * len(layers) or not loads:
        missing = next(((i, n) for i in iterations for n in layers if (i, n) not in loads), ("any", "any"))
        raise TraceError(f"no counts of iteration {missing[0]}, layer {missing[1]}")
    table = np.stack([np.stack([loads[i, n] for n in layers]) for i in iterations])
    choices, borders, notes = _raw_choices(folder, ranks, iterations, layers, experts)
    return Trace(table, np.asarray(layers), choices, borders, "trtllm", notes)


def _raw_choices(
    folder: Path, ranks: list[int], iterations: list[int], layers: list[int], experts: int
) -> tuple[np.ndarray | None, np.ndarray | None, tuple[str, ...]]:
    """Choices [T, L, K] and borders where every rank recorded them for every layer; a note where not."""
    files = [folder / f"rank{rank}_raw.safetensors" for rank in ranks]
    if not all(path.is_file() for path in files):
        return None, None, ()
    tensors = [dict(_tensors(path)) for path in files]
    parts, borders = [], [0]
    for iteration in iterations:
        tokens = 0
        for rank, found in zip(ranks, tensors, strict=True):
            by_layer = [found.get((iteration, layer)) for layer in layers]
            shapes = {None if ids is None else ids.shape for ids in by_layer}
            if shapes == {None}:
                continue  # this rank was idle
            if len(shapes) > 1 or len(next(iter(shapes)) or ()) != 2:
                note = f"choices left out: rank {rank}, iteration {iteration} has not one shape in all layers"
                return None, None, (note,)
            ids = np.stack([ids for ids in by_layer if ids is not None], axis=1)  # [T, L, K]
            parts.append(check_choices(ids, experts, f"rank {rank}, iteration {iteration}")[0])
            tokens += len(ids)
        borders.append(borders[-1] + tokens)
    if not parts or len({part.shape[2] for part in parts}) > 1:
        return None, None, ("choices left out: none, or not as many per token everywhere",)
    return np.concatenate(parts), np.asarray(borders), ()


def _tensors(path: Path) -> list[tuple[tuple[int, int], np.ndarray]]:
    """The tensors of a file by (iteration, layer)."""
    try:
        file = TensorFile(path)
        found = []
        for name, entry in file.entries.items():
            match = _KEY.fullmatch(name)
            if not match:
                raise TraceError(
                    f"{path.name}: the tensor {name}; expected names like 100_3, iteration and layer"
                )
            if entry.dtype not in _TYPES:
                raise TraceError(f"{path.name}: {name} has type {entry.dtype}; expected integers")
            found.append(((int(match[1]), int(match[2])), file.raw(name)))
        return found
    except CheckpointError as error:
        raise TraceError(str(error)) from None


def _write_tensors(path: Path, tensors: list[tuple[str, np.ndarray]]) -> None:
    """A safetensors file: the header's length, the header in JSON, the data."""
    header, start = {}, 0
    for name, values in tensors:
        header[name] = {
            "dtype": "I64",
            "shape": list(values.shape),
            "data_offsets": [start, start + 8 * values.size],
        }
        start += 8 * values.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, values in tensors:
            if values.dtype.kind == "f":
                raise TraceError("trtllm holds whole numbers; these loads have fractions")
            file.write(values.astype("<i8").tobytes())
