"""Load histories in JSON, as EPLB's evaluators and vLLM's recorders exchange them, and the plans of both.

Followed: the file expert-load.json that was recorded in vLLM for EPLB (openevolve, examples for EPLB,
evaluator.py: `load_history`, a list of entries with `logical_expert_load` [L, E]); EPLB's weight and results
(deepseek-ai/EPLB, eplb.py: weight [L, E]; phy2log, log2phy, logcnt); vLLM's map of slots (vllm-project/vllm,
vllm/distributed/eplb/eplb_state.py: physical_to_logical_map [L, R]; as a bare list in pull request 49572, and
under `model_maps` in HYGON-AI/vllm-plugin-das); vllm-ascend's expert map (vllm_ascend/eplb/adaptor/
vllm_adaptor.py: moe_layer_count, layer_list, device_list, device_expert).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rayemu.traces.errors import TraceError
from rayemu.traces.plan import Plan, make_plan, refuse_empty_slots
from rayemu.traces.source import Format, Source, count, integers, table, write_text
from rayemu.traces.trace import Trace

_HISTORY, _LOAD = "load_history", "logical_expert_load"
_MAP, _MAPS = "physical_to_logical_map", "model_maps"


class Eplb(Format):
    """EPLB: weights [L, E] or a load history in JSON; plans with phy2log, log2phy and logcnt."""

    name, suffix = "eplb", ".json"

    def recognises(self, source: Source) -> bool:
        return isinstance(source.json, list) or bool({"phy2log", "weight"} & source.fields().keys())

    def read(self, source: Source) -> Trace | Plan:
        fields = source.fields()
        if "phy2log" in fields or (source.plan and isinstance(source.json, list)):
            return self._plan(source, fields)
        return Trace(_loads(source), source="eplb")

    def _plan(self, source: Source, fields: dict[str, Any]) -> Plan:
        slots = integers(fields.get("phy2log", source.json), "phy2log", (1, 2))
        experts, devices, copies = source.experts, source.devices, None
        if "logcnt" in fields:
            copies = integers(fields["logcnt"], "logcnt", (1, 2))
            experts = experts or copies.shape[-1]
        if "num_gpus" in fields:
            devices = devices or count(fields["num_gpus"], "num_gpus")
        plan = make_plan(slots, experts, devices, _numbers(fields), source.shared, "eplb")
        if copies is not None:
            copies = copies if copies.ndim == 2 else copies[None]
            if copies.shape != plan.logcnt.shape:
                raise TraceError(f"logcnt: shape {list(copies.shape)}; expected {list(plan.logcnt.shape)}")
            for layer, expert in np.argwhere(copies != plan.logcnt).tolist():
                raise TraceError(
                    f"layer {plan.layer_numbers[layer]} has {plan.logcnt[layer, expert]} slots of expert "
                    f"{expert} in phy2log and {copies[layer, expert]} in logcnt"
                )
        return plan

    def write(self, path: Path, trace: Trace) -> None:
        _write_history(path, trace)

    def write_plan(self, path: Path, plan: Plan) -> None:
        content: dict[str, Any] = {
            "phy2log": plan.phy2log.tolist(),
            "log2phy": plan.log2phy.tolist(),
            "logcnt": plan.logcnt.tolist(),
            "layers": plan.layer_numbers,
        }
        if plan.num_devices is not None:
            content["num_gpus"] = plan.num_devices
        write_text(path, json.dumps(content) + "\n")


class Vllm(Format):
    """vLLM: a load history in JSON; plans as its map of slots and as vllm-ascend's expert map."""

    name, suffix = "vllm", ".json"

    def recognises(self, source: Source) -> bool:
        fields = source.fields()
        return bool({_HISTORY, _MAPS, "layer_list"} & fields.keys())

    def read(self, source: Source) -> Trace | Plan:
        fields = source.fields()
        if "layer_list" in fields:
            return _read_ascend(source, fields)
        if _MAPS in fields:
            maps = fields[_MAPS]
            if (
                not isinstance(maps, dict)
                or len(maps) != 1
                or not isinstance(next(iter(maps.values())), dict)
            ):
                raise TraceError(f"{_MAPS}: expected the map of one model; leave one of them in the file")
            fields = next(iter(maps.values()))
        if _MAP in fields or (source.plan and isinstance(source.json, list)):
            slots = integers(fields.get(_MAP, source.json), _MAP, (1, 2))
            experts = source.experts
            if experts is None and "num_logical_experts" in fields:
                experts = count(fields["num_logical_experts"], "num_logical_experts")
            return make_plan(slots, experts, source.devices, _numbers(fields), source.shared, "vllm")
        return Trace(_loads(source), source="vllm")

    def write(self, path: Path, trace: Trace) -> None:
        _write_history(path, trace)

    def write_plan(self, path: Path, plan: Plan) -> None:
        if plan.num_devices is None:
            raise TraceError("vllm: the plan does not say how many devices there are; add --devices N")
        refuse_empty_slots(plan, self.name)
        content = {
            _MAP: plan.phy2log.tolist(),
            "num_logical_experts": plan.num_experts,
            "moe_layer_count": len(plan.phy2log),
            "layer_list": [
                {
                    "layer_id": number,
                    "device_count": plan.num_devices,
                    "device_list": [
                        {"device_id": device, "device_expert": held}
                        for device, held in enumerate(row.reshape(plan.num_devices, -1).tolist())
                    ],
                }
                for number, row in zip(plan.layer_numbers, plan.phy2log, strict=True)
            ],
        }
        write_text(path, json.dumps(content) + "\n")


