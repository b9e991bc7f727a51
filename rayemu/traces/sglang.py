"""SGLang: dumps of its expert distribution recorder, and its expert locations.

Followed: sgl-project/sglang, python/sglang/srt/eplb/expert_distribution.py (modes stat and stat_approx dump
logical_count [steps, L, E]; per_pass and per_token dump, one file per rank, `records` with
global_physical_count [L, P] and, per token, topk_ids_of_layer [L, T, K] of physical experts, filled with -1,
and last_physical_to_logical_map [L, P]) and expert_location.py (--init-expert-location takes a .pt or a .json
with physical_to_logical_map [L, P] or with logical_count).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from rayemu.traces import torch_file
from rayemu.traces.errors import TraceError
from rayemu.traces.plan import Plan, make_plan, refuse_empty_slots
from rayemu.traces.source import Format, Source, integers, shown, table, write_text
from rayemu.traces.trace import NO_EXPERT, Trace, check_choices

_COUNT, _MAP, _LAST = "logical_count", "physical_to_logical_map", "last_physical_to_logical_map"
_DUMPS = "expert_distribution_recorder_*.pt"


class Sglang(Format):
    """SGLang: recorder dumps (.pt, one or a folder of all ranks'), expert locations (.pt, .json)."""

    name, suffix = "sglang", ".json"

    def recognises(self, source: Source) -> bool:
        if source.path.is_dir():
            return any(source.path.glob(_DUMPS))
        if source.head.startswith(b"PK"):
            return torch_file.is_torch(source.path)
        return bool({_COUNT, _MAP} & source.fields().keys())

    def read(self, source: Source) -> Trace | Plan:
        if source.path.is_dir():
            return _read_records([_dict(torch_file.load(path)) for path in _ranks(source.path)], source)
        found = _dict(torch_file.load(source.path) if source.json is None else source.json)
        if _MAP in found and _COUNT not in found:
            slots = integers(found[_MAP], _MAP, (1, 2))
            return make_plan(slots, source.experts, source.devices, None, source.shared, "sglang")
        if _COUNT in found:
            return _read_counts(found[_COUNT])
        if "records" in found:
            return _read_records([found], source)
        raise TraceError(
            f"no {_COUNT}, records or {_MAP} in it; found {', '.join(map(str, found)) or 'nothing'}"
        )

    def write(self, path: Path, trace: Trace) -> None:
        _only_json(path)
        write_text(path, json.dumps({_COUNT: trace.loads.tolist()}) + "\n")

    def write_plan(self, path: Path, plan: Plan) -> None:
        _only_json(path)
        refuse_empty_slots(plan, self.name)
        write_text(path, json.dumps({_MAP: plan.phy2log.tolist()}) + "\n")


def _read_counts(found: Any) -> Trace:
    """logical_count [steps, L, E]; a buffer that did not fill up ends in steps of zeros, left out here."""
    loads = table(found, _COUNT, (2, 3))
    loads = loads if loads.ndim == 3 else loads[None]
    used = np.flatnonzero(loads.any(axis=(1, 2)))
    end = int(used[-1]) + 1 if used.size else 1
    unused = len(loads) - end
    notes = (f"{unused} unused steps at the end of the recorder's buffer were left out",) if unused else ()
    return Trace(loads[:end], source="sglang", notes=notes)


def _read_records(dumps: list[dict[str, Any]], source: Source) -> Trace:
    """The passes of one or several ranks, each one window; those of one pass are added up."""
    maps = [integers(dump.get(_LAST), _LAST, (2,)) for dump in dumps]
    plan = make_plan(maps[0], source.experts, None, None, source.shared)
    if any(other.shape != maps[0].shape or (other != maps[0]).any() for other in maps):
        raise TraceError(f"the ranks' {_LAST} differ; read them one by one")
    logical = np.where(plan.phy2log < plan.num_experts, plan.phy2log, NO_EXPERT)  # [L, P]
    passes: dict[int, np.ndarray] = {}
    chosen: dict[int, list[np.ndarray]] = {}
    for dump in dumps:
        records = dump.get("records")
        if not isinstance(records, list):
            raise TraceError("records: expected a list, one entry per forward pass")
        for place, record in enumerate(records):
            where = f"records, entry {place}"
            record = _dict(record)
            number = record.get("forward_pass_id", place)
            if not isinstance(number, int):
                raise TraceError(f"{where}: forward_pass_id is {shown(number)}; expected a number")
            load = integers(record.get("global_physical_count"), f"{where}: global_physical_count", (2,))
            if load.shape != logical.shape:
                raise TraceError(
                    f"{where}: counts of shape {list(load.shape)}, a map of {list(logical.shape)}"
                )
            passes[number] = passes.get(number, 0) + _by_expert(load, logical, plan.num_experts)
            if "topk_ids_of_layer" in record:
                ids = record["topk_ids_of_layer"]
                chosen.setdefault(number, []).append(_by_token(ids, logical, where))
    if not passes:
        raise TraceError("records: no forward pass was recorded")
    order = sorted(passes)
    loads = np.stack([passes[number] for number in order])
    notes = ["the map of slots is the last one: a rebalancing while recording would not show"]
    if not chosen:
        return Trace(loads, source="sglang", notes=tuple(notes))
    widths = {part.shape[2] for parts in chosen.values() for part in parts}
    if len(widths) > 1:
        raise TraceError(f"topk_ids_of_layer: passes with {sorted(widths)} choices per token")
    per_pass = [
        np.concatenate([*chosen.get(n, []), np.zeros((0, len(logical), *widths), np.int32)]) for n in order
    ]
    borders = np.cumsum([0, *(len(part) for part in per_pass)])
    choices = np.concatenate(per_pass)
    kept = (choices != NO_EXPERT).any(axis=(0, 1))  # the recorder has room for 8 choices
    return Trace(loads, None, choices[:, :, kept], borders, "sglang", tuple(notes))  # type: ignore[arg-type]


def _by_expert(load: np.ndarray, logical: np.ndarray, experts: int) -> np.ndarray:
    """Rows by slot [L, P] as rows by expert [L, E]."""
    found = np.zeros((len(load), experts), np.int64)
    for layer, held in enumerate(logical):
        np.add.at(found[layer], held[held >= 0], load[layer, held >= 0])
    return found


def _by_token(found: Any, logical: np.ndarray, where: str) -> np.ndarray:
    """Slots by token [L, T, K] as experts by token [T, L, K]."""
    slots = integers(found, f"{where}: topk_ids_of_layer", (3,)) if np.size(found) else np.asarray(found)
    if slots.ndim != 3 or len(slots) != len(logical):
        raise TraceError(
            f"{where}: topk_ids_of_layer has shape {list(slots.shape)}; expected [{len(logical)}, T, K]"
        )
    ids, _ = check_choices(slots, logical.shape[1], where)
    experts = np.take_along_axis(logical, np.maximum(ids, 0).reshape(len(ids), -1), axis=1).reshape(ids.shape)
    return np.where(ids < 0, NO_EXPERT, experts).transpose(1, 0, 2).astype(np.int32)


def _ranks(folder: Path) -> list[Path]:
    """The dumps of all ranks in a folder; refused where they are of several recordings."""
    found = sorted(folder.glob(_DUMPS))
    ranks = [match[1] for path in found if (match := re.search(r"_(\d+)\.pt$", path.name))]
    if len(found) > 1 and len(set(ranks)) < len(found):
        raise TraceError(f"{len(found)} dumps, and not one per rank; name one of the files")
    return found


def _dict(found: Any) -> dict[Any, Any]:
    if not isinstance(found, dict):
        raise TraceError(f"found {type(found).__name__}; expected a dictionary, as SGLang writes it")
    return found


def _only_json(path: Path) -> None:
    if path.suffix == ".pt":
        raise TraceError("SGLang reads the same from JSON; give --out a name that ends in .json")
