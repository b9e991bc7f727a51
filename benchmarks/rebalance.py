"""What moving experts brings: `python -m benchmarks.rebalance`.

The scenario `hot-switch`, with its own stream and with one that drifts, each with and without moving experts,
in turn. Balance is measured from the rows that modules computed, batch by batch. It is an error if an output
is not exact, if the balance after a move is less than 0.9 of what the planner promised, or if a batch takes
more than 1.5 times as long while experts move (p99 against the median at other times).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rayemu.balance.metrics import average, max_over_min, mean_over_max
from rayemu.drivers.record import load_columns
from rayemu.report.curves import curves
from rayemu.running.rebalances import computed_rows
from rayemu.running.run import run_scenario
from rayemu.scenario import Scenario

from .output import machine, noise_warning, results_file, write

STREAMS = {"hot_switch": [], "drift": ["stream={kind: drift, every: 200}"]}
LEAST, MOST = 0.9, 1.5  # of the promise kept; of a batch's time while experts move


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when every run was exact and every move kept what it promised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rebalance", description=__doc__)
    parser.add_argument("--batches", type=int, help="default: the scenario's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the scenario")
    parser.add_argument("--plot", type=Path, help="write the balance of hot_switch over time here, as SVG")
    parser.add_argument(
        "--out", type=Path, help="results as JSON; default: benchmarks/results/rebalance.json"
    )
    args = parser.parse_args(argv)
    console, facts = Console(), machine()
    if warning := noise_warning(facts):
        console.print(warning)
    runs, kept = {}, True
    for name, changes in STREAMS.items():
        for moving in (False, True):
            runs[name, moving] = measure([*changes, *args.set], moving, args.batches)
        kept &= show(console, name, runs[name, False], runs[name, True])
    if args.plot is not None:
        args.plot.write_text(plot(runs["hot_switch", False], runs["hot_switch", True]), encoding="utf-8")
        console.print(f"{args.plot}: balance over time")
    results = [{"stream": name, "moving": moving, **run} for (name, moving), run in runs.items()]
    write(args.out or results_file("rebalance"), {"machine": facts, "runs": results})
    return 0 if kept else 1


def measure(changes: Sequence[str], moving: bool, batches: int | None) -> dict[str, Any]:
    """Run the scenario; return its figures, `balance` batch by batch among them."""
    settings = [*changes, *([] if moving else ["rebalance=null"])]
    settings += [] if batches is None else [f"run.batches={batches}"]
    scenario = Scenario.load("hot-switch").with_overrides(settings)
    layers, modules = scenario.spec.layers, scenario.cluster.modules
    with tempfile.TemporaryDirectory() as folder:
        summary = run_scenario(scenario, Path(folder))
        record = load_columns(Path(folder) / "record.npz")
    rows = [computed_rows(record, [batch], layers, modules) for batch in range(summary["batches"])]
    return {
        "exact": summary["exact"],
        "balance": [average(mean_over_max(r), r) for r in rows],
        "max_over_min": float(np.median([average(max_over_min(r), r) for r in rows])),
        "batch_p50_wall_s": summary["batch_p50_wall_s"],
        "batch_p99_wall_s": summary["batch_p99_wall_s"],
        "tokens_per_wall_s": summary["tokens_per_wall_s"],
        "rebalances": summary.get("rebalances", []),
    }


def show(console: Console, name: str, still: dict[str, Any], moved: dict[str, Any]) -> bool:
    """Print what moving changed and each move; return whether all was kept."""
    table = Table(title=f"{name}: as placed, and with experts that move", title_justify="left")
    for head in ("", "as placed", "moving"):
        table.add_column(head, justify="left" if not head else "right")
    both = (still, moved)
    table.add_row("balance, mean/max of modules' rows", *(f"{np.mean(run['balance']):.2f}" for run in both))
    table.add_row("max/min of modules' rows, median", *(f"{run['max_over_min']:.1f}" for run in both))
    table.add_row("batch p50", *(f"{1e3 * run['batch_p50_wall_s']:.0f} ms" for run in both))
    table.add_row("batch p99", *(f"{1e3 * run['batch_p99_wall_s']:.0f} ms" for run in both))
    table.add_row("tokens/s", *(f"{run['tokens_per_wall_s']:.0f}" for run in both))
    table.add_row("exact", *(str(run["exact"]) for run in both))
    console.print(table)
    kept = still["exact"] is True and moved["exact"] is True
    for move in moved["rebalances"]:
        after, promised, slowdown = move["balance_after"], move["promised"], move["slowdown"]
        if after is None or slowdown is None:
            console.print(f"  after batch {move['batch']}: not measured, the run ended first")
            continue
        good = after >= LEAST * promised and slowdown <= MOST
        kept &= good
        console.print(
            f"  after batch {move['batch']}: {move['balance_before']:.2f} before, {after:.2f} after, "
            f"{promised:.2f} promised ({after / promised:.2f} kept, must {LEAST}); {move['moves']} experts, "
            f"{move['bytes'] / 1e6:.0f} MB in {move['took_wall_s']:.2f} s; batches p99 {slowdown:.2f} times "
            f"the median meanwhile (must {MOST})" + ("" if good else "  NOT KEPT"),
            highlight=False,
        )
    return kept


def plot(still: dict[str, Any], moved: dict[str, Any]) -> str:
    """Balance over batches, with the moments of the moves."""
    marks = [(move["batch"], "experts move") for move in moved["rebalances"]]
    series = {"as placed": still["balance"], "experts move": moved["balance"]}
    title = "Balance through a switch of the hot tokens"
    return curves(series, title, "batch", "mean/max of the modules' rows", marks)


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