def _loads(source: Source) -> np.ndarray:
    """The loads [W, L, E] of a history, of weights, or of bare lists."""
    found = source.json
    if isinstance(found, dict) and _HISTORY in found:
        entries = found[_HISTORY]
        if not isinstance(entries, list) or not entries:
            raise TraceError(f"{_HISTORY}: expected a list of entries with {_LOAD}")
        windows = []
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or _LOAD not in entry:
                raise TraceError(f"{_HISTORY}: entry {number} has no {_LOAD}")
            windows.append(table(entry[_LOAD], f"{_HISTORY}, entry {number}", (2,)))
            if windows[-1].shape != windows[0].shape:
                raise TraceError(
                    f"{_HISTORY}: entry {number} has shape {list(windows[-1].shape)}, "
                    f"entry 0 has {list(windows[0].shape)}"
                )
        return np.stack(windows)
    if isinstance(found, dict):
        if "weight" not in found:
            raise TraceError(
                f"no loads in it: expected {_HISTORY} or weight, found {', '.join(found) or 'nothing'}"
            )
        found = found["weight"]
    return table(found, "weight", (2, 3))


def _numbers(fields: dict[str, Any]) -> list[int] | None:
    return integers(fields["layers"], "layers", (1,)).tolist() if "layers" in fields else None


def _write_history(path: Path, trace: Trace) -> None:
    entries = [{_LOAD: window.tolist()} for window in trace.loads]
    write_text(path, json.dumps({_HISTORY: entries}) + "\n")


def _read_ascend(source: Source, fields: dict[str, Any]) -> Plan:
    """An expert map: for each layer and device the experts of its slots, all devices alike in number."""
    rows, numbers, devices = [], [], None
    layers = fields["layer_list"]
    if not isinstance(layers, list) or not layers:
        raise TraceError("layer_list: expected a list of layers")
    for place, layer in enumerate(layers):
        try:
            held = [device["device_expert"] for device in layer["device_list"]]
            numbers.append(int(layer["layer_id"]))
        except (TypeError, KeyError) as error:
            raise TraceError(
                f"layer_list: entry {place} is no layer with devices: {type(error).__name__} {error}"
            ) from None
        slots = integers(held, f"layer {numbers[-1]}", (2,))
        if slots.shape != (devices or len(slots), slots.shape[1]):
            raise TraceError(f"layer {numbers[-1]} has {len(slots)} devices, layer {numbers[0]} {devices}")
        devices = len(slots)
        rows.append(slots.ravel())
        if rows[-1].size != rows[0].size:
            raise TraceError(
                f"layer {numbers[-1]} has {rows[-1].size} slots, layer {numbers[0]} {rows[0].size}"
            )
    return make_plan(np.stack(rows), source.experts, devices, numbers, source.shared, "vllm")
