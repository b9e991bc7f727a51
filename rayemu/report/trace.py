"""A run for trace viewers (Perfetto, chrome://tracing): the JSON trace event format.

One process per module, and for the coordinator and the client where they did something, with three threads:
what its exchange, its experts, and its routing and combines did when. Frames of the protocol's own are left
out. Faults and changes of membership are marks across all of them. Times are in microseconds from the
record's start: wall time, of a simulation virtual time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayemu.drivers.record import COMBINE, CONTROL, DECODE, GEMM, KINDS, OFFER, ROUTE, clock_of, ends, starts
from rayemu.protocol.config import LEVELS
from rayemu.protocol.messages import CLIENT, COORDINATOR
from rayemu.report.wording import describe

EXCHANGE_THREAD, COMPUTE_THREAD, COMBINE_THREAD = 0, 1, 2
_THREADS = ("exchange", "compute", "combine")
_THREAD_OF_KIND = {GEMM: COMPUTE_THREAD, COMBINE: COMBINE_THREAD}
_THREAD_OF_KIND |= {ROUTE: COMBINE_THREAD, OFFER: COMBINE_THREAD}
_PEOPLE = {COORDINATOR: "coordinator", CLIENT: "client"}
_MARKS = ("fault", "suspected", "dead", "recovered", "joined", "failed", "slow_batch")


def trace(
    record: np.ndarray,
    module_to_node: Sequence[int],
    codecs: Sequence[str],
    events: Iterable[Mapping[str, Any]] = (),
    began: float = 0.0,
    dense_layers: int = 0,
) -> dict[str, Any]:
    """The record of a run and its events as one trace; `codecs` are the run's, by number.

    `began` is when a simulation was handed its first batch, in virtual seconds: its events count from there.
    The model's first `dense_layers` have an FFN in place of experts.
    """
    origin = float(starts(record).min()) if len(record) else 0.0
    rows = record[record["kind"] != CONTROL]
    rows = rows[np.lexsort((starts(rows), _places(rows)))]
    sources = sorted({*range(len(module_to_node)), *_places(rows).tolist()})
    listed = [entry for source in sources for entry in _names(source, module_to_node)]
    listed += [
        _span(row, _process(place, module_to_node), start - origin, end - start, codecs, dense_layers)
        for row, place, start, end in zip(
            rows, _places(rows).tolist(), starts(rows).tolist(), ends(rows).tolist(), strict=True
        )
    ]
    virtual = clock_of(record) == "virtual"
    for event in events:  # those of a simulation from before its start have no virtual time
        at = began + event.get("since_start_virtual_s", -math.inf) if virtual else event["wall_s"]
        if event["kind"] in _MARKS and at >= origin:
            listed.append(_mark(event, at - origin))
    return {"traceEvents": listed, "displayTimeUnit": "ms"}


def save_trace(path: Path, content: Mapping[str, Any]) -> None:
    """Write a trace for a viewer to open."""
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def _places(rows: np.ndarray) -> np.ndarray:
    """Where each row [N] happened: a frame at its sender, its decoding where it came to."""
    return np.where(rows["kind"] == DECODE, rows["dst"], rows["src"])


def _process(source: int, module_to_node: Sequence[int]) -> int:
    """The number of a process: viewers dislike negative ones."""
    return len(module_to_node) + 1 if source == CLIENT else source + 1


def _names(source: int, module_to_node: Sequence[int]) -> list[dict[str, Any]]:
    name = _PEOPLE.get(source) or f"module {source} (node {module_to_node[source]})"
    common = {"ph": "M", "pid": _process(source, module_to_node)}
    return [
        {**common, "name": "process_name", "args": {"name": name}},
        {**common, "name": "process_sort_index", "args": {"sort_index": source}},
        *(
            {**common, "name": "thread_name", "tid": thread, "args": {"name": label}}
            for thread, label in enumerate(_THREADS)
        ),
    ]


def name_of_expert(expert: int, layer: int, dense_layers: int) -> str:
    """Name what a pass is of; what has no number is the shared expert or a dense layer's FFN."""
    if expert >= 0:
        return f"expert {expert}"
    return "dense FFN" if layer < dense_layers else "shared expert"


def _span(
    row: np.void, process: int, start_s: float, took_s: float, codecs: Sequence[str], dense_layers: int
) -> dict[str, Any]:
    kind, level = int(row["kind"]), int(row["level"])
    args: dict[str, Any] = {
        key: int(row[key]) for key in ("batch", "slice", "micro", "layer", "rows") if row[key] >= 0
    }
    name = KINDS[kind]
    if kind == GEMM:
        name = name_of_expert(int(row["expert"]), int(row["layer"]), dense_layers)
        args["flops"] = int(row["flops"])
    elif row["sent_bytes"] > 0:
        name = f"{name} to {_PEOPLE.get(int(row['dst']), int(row['dst']))}"
        args |= {"raw_bytes": int(row["raw_bytes"]), "sent_bytes": int(row["sent_bytes"])}
        args |= {"link": LEVELS[level], "codec": codecs[int(row["codec"])]}
    return {
        "ph": "X",
        "name": name,
        "cat": KINDS[kind],
        "pid": process,
        "tid": _THREAD_OF_KIND.get(kind, EXCHANGE_THREAD),
        "ts": round(start_s * 1e6, 1),
        "dur": round(max(0.0, took_s) * 1e6, 1),
        "args": args,
    }


def _mark(event: Mapping[str, Any], at_s: float) -> dict[str, Any]:
    facts = {k: v for k, v in event.items() if k not in ("wall_s", "kind")}
    return {
        "ph": "i",
        "s": "g",
        "name": describe(event),
        "cat": "event",
        "pid": 0,
        "tid": 0,
        "ts": round(at_s * 1e6, 1),
        "args": facts,
    }
