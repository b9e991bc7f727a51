"""Our own format and bare NumPy files.

Our own is a .npz of version 1. A trace: `rayemu_trace` (the version), `loads` [W, L, E], `layers` [L], and
where known `choices` [T, L, K] with `borders` [W + 1]; `source` and `notes` are texts. A plan: `rayemu_plan`
(the version), `phy2log` [L, R], `num_experts`, `num_devices` (0: unknown), `shared`, `layers`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rayemu import machine
from rayemu.traces.errors import TraceError
from rayemu.traces.plan import Plan, make_plan
from rayemu.traces.source import Format, Source, integers, table
from rayemu.traces.trace import Trace, check_choices, check_loads
from rayemu.units import format_bytes

VERSION = 1
RUN_LOADS = "loads.npz"  # in a run folder
_TRACE, _PLAN = "rayemu_trace", "rayemu_plan"


class Own(Format):
    """rayemu's own: .npz with loads and, where known, choices of tokens; plans; run folders."""

    name, suffix = "rayemu", ".npz"

    def recognises(self, source: Source) -> bool:
        if source.path.is_dir():
            return any((source.path / name).is_file() for name in (RUN_LOADS, "summary.json"))
        return source.head.startswith(b"PK") and bool({f"{_TRACE}.npy", f"{_PLAN}.npy"} & _names(source.path))

    def read(self, source: Source) -> Trace | Plan:
        path = source.path
        if path.is_dir():
            path = path / RUN_LOADS
            if not path.is_file():
                return _of_summary(source.path / "summary.json")
        if not path.is_file() or not _names(path):
            raise TraceError("no .npz file")
        _refuse_too_large(path)
        with np.load(path, allow_pickle=False) as arrays:
            version = arrays[_TRACE if _TRACE in arrays else _PLAN]
            if version.shape != () or version.dtype.kind not in "iu" or version != VERSION:
                raise TraceError(f"version {version}; this rayemu reads version {VERSION}")
            if _PLAN in arrays:
                return _read_plan(arrays, source)
            choices = borders = None
            loads = check_loads(arrays["loads"])
            if "choices" in arrays:
                choices = arrays["choices"]
                check_choices(choices, loads.shape[-1], "choices")
                borders = arrays["borders"]
            notes = tuple(str(note) for note in arrays["notes"]) if "notes" in arrays else ()
            layers = integers(arrays["layers"], "layers", (1,))
            return Trace(loads, layers, choices, borders, str(arrays["source"]), notes)

    def write(self, path: Path, trace: Trace) -> None:
        arrays: dict[str, Any] = {"loads": trace.loads, "layers": trace.layers}
        if trace.choices is not None:
            arrays |= {"choices": trace.choices, "borders": trace.borders}
        texts = {"source": np.array(trace.source), "notes": np.array(trace.notes, dtype=np.str_)}
        _save(path, {_TRACE: np.array(VERSION), **arrays, **texts})

    def write_plan(self, path: Path, plan: Plan) -> None:
        arrays = {
            "phy2log": plan.phy2log,
            "layers": np.array(plan.layer_numbers),
            "num_experts": np.array(plan.num_experts),
            "num_devices": np.array(plan.num_devices or 0),
            "shared": np.array(plan.shared),
        }
        _save(path, {_PLAN: np.array(VERSION), **arrays})


def save_loads(path: Path, batches: Mapping[int, np.ndarray]) -> None:
    """Write the expert tokens [L, E] of a run's batches as a trace, one window per batch; nothing of none."""
    if batches:
        loads = np.stack([batches[number] for number in sorted(batches)])
        Own().write(path, Trace(loads, source="rayemu run"))


class Npy(Format):
    """A NumPy file with loads [L, E] or [W, L, E]; of a plan, phy2log [L, R]."""

    name, suffix = "npy", ".npy"

    def recognises(self, source: Source) -> bool:
        return source.head.startswith(b"\x93NUMPY")

    def read(self, source: Source) -> Trace | Plan:
        try:
            found = np.load(source.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, SyntaxError) as error:
            raise TraceError(f"damaged .npy, or not of numbers: {error}") from None
        if not isinstance(found, np.ndarray):
            raise TraceError("several arrays in one file; expected one of loads")
        if source.plan:
            slots = integers(np.array(found), "phy2log", (1, 2))
            return make_plan(slots, source.experts, source.devices, None, source.shared, "npy")
        return Trace(table(np.array(found), "loads", (2, 3)), source="npy")

    def write(self, path: Path, trace: Trace) -> None:
        with open(path, "wb") as file:
            np.save(file, trace.loads)

    def write_plan(self, path: Path, plan: Plan) -> None:
        with open(path, "wb") as file:
            np.save(file, plan.phy2log)


def _read_plan(arrays: Mapping[str, np.ndarray], source: Source) -> Plan:
    facts = {name: int(arrays[name]) for name in ("num_experts", "num_devices", "shared")}
    if source.experts not in (None, facts["num_experts"]):
        raise TraceError(f"a plan of {facts['num_experts']} experts; {source.experts} were asked for")
    devices = source.devices or facts["num_devices"] or None
    layers = integers(arrays["layers"], "layers", (1,)).tolist()
    return make_plan(arrays["phy2log"], facts["num_experts"], devices, layers, facts["shared"], "rayemu")


def _of_summary(path: Path) -> Trace:
    """The loads of a run of an earlier rayemu: all its batches are one window."""
    try:
        loads = json.loads(path.read_bytes())["expert_tokens"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TraceError(f"{path.name}: no expert_tokens: {error!r}") from None
    note = f"all batches are one window, since the run has no {RUN_LOADS}"
    return Trace(table(loads, f"{path.name}: expert_tokens", (2,)), source="rayemu", notes=(note,))


def _names(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return set()


def _refuse_too_large(path: Path) -> None:
    """A small file may unpack to more than the machine has."""
    with zipfile.ZipFile(path) as archive:
        size = sum(info.file_size for info in archive.infolist())
    free = machine.available_bytes()
    if free is not None and 2 * size > free:
        raise TraceError(f"it unpacks to {format_bytes(size)}, and {format_bytes(free)} of memory are free")


def _save(path: Path, arrays: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    with open(part, "wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(path)
