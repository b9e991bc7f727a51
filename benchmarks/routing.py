"""Where choices are made, and what of that is hidden: `python -m benchmarks.routing`.

Runs one model (32 experts, 2 of them for a token) with every `routing.place` that its router allows, and the
default place with more and more units under way. Bytes and stages are those of the record; with --transport
memory times are virtual, and a home's own work takes none. Prints two tables and writes JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rayemu import Emulator, Scenario
from rayemu.drivers.record import GROUPS, OFFER_REPLY, OFFER_REQUEST, ROUTE_REPLY, ROUTE_REQUEST, clock_of
from rayemu.hardware import load_hardware
from rayemu.pricing.path import PARTS, critical_paths
from rayemu.pricing.recorded_graph import graph_of
from rayemu.pricing.schedule import schedule
from rayemu.report.overlap import STAGES, overlap

from .output import busy_share, machine, noise_warning, results_file, write

EXPERTS, LAYERS, MODULES = 32, 3, 4
WIDE = 256, 256, 64  # width, rows of a batch, rows of a slice: four homes
NARROW = 64, 64, 64  # little work and one home: what overlaps are micro-batches and batches
ROUTERS: dict[str, dict[str, Any]] = {
    "softmax_topk": {},
    "hierarchical_topk": {"groups": 8, "top_groups": 2},
}
PLACES = [
    ("softmax_topk", "coordinator"),
    ("softmax_topk", "modules"),
    ("softmax_topk", "distributed"),
    ("hierarchical_topk", "coordinator"),
    ("hierarchical_topk", "hybrid"),
]
_ROUTING_FRAMES = (ROUTE_REQUEST, ROUTE_REPLY, GROUPS, OFFER_REQUEST, OFFER_REPLY)


def measured(
    router: str,
    place: str,
    size: tuple[int, int, int],
    micro: int,
    in_flight: int,
    transport: str,
    batches: int,
    hardware: str,
) -> dict[str, Any]:
    """One run: bytes, stages, throughput, and the same priced on a hardware."""
    width, rows, slice_rows = size
    scenario = Scenario.from_dict(
        {
            "model": {"d_model": width, "d_ff": width, "experts": EXPERTS, "top_k": 2, "layers": LAYERS},
            "cluster": {"nodes": 2, "modules_per_node": MODULES // 2, "transport": transport},
            "routing": {"kind": router, "place": place, **ROUTERS[router]},
            "exchange": {"micro_batches": micro, "min_slice_rows": slice_rows},
        }
    )
    x = np.random.default_rng(0).standard_normal((batches, rows, width), dtype=np.float32)
    with Emulator(scenario) as emulator:
        for _ in emulator.stream(list(x[:2]), in_flight=1):  # whatever happens once
            pass
        results = list(emulator.stream(list(x), in_flight=in_flight))
        exact = np.array_equal(emulator.reference(x[0], results[0]), results[0].y)
        record = emulator.record()
    record = record[record["batch"] >= results[0].batch]
    record = record[np.argsort(record["id"], kind="stable")]
    record["id"], record["cause"] = np.arange(len(record)), -1
    span = max(r.finished_at for r in results) - min(r.submitted_at for r in results)
    units = record[np.isin(record["kind"], _ROUTING_FRAMES)]
    found = overlap(record)
    graph = graph_of(record, scenario.spec, in_flight, np.repeat([0, 1], MODULES // 2).astype(np.int32))
    machine_, spec = load_hardware(hardware), scenario.spec
    plan = schedule(graph, machine_, spec)
    paths = critical_paths(graph, plan)
    passed = batches * LAYERS  # each of so many rows
    return {
        "router": router,
        "place": place,
        "micro_batches": micro,
        "in_flight": in_flight,
        "clock": clock_of(record),
        "exact": exact,
        "gaps": graph.gaps,
        "bytes_per_row": float(units["sent_bytes"].sum()) / (passed * rows),
        "answer_bytes_per_row": _per_row(units, (ROUTE_REPLY, GROUPS, OFFER_REPLY)),
        "frames_per_layer": len(units) / passed,
        "route_ms": found.seconds[0] / (passed * (rows // slice_rows) * micro) * 1e3,
        "tokens_per_s": batches * rows / span,
        "hidden": None if np.isnan(found.hidden) else found.hidden,
        "meanwhile": found.as_dict()["meanwhile"],
        "emu_tokens_per_s": batches * rows / float(plan.end.max()),
        "emu_batch_ms": float(np.median(paths.end - paths.begin)) * 1e3,
        "emu_route_ms": float(np.median(paths.parts[:, PARTS.index("route")])) / LAYERS * 1e3,
    }


def _per_row(frames: np.ndarray, kinds: tuple[int, ...]) -> float:
    """What the answers carry for a row, all modules together."""
    told = frames[np.isin(frames["kind"], kinds)]
    rows = told["rows"][told["kind"] != OFFER_REPLY].sum() + told["rows"][
        told["kind"] == OFFER_REPLY
    ].sum() / (MODULES - 1)
    return float(told["raw_bytes"].sum() / rows) if rows else 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when every output was right."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.routing", description=__doc__.splitlines()[0])
    p.add_argument("--transport", choices=["memory", "zmq"], default="memory")
    p.add_argument("--batches", type=int, default=16, help="default: 16")
    p.add_argument("--hardware", default="hbm2-pim", help="to price the runs on; default: hbm2-pim")
    p.add_argument("--out", type=Path, metavar="FILE.json")
    args = p.parse_args(argv)
    console = Console(width=160)
    facts = machine()
    if warning := noise_warning(facts):
        console.print(warning)
    rest = args.transport, args.batches, args.hardware
    where = [measured(router, place, WIDE, 2, 1, *rest) for router, place in PLACES]
    piped = [
        measured("softmax_topk", place, NARROW, micro, in_flight, *rest)
        for place in ("coordinator", "distributed")
        for micro in (1, 2, 4)
        for in_flight in (1, 4)
    ]
    keys = ("router", "place", "bytes_per_row", "answer_bytes_per_row", "frames_per_layer", "route_ms")
    console.print(_table(where, (*keys, "tokens_per_s", "emu_route_ms", "emu_batch_ms", "gaps", "exact")))
    piped_keys = "place", "micro_batches", "in_flight", "tokens_per_s", "route_ms", "hidden"
    console.print(_table(piped, (*piped_keys, "emu_tokens_per_s", "gaps", "exact")))
    last = piped[5]["meanwhile"]
    console.print(_table([{"stage": s, **last[s]} for s in STAGES], ("stage", *STAGES)))
    facts["busy_share"] = busy_share()
    write(args.out or results_file("routing"), {"machine": facts, "places": where, "pipelined": piped})
    return 0 if all(one["exact"] for one in [*where, *piped]) else 1


def _table(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> Table:
    table = Table()
    for key in keys:
        table.add_column(key)
    for row in rows:
        cells = (row[key] for key in keys)
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
