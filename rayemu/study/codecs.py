"""`rayemu codecs`: the error budget of a scenario's stream as a table, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from rayemu.model.model import Model
from rayemu.report.fitting import fitted
from rayemu.report.scatter import scatter
from rayemu.scenario import Scenario
from rayemu.streams.aim import aim
from rayemu.study.budget import CODECS, budget, over_layers

HEADINGS = (
    "codec",
    "bytes/\nvalue",
    "ratio",
    "enc.\nGB/s",
    "dec.\nGB/s",
    "row error\nmean",
    "row error\nmax",
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
    for table in fitted(console.width, title, HEADINGS, list(_rows(lines))):
        console.print(table)
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


def _rows(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """One row per codec; speeds in GB/s of float32 rows, also of the link under which it pays."""
    for line in lines:
        if line.get("refused"):
            yield (line["codec"], *["-"] * (len(HEADINGS) - 2), "refused")
            continue
        yield (
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


def _speed(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}" if value < 99.5 else ">99"


def _error(value: float) -> str:
    return "0" if not value else f"{value:.0e}" if value < 9.5e-4 else f"{value:.2g}"
