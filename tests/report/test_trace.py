"""The viewer's trace of a hand-made record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rayemu.drivers.record import (
    COMBINE,
    CONTROL,
    DECODE,
    DISPATCH,
    GEMM,
    RECORD,
    ROUTE,
    SUBMIT,
    VIRTUAL_RECORD,
)
from rayemu.report.trace import save_trace, trace

START = 1_700_000_000.0


def a_record() -> np.ndarray:
    record = np.zeros(4, RECORD)
    record["kind"] = DISPATCH, GEMM, COMBINE, GEMM
    record["level"] = record["codec"] = 2, 0, 0, 0
    record["src"] = 0, 1, 0, 1
    record["dst"] = 1, 1, 0, 1
    record["expert"] = -1, 6, -1, -1
    record["batch"], record["slice"] = 7, -1
    record["rows"] = 10, 10, 5, 3
    record["flops"] = 0, 640, 20, 30
    record["raw_bytes"], record["sent_bytes"] = (160, 160, 80, 48), (90, 0, 0, 0)
    record["start_wall_s"] = START + np.array([0.5, 0.25, 2.0, 1.0])
    record["end_wall_s"] = START + np.array([0.5625, 0.75, 2.25, 1.5])
    return record


def spans(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in content["traceEvents"] if entry["ph"] == "X"]


def test_every_row_is_a_span_on_the_thread_of_its_module() -> None:
    listed = spans(trace(a_record(), [0, 1], ["raw", "fp16", "int8"]))
    found = {(e["pid"], e["tid"], e["name"]): (e["ts"], e["dur"]) for e in listed}
    assert found == {
        (1, 0, "dispatch to 1"): (250_000.0, 62_500.0),
        (2, 1, "expert 6"): (0.0, 500_000.0),
        (1, 2, "combine"): (1_750_000.0, 250_000.0),
        (2, 1, "shared expert"): (750_000.0, 500_000.0),
    }


def test_the_ffn_of_a_dense_layer_is_not_a_shared_expert() -> None:
    record = np.repeat(a_record()[3:], 2)
    record["layer"] = 0, 1
    listed = spans(trace(record, [0, 1], ["raw"], dense_layers=1))
    assert [(e["args"]["layer"], e["name"]) for e in listed] == [(0, "dense FFN"), (1, "shared expert")]


def test_spans_say_what_they_moved_and_computed() -> None:
    listed = {e["name"]: e["args"] for e in spans(trace(a_record(), [0, 1], ["raw", "fp16", "int8"]))}
    assert listed["dispatch to 1"] == {
        "batch": 7,
        "micro": 0,
        "layer": 0,
        "rows": 10,
        "raw_bytes": 160,
        "sent_bytes": 90,
        "link": "node",
        "codec": "int8",
    }
    assert listed["expert 6"] == {"batch": 7, "micro": 0, "layer": 0, "rows": 10, "flops": 640}


def test_processes_and_threads_are_named() -> None:
    content = trace(a_record(), [0, 1], ["raw"] * 3)
    names = {
        (e["name"], e["pid"], e.get("tid")): e["args"].get("name")
        for e in content["traceEvents"]
        if e["ph"] == "M"
    }
    assert names["process_name", 1, None] == "module 0 (node 0)"
    assert names["process_name", 2, None] == "module 1 (node 1)"
    assert [names["thread_name", 2, tid] for tid in range(3)] == ["exchange", "compute", "combine"]


def test_faults_and_epochs_are_marks_from_the_record_s_start_on() -> None:
    events = [
        {"wall_s": START - 5, "kind": "joined", "module": 0, "epoch": 1},
        {"wall_s": START + 1.25, "kind": "fault", "fault": "kill", "module": 1},
        {"wall_s": START + 1.5, "kind": "dead", "module": 1, "signal": "process", "epoch": 3},
        {"wall_s": START + 1.5, "kind": "started"},
    ]
    content = trace(a_record(), [0, 1], ["raw"] * 3, events)
    marks = [(e["name"], e["ts"], e["s"]) for e in content["traceEvents"] if e["ph"] == "i"]
    assert marks == [
        ("module 1: fault injected: kill", 1_000_000.0, "g"),
        ("module 1 dead (signal: process), epoch 3", 1_250_000.0, "g"),
    ]


def test_a_simulation_is_traced_in_its_own_time() -> None:
    events = [
        {"wall_s": START - 5, "kind": "joined", "module": 0, "epoch": 1},
        {"wall_s": START, "since_start_virtual_s": 0.5, "kind": "fault", "fault": "kill", "module": 1},
    ]
    record = a_record().view(VIRTUAL_RECORD)
    content = trace(record, [0, 1], ["raw"] * 3, events, began=START + 1.0)
    assert spans(content) == spans(trace(a_record(), [0, 1], ["raw"] * 3))
    marks = [(e["name"], e["ts"]) for e in content["traceEvents"] if e["ph"] == "i"]
    assert marks == [("module 1: fault injected: kill", 1_250_000.0)]


def test_an_empty_record_is_a_valid_trace_and_survives_a_file(tmp_path: Path) -> None:
    content = trace(np.zeros(0, RECORD), [0], ["raw"] * 3)
    assert spans(content) == []
    save_trace(tmp_path / "trace.json", content)
    assert json.loads((tmp_path / "trace.json").read_text()) == content


def test_the_coordinator_s_and_the_client_s_frames_are_on_tracks_of_their_own() -> None:
    record = np.zeros(4, RECORD)
    record["kind"] = SUBMIT, ROUTE, DECODE, CONTROL
    record["src"], record["dst"] = (-2, -1, 0, 1), (-1, -1, 1, -1)
    record["sent_bytes"] = 40, 0, 0, 30
    record["start_wall_s"] = START + np.arange(4)
    record["end_wall_s"] = record["start_wall_s"] + 0.5
    content = trace(record, [0, 1], ["raw"])
    found = {(e["pid"], e["tid"], e["name"]) for e in spans(content)}
    assert found == {
        (3, 0, "submit to coordinator"),
        (0, 2, "route"),
        (2, 0, "decode"),  # where it was decoded
    }
    named = {e["pid"]: e["args"]["name"] for e in content["traceEvents"] if e["name"] == "process_name"}
    assert named == {0: "coordinator", 1: "module 0 (node 0)", 2: "module 1 (node 1)", 3: "client"}
