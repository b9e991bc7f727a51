"""`rayemu trace`: what a trace or plan holds, as tables and as JSON.

Shapes: W windows, L layers, E experts, T tokens, K choices per token.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayemu.report.fitting import fitted
from rayemu.traces import Plan, Trace, TraceError, read, write
from rayemu.traces.statistics import (
    coactivation,
    even_fit,
    neighbour_similarity,
    reuse_gaps,
    steady_fit,
    transitions,
    working_sets,
    zipf_fit,
)

WORKING_SETS = (16, 64, 256)  # tokens in a row
_LOADS = {
    "max/\nmean": "max_over_mean",
    "CV": "cv",
    "not\nused": "unused_experts",
    "Zipf\nexponent": "zipf_exponent",
    "Zipf\ndistance": "zipf_distance",
    "dispersion\neven": "even_dispersion",
    "dispersion\nsteady": "steady_dispersion",
}
_CHOICES = {
    "reuse\nmedian": "reuse_median_tokens",
    "reuse\np99": "reuse_p99_tokens",
    **{f"experts\nof {n}": str(n) for n in WORKING_SETS},
    "like\nthe next": "neighbour_similarity",
    "by\nchance": "neighbour_by_chance",
}
_MOST_CHOICES = 1 << 29  # tokens times experts that reuse and neighbours are measured on
_PAIRS_BYTES = 1 << 30  # of int64 [L, E, E], beyond which pairs are not counted


def convert(path: Path, format: str | None, out: Path, to: str, known: dict[str, Any]) -> None:
    """Read a file and write it in another format, and say so. Raises TraceError."""
    found = read(path, format, **known)
    write(out, to, found)
    console = Console(soft_wrap=True)
    console.print(f"{escape(str(out))}: {describe(found)}", highlight=False)
    for note in found.notes:
        console.print(f"  note: {escape(note)}", highlight=False)
    if isinstance(found, Trace) and found.choices is not None and to not in ("rayemu", "flame"):
        console.print(f"  note: {to} holds loads only; the choices of tokens were left out", highlight=False)


def describe(found: Trace | Plan) -> str:
    """What was read, in a line."""
    if isinstance(found, Plan):
        layers, slots = found.phy2log.shape
        devices = "" if found.num_devices is None else f" on {_of(found.num_devices, 'device')}"
        return f"a plan of {_of(layers, 'layer')}, {slots} slots{devices}, {found.num_experts} experts"
    windows, layers, experts = found.loads.shape
    loads = f"loads of {_of(windows, 'window')}, {_of(layers, 'layer')}, {experts} experts"
    if found.choices is None:
        return loads
    return f"{loads}, {_of(found.choices.shape[2], 'choice')} of {len(found.choices)} tokens"


def statistics(path: Path, format: str | None, as_json: bool, known: dict[str, Any]) -> None:
    """Print what a trace or plan says. Raises TraceError."""
    found = read(path, format, **known)
    facts = of_plan(found) if isinstance(found, Plan) else of_trace(found)
    if as_json:
        print(json.dumps({"file": str(path), **facts}, indent=1))
        return
    console = Console()
    of = f" ({escape(found.source)})" if found.source else ""
    console.print(f"{escape(str(path))}{of}: {describe(found)}", highlight=False, soft_wrap=True)
    for note in facts["notes"]:
        console.print(f"note: {escape(note)}", highlight=False, soft_wrap=True)
    if isinstance(found, Plan):
        console.print(_plan_table(facts))
        return
    _print_layers(facts["per_layer"], _LOADS, console)
    if found.choices is None:
        console.print("reuse, working sets, neighbours and pairs need the choices of tokens", highlight=False)
    else:
        _print_layers([line | line.get("working_sets", {}) for line in facts["per_layer"]], _CHOICES, console)


def of_trace(trace: Trace) -> dict[str, Any]:
    """The statistics of a trace as plain data; None where there is nothing to tell."""
    facts: dict[str, Any] = {
        "kind": "trace",
        "source": trace.source,
        "windows": len(trace.loads),
        "layers": trace.layers.tolist(),
        "experts": trace.experts,
        "rows": float(trace.total.sum()),
        "notes": list(trace.notes),
    }
    if trace.choices is not None:
        facts |= {"tokens": len(trace.choices), "choices_per_token": trace.choices.shape[2]}
        if len(trace.choices) > (most := max(1, _MOST_CHOICES // trace.experts)):
            facts["notes"].append(f"reuse, working sets and neighbours are those of the first {most} tokens")
    facts["per_layer"] = [_of_layer(trace, layer) for layer in range(len(trace.layers))]
    if trace.choices is not None and 8 * len(trace.layers) * trace.experts**2 <= _PAIRS_BYTES:
        facts["pairs"] = _pairs(coactivation(trace.choices, trace.experts), trace.layers[:])
        facts["transitions"] = _pairs(transitions(trace.choices, trace.experts), trace.layers[:-1])
    return facts


def of_plan(plan: Plan) -> dict[str, Any]:
    """What a plan is, as plain data."""
    copies = plan.logcnt
    twice = None
    if plan.num_devices is not None:
        by_device = plan.phy2log.reshape(-1, plan.phy2log.shape[1] // plan.num_devices)
        twice = sum(int(len(row[row >= 0]) - len(np.unique(row[row >= 0]))) for row in by_device)
    return {
        "kind": "plan",
        "source": plan.source,
        "layers": plan.layer_numbers,
        "slots": plan.phy2log.shape[1],
        "experts": plan.num_experts,
        "shared_experts": plan.shared,
        "devices": plan.num_devices,
        "most_copies": int(copies.max()),
        "experts_with_copies": [int((row > 1).sum()) for row in copies],
        "copies_beside_each_other": twice,
        "notes": list(plan.notes),
    }


def _of_layer(trace: Trace, layer: int) -> dict[str, Any]:
    loads = trace.loads[:, layer]  # [W, E]
    total = trace.total[layer]
    if not total.any():
        return {"layer": int(trace.layers[layer]), "rows": 0.0}
    fit = zipf_fit(total)
    tokens = loads.sum(axis=1, dtype=np.float64)  # with one choice each, where nobody says how many
    if trace.borders is not None:
        tokens = np.diff(trace.borders).astype(np.float64)
    even, steady = even_fit(loads, tokens), steady_fit(loads, tokens)
    facts: dict[str, Any] = {
        "layer": int(trace.layers[layer]),
        "rows": float(total.sum()),
        "max_over_mean": float(total.max() / total.mean()),
        "cv": float(total.std() / total.mean()),
        "unused_experts": int((total == 0).sum()),
        "zipf_exponent": fit.exponent,
        "zipf_distance": fit.distance,
        "even_dispersion": even.dispersion,
        "steady_dispersion": steady.dispersion,
        "steady_p": steady.p_value,
    }
    if trace.choices is not None:
        chosen = trace.choices[: _MOST_CHOICES // trace.experts, layer]  # [T, K]
        gaps = reuse_gaps(chosen, trace.experts)
        near = neighbour_similarity(chosen, trace.experts)
        facts |= {
            "reuse_median_tokens": float(np.median(gaps)) if gaps.size else None,
            "reuse_p99_tokens": float(np.percentile(gaps, 99)) if gaps.size else None,
            "working_sets": dict(
                zip(
                    map(str, WORKING_SETS),
                    working_sets(chosen, trace.experts, WORKING_SETS).tolist(),
                    strict=True,
                )
            ),
            "neighbour_similarity": near.shared,
            "neighbour_by_chance": near.by_chance,
        }
    return _without_nan(facts)


def _pairs(found: np.ndarray, layers: np.ndarray) -> list[dict[str, Any]]:
    """The most frequent pair of each layer of [L, E, E]."""
    best = []
    for layer, pairs in zip(layers.tolist(), found, strict=True):
        first, second = np.unravel_index(int(pairs.argmax()), pairs.shape)
        best.append({"layer": layer, "experts": [int(first), int(second)], "tokens": int(pairs.max())})
    return best


def _without_nan(found: Any) -> Any:
    """JSON has no nan: None in its place."""
    if isinstance(found, dict):
        return {key: _without_nan(value) for key, value in found.items()}
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _print_layers(lines: list[dict[str, Any]], columns: dict[str, str], console: Console) -> None:
    rows = [(str(line["layer"]), *(_number(line.get(key)) for key in columns.values())) for line in lines]
    for table in fitted(console.width, None, ("layer", *columns), rows):
        console.print(table)


def _plan_table(facts: dict[str, Any]) -> Table:
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_header=False)
    more = facts["experts_with_copies"]
    beside = facts["copies_beside_each_other"]
    lines = {
        "most copies of an expert": facts["most_copies"],
        "experts with several copies": f"{min(more)} to {max(more)} per layer",
        "shared experts": facts["shared_experts"],
        "second copies on one device": "unknown without --devices" if beside is None else beside,
    }
    for name, value in lines.items():
        shown.add_row(name, str(value))
    return shown


def _number(value: float | int | None) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.0f}"
        if value >= 99.5 or isinstance(value, int)
        else f"{value:.1f}"
        if value >= 9.95
        else f"{value:.2f}"
    )


def _of(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def target(path: Path, out: Path | None, suffix: str) -> Path:
    """Where to write without --out: beside the file. Raises TraceError for what is there already."""
    if out is not None:
        return out
    if path.name in ("", ".."):  # ., .. and / say no name
        path = path.resolve()
    if not path.name:
        raise TraceError(f"{path}: it has no name to write beside; name one with --out FILE")
    chosen = path.with_name(f"{path.name if path.is_dir() else path.stem}{suffix}")
    if chosen.exists():
        raise TraceError(f"{chosen} is there already; choose another name with --out FILE")
    return chosen
