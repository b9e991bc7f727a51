"""Runs a faultload from the command line and reports it: what `recovery` and `hang` share."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rayemu.emulator import Emulator

from .faultload import (
    Batch,
    Faultload,
    Outcome,
    false_alarms,
    outcome,
    scenario,
)
from .measure import spread, summary
from .output import machine, noise_warning, results_file, show_time, write
from .workload import Size, Workload

MODULES = 8
TIMES = {
    "detected_s": "the coordinator tells of it",
    "unit_s": "a unit that needed the module is done",
    "recovered_s": "a batch that needed it is out",
    "all_s": "all batches under way are out",
    "back_s": "the module is back",
}


def add_arguments(parser: argparse.ArgumentParser, benchmark: str) -> None:
    """Options that both benchmarks have."""
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a batch; default: 64")
    parser.add_argument("--in-flight", type=int, default=4, help="batches under way; default: 4")
    parser.add_argument("--homes", type=int, default=1, help="slices of a batch; default: 1")
    parser.add_argument("--exchange", choices=["hierarchical", "flat"], default="hierarchical")
    parser.add_argument("--transport", choices=["zmq", "ray"], default="zmq")
    parser.add_argument("--seed", type=int, default=0, help="of weights, inputs, victims and moments")
    default = f"default: benchmarks/results/{benchmark}-TIME.json"
    parser.add_argument("--out", type=Path, metavar="FILE.json", help=default)


def run(
    args: argparse.Namespace,
    benchmark: str,
    title: str,
    strikes: int,
    strike: Callable[[int], None],
    returns: tuple[str, ...],
    lasts_s: float,
    goal: str,
) -> int:
    """Run the faultload, print the table, write the JSON; 0 when no token was lost, doubled or wrong.

    Raises SystemExit for arguments that make no sense.
    """
    if strikes < 1 or args.in_flight < 1 or args.tokens < args.homes or args.homes < 1:
        raise SystemExit("give at least 1 fault, 1 batch in flight, 1 home, and a token for each home")
    began = time.time()
    progress, console = Console(stderr=True), Console()

    def say(text: str) -> None:
        progress.print(f"[dim]{time.time() - began:5.0f} s  {text}[/dim]", highlight=False)

    size = Size("stream", args.tokens, d_model=256, d_ff=512, modules=MODULES)
    workload = Workload(size, args.seed, batches=16)
    workload.outputs  # noqa: B018  computed before the stream, which must not wait for them
    facts = machine()
    if warning := noise_warning(facts):
        progress.print(warning)
    plan = scenario(size, args.seed, args.in_flight, args.exchange, args.homes, args.transport)
    say(f"starting {size.modules} modules")
    with Emulator(plan) as emulator:
        load = Faultload(
            emulator, workload, strikes, strike, returns, np.random.default_rng(args.seed), say, lasts_s
        )
        load.run(args.in_flight)
        say("reading the record")
        record = emulator.record()
        duplicates = emulator.duplicate_results
    outcomes = [outcome(k, load.batches, load.signals, record) for k in load.done]
    data: dict[str, Any] = {
        "benchmark": benchmark,
        "started_unix_s": began,
        "machine": facts,
        "scenario": plan.to_yaml(),
        "strikes": len(outcomes),
        **tokens(load.batches, load.sent, size.tokens),
        "duplicate_results_refused": duplicates,
        "undisturbed_batch": summary(undisturbed(load)),
        "first_signals": dict(Counter(o.signal for o in outcomes)),
        "all_signals": dict(Counter(f"{s.kind} ({s.cause})" for s in load.signals)),
        "false_alarms": dict(false_alarms(load.done, load.signals)),
        "without_needed_batch": sum(o.recovered_s is None for o in outcomes),
        **{name: spread(values(outcomes, name)) for name in TIMES},
        "outcomes": [asdict(o) for o in outcomes],
        "wall_s": time.time() - began,
    }
    path = args.out or results_file(benchmark)
    write(path, data)
    console.print(table(f"{title} ({goal})", data))
    for line in lines(data):
        console.print(line, highlight=False)
    console.print(f"Written to {path}", highlight=False)
    return 0 if clean(data) else 1


def values(outcomes: list[Outcome], name: str) -> list[float]:
    """A time of all outcomes that have it."""
    return [value for o in outcomes if (value := getattr(o, name)) is not None]


def tokens(batches: list[Batch], sent: int, per_batch: int) -> dict[str, Any]:
    """What went in and what came out. A batch that never came out is lost as a whole."""
    missing = sent - len(batches)
    return {
        "batches": sent,
        "tokens_in": sent * per_batch,
        "tokens_lost": sum(b.lost for b in batches) + missing * per_batch,
        "tokens_doubled": sum(b.doubled for b in batches),
        "batches_not_exact": sum(not b.exact for b in batches),
        "exact": missing == 0 and all(b.exact for b in batches),
    }


def undisturbed(load: Faultload) -> list[float]:
    """Times from submission to result of batches that lay between a module's return and the next strike."""
    spans = [(k.at, k.back if k.back is not None else float("inf")) for k in load.done]
    calm = []
    for b in load.batches:
        if not any(b.submitted <= high and low <= b.finished for low, high in spans):
            calm.append(b.finished - b.submitted)
    return calm


def clean(data: dict[str, Any]) -> bool:
    """Whether nothing was lost, doubled or wrong."""
    return bool(data["exact"]) and data["tokens_lost"] == 0 and data["tokens_doubled"] == 0


def table(title: str, data: dict[str, Any]) -> Table:
    """The times from the fault."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("wall time from the fault until", no_wrap=True)
    for heading in ("p50", "p99", "max", "of"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name, heading in TIMES.items():
        s = data[name]
        cells = [show_time(s.get(key)) for key in ("p50_s", "p99_s", "max_s")]
        shown.add_row(heading, *cells, str(s["count"]))
    return shown


def lines(data: dict[str, Any]) -> list[str]:
    """What else a reader wants to know."""

    def counts(table: dict[str, int]) -> str:
        return ", ".join(f"{name} {n}" for name, n in sorted(table.items())) or "none"

    batch = data["undisturbed_batch"]
    return [
        f"tokens: {data['tokens_in']:,} in, {data['tokens_lost']} lost, {data['tokens_doubled']} doubled; "
        f"{data['batches']:,} batches, {data['batches_not_exact']} not equal to the reference",
        f"an undisturbed batch takes {show_time(batch.get('median_s'))} from submission to result (median)",
        f"first signal: {counts(data['first_signals'])}",
        f"modules suspected or given up without a fault: {counts(data['false_alarms'])}",
    ]
