"""Load predictors on windows that they have not seen: `python -m benchmarks.predictors`.

Loads are drawn: expert shares as 1/rank^0.6 in a random order per layer, then rows of every window by a
multinomial. What differs is how shares change from window to window (`KINDS`). A plan for the next window is
made from each forecast (LPT, one copy of each expert, room for twice as many) and measured on that window.
`--loads` scores a recorded history [W, L, E] (.npy) instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rayemu.balance.levels import spread
from rayemu.balance.predictors import PREDICTORS
from rayemu.balance.scores import Score, score_predictors

from .output import machine, results_file, show_ratio, write

KINDS = {
    "still": "nothing changes, all is noise",
    "drift": "log-shares walk at random, 0.05 per window",
    "hot_switch": "another order of experts from the middle of the held-out windows on",
    "recurring": "two orders of experts in turn, 7 windows each",
    "periodic": "log-shares swing by 0.6 with a period of 12 windows, each expert with a phase of its own",
}
WINDOWS, LAYERS, EXPERTS, ROWS = 80, 4, 64, 20_000


def draw(kind: str, seed: int, held_out: int) -> np.ndarray:
    """Rows per expert [W, L, E] of loads that change in this way."""
    rng = np.random.default_rng(seed)
    ranks = 1 + np.stack([rng.permutation(EXPERTS) for _ in range(LAYERS)])
    base, other = -0.6 * np.log(ranks), -0.6 * np.log(ranks[:, rng.permutation(EXPERTS)])  # [L, E]
    window = np.arange(WINDOWS)[:, None, None]
    changes: dict[str, Any] = {
        "still": base,
        "drift": base + np.cumsum(rng.normal(0, 0.05, (WINDOWS, LAYERS, EXPERTS)), axis=0),
        "hot_switch": np.where(window < WINDOWS - held_out // 2, base, other),
        "recurring": np.where(window // 7 % 2 == 0, base, other),
        "periodic": base + 0.6 * np.sin(2 * np.pi * (window / 12 + rng.random((LAYERS, EXPERTS)))),
    }
    mass = np.exp(np.broadcast_to(changes[kind], (WINDOWS, LAYERS, EXPERTS)))
    return rng.multinomial(ROWS, mass / mass.sum(axis=-1, keepdims=True)).astype(np.float64)


def planner(devices: int, loads: np.ndarray) -> np.ndarray:
    """A plan `phy2log [L, R]`: one copy per expert, by LPT and exchanges; half of the slots are empty."""
    slots = -(-2 * loads.shape[1] // devices)
    plan = np.full((len(loads), devices * slots), -1)
    for row, load in zip(plan, loads, strict=True):
        part = spread(load, devices, slots)
        for device in range(devices):
            held = np.flatnonzero(part == device)
            row[device * slots : device * slots + len(held)] = held
    return plan


def score(history: np.ndarray, held_out: int, devices: int) -> list[Score]:
    """Scores of all predictors that can run here."""
    torch = importlib.util.find_spec("torch") is not None
    able = {n: kind() for n, kind in PREDICTORS.items() if torch or n not in ("recurrent", "federated")}
    return score_predictors(history, held_out, able, lambda loads: planner(devices, loads), devices)


def mean_of(runs: Sequence[Sequence[Score]]) -> list[dict[str, Any]]:
    """Each predictor's figures, averaged over runs, best MAE against the naive first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for scores in runs:
        for each in scores:
            found.setdefault(each.predictor, []).append(dataclasses.asdict(each))
    rows = [
        {k: v if isinstance(v, str) else float(np.mean([s[k] for s in some])) for k, v in some[0].items()}
        for some in found.values()
    ]
    return sorted(rows, key=lambda row: float(row["against_naive"]))


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Predictors as rows; the last three columns: plans from the forecast, the last window, the future."""
    shown = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for heading in ("predictor", "error", "MAE/naive", "", "max/mean", "naive", "hindsight"):
        shown.add_column(heading, justify="left" if heading in ("predictor", "") else "right", no_wrap=True)
    for row in rows:
        against = row["against_naive"]
        worse = "" if abs(against - 1) < 0.005 else "better" if against < 1 else "WORSE"
        balance = [f"{row[k]:.3f}" for k in ("balance", "naive_balance", "hindsight_balance")]
        shown.add_row(row["predictor"], f"{row['relative']:.1%}", show_ratio(against), worse, *balance)
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.predictors", description="Scores load predictors beside the naive one."
    )
    parser.add_argument(
        "--loads", type=Path, help="a history of loads [W, L, E] (.npy) in place of drawn ones"
    )
    parser.add_argument("--held-out", type=int, default=20, help="windows to forecast; default: 20")
    parser.add_argument("--devices", type=int, default=8, help="default: 8")
    parser.add_argument("--seeds", type=int, default=3, help="drawn histories of each kind; default: 3")
    parser.add_argument("--only", choices=KINDS, help="one kind of change")
    parser.add_argument(
        "--json", type=Path, default=None, help="default: benchmarks/results/predictors-*.json"
    )
    args = parser.parse_args(argv)
    console = Console()
    results: dict[str, Any] = {}
    if args.loads:
        sources = {args.loads.name: [np.load(args.loads, allow_pickle=False)]}
    else:
        kinds = [args.only] if args.only else list(KINDS)
        sources = {k: [draw(k, seed, args.held_out) for seed in range(args.seeds)] for k in kinds}
    for name, histories in sources.items():
        results[name] = mean_of([score(history, args.held_out, args.devices) for history in histories])
        console.print(table(f"{name}: {KINDS.get(name, 'as recorded')}", results[name]))
    path = args.json or results_file("predictors")
    write(path, {"machine": machine(), "held_out": args.held_out, "devices": args.devices, "kinds": results})
    console.print(f"Results in {path}")
    return 0


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
