"""Modelled hardware on the terminal: a line for each, or every number of one with where it is from."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from rayemu.hardware import Hardware
from rayemu.hardware.describe import derived, figures
from rayemu.hardware.quantities import write
from rayemu.report.fitting import fitted

LEAST = 24  # columns that a source takes: where it has fewer it goes below its figure


def print_list(hardware: list[Hardware], console: Console) -> None:
    """A line for each: bandwidth inside as reached, rate, ridge, capacity, and where there is room, what."""
    rows = []
    for one in hardware:
        follows = {figure.name: figure.text for figure in derived(one)}
        inside = follows.get("fetched_reached", follows["internal_bandwidth_reached"])
        capacity = write(one.capacity, "size") if math.isfinite(one.capacity) else "unlimited"
        rows.append((one.name, inside, follows["rate_reached"], follows["ridge"], capacity))
    heads = ("hardware", "inside", "rate", "ridge", "capacity")
    about = ("a module is", [one.spec.about for one in hardware])
    for table in fitted(console.width, None, heads, rows, style="cyan", sentences=about):
        console.print(table)


def print_one(hardware: Hardware, console: Console) -> None:
    """Every number with its unit and its source, then what follows from them."""
    console.print(f"[bold]{escape(hardware.name)}[/bold]: {escape(hardware.spec.about)}", highlight=False)
    if hardware.spec.remark:
        console.print(escape(hardware.spec.remark), highlight=False)
    rows = [
        (figure.path, figure.text, figure.source + (f" - {figure.remark}" if figure.remark else ""))
        for figure in figures(hardware)
    ]
    found = [(follows.name, follows.text, f"derived: {follows.formula}") for follows in derived(hardware)]
    taken = sum(max(cell_len(row[at]) for row in [*rows, *found]) for at in (0, 1))
    if console.width - taken < LEAST:
        for name, text, source in [*rows, *found]:
            console.print(f"[cyan]{escape(name)}[/cyan]  {escape(text)}", highlight=False)
            console.print(Padding(escape(source), (0, 0, 0, 4)), highlight=False)
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("figure", style="cyan", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("from", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    table.add_section()
    for row in found:
        table.add_row(*map(escape, row))
    console.print(table)
