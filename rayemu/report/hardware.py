"""Modelled hardware on the terminal: a line for each, or every number of one with where it is from."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayemu.hardware import Hardware
from rayemu.hardware.describe import derived, figures
from rayemu.hardware.quantities import write

ROOM = 110  # columns of a terminal from which on a sentence fits beside the figures


def print_list(hardware: list[Hardware], console: Console) -> None:
    """A line for each: bandwidth inside as reached, rate, ridge, capacity, and where there is room, what."""
    wide = console.width >= ROOM
    table = Table(box=SIMPLE_HEAD)
    table.add_column("hardware", style="cyan", no_wrap=True)
    for column in ("inside", "rate", "ridge", "capacity"):
        table.add_column(column, justify="right", no_wrap=True)
    if wide:
        table.add_column("a module is")
    for one in hardware:
        follows = {figure.name: figure.text for figure in derived(one)}
        capacity = write(one.capacity, "size")
        cells = (follows["internal_bandwidth_reached"], follows["rate_reached"], follows["ridge"], capacity)
        table.add_row(one.name, *cells, *([escape(one.spec.about)] if wide else []))
    console.print(table)


def print_one(hardware: Hardware, console: Console) -> None:
    """Every number with its unit and its source, then what follows from them."""
    console.print(f"[bold]{escape(hardware.name)}[/bold]: {escape(hardware.spec.about)}", highlight=False)
    if hardware.spec.remark:
        console.print(escape(hardware.spec.remark), highlight=False)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("figure", style="cyan", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("from")
    for figure in figures(hardware):
        remark = f" - {figure.remark}" if figure.remark else ""
        table.add_row(escape(figure.path), escape(figure.text), escape(figure.source + remark))
    table.add_section()
    for follows in derived(hardware):
        table.add_row(follows.name, follows.text, f"derived: {escape(follows.formula)}")
    console.print(table)
