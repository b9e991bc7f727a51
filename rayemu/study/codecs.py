"""`rayemu codecs`: the error budget of a scenario's stream as a table, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rayemu.model.model import Model
from rayemu.report.scatter import scatter
from rayemu.scenario import Scenario
from rayemu.streams.aim import aim
from rayemu.study.budget import CODECS, budget, over_layers

HEADINGS = (
    "bytes/\nvalue",
    "ratio",
    "enc.\nGB/s",
    "dec.\nGB/s",
    "row error\nmean",
    "\nmax",
    "output\nerror",
    "pays\nbelow",
)


def report(
    scenario: Scenario, codecs: Sequence[str] | None, tokens: int | None, out: Path | None
) -> list[dict[str, Any]]:
    """Measure, print, and write to `out` where given. Raises CodecError for an unknown codec."""
    console = Console()
    spec, rows = scenario.spec, tokens or scenario.run.batch_tokens
    model = Model(spec)
    stream = aim(scenario.stream.build(), spec, scenario.placed(), scenario.run.seed)
    x = next(iter(stream.batches(rows, spec.d_model, scenario.run.seed)))
    entries = []
    with console.status("measuring") as status:  # shown on terminals only
        for entry in budget(model, x, codecs or CODECS):
            entries.append(entry)
            status.update(f"layer {entry.layer}: {entry.codec}")
    lines = over_layers(entries)
    title = (
        f"{scenario.name}: {len(x)} rows of {spec.d_model} values at {len({e.layer for e in entries})} layers"
    )
    console.print(table(lines, title))
    for line in lines:
        if line.get("refused"):
            console.print(f"{line['codec']}: {line['refused']}", highlight=False)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        found = {"scenario": scenario.name, "rows": len(x), "width": spec.d_model, "codecs": lines}
        layers = [asdict(entry) for entry in entries]
        (out / "codecs.json").write_text(json.dumps({**found, "layers": layers}, indent=1) + "\n", "utf-8")
        (out / "codecs.svg").write_text(scatter(lines, title), "utf-8")
        console.print(f"Written to {out / 'codecs.json'} and {out / 'codecs.svg'}", highlight=False)
    return lines


def table(lines: Sequence[dict[str, Any]], title: str) -> Table:
    """One row per codec; speeds in GB/s of float32 rows, also of the link under which it pays."""
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("codec", no_wrap=True)
    for heading in HEADINGS:
        shown.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        if line.get("refused"):
            shown.add_row(line["codec"], *["-"] * (len(HEADINGS) - 1), "refused")
            continue
        shown.add_row(
            line["codec"],
            f"{line['bytes_per_value']:.2f}",
            f"{line['ratio']:.2f}",
            _speed(line["encode_gb_per_s"]),
            _speed(line["decode_gb_per_s"]),
            _error(line["row_error_mean"]),
            _error(line["row_error_max"]),
            _error(line["output_error"]),
            _speed(line["pays_below_gb_per_s"]) if line["pays_below_gb_per_s"] else "never",
        )
    return shown


def _speed(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}" if value < 99.5 else ">99"


def _error(value: float) -> str:
    return "0" if not value else f"{value:.0e}" if value < 9.5e-4 else f"{value:.2g}"
