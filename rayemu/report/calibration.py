"""What a calibration found, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rayemu.hardware import Hardware
from rayemu.units import format_rate, format_seconds


class Run(Protocol):
    """A short run and what it took."""

    @property
    def wall_s(self) -> float:
        """Seconds from the first submission to the last result."""


def print_calibration(
    hardware: Hardware, measured: dict[str, float], runs: Sequence[Run], console: Console
) -> None:
    """Print rates of products, codecs and messages, and the runs that they were fitted to."""
    spec = hardware.spec
    processors, compute, banks = spec.processors, spec.module.compute, spec.module.banks
    assert processors is not None
    table = Table(box=SIMPLE_HEAD)
    table.add_column("this machine")
    table.add_column("measured", justify="right")
    rate = compute.rates[compute.precision] * compute.share
    table.add_row(f"products, each of {processors.count} cores at once", f"{rate / 1e9:.3g} GFLOP/s")
    table.add_row("weights read for a product", format_rate(banks.bandwidth))
    table.add_row("copy of what no cache holds", format_rate(1 / measured["copy"]))
    table.add_row("a message, at either end", format_seconds(processors.frame))
    table.add_row("its bytes, at either end", format_rate(processors.bandwidth))
    table.add_row("to wake a process", format_seconds(processors.wake))
    table.add_row("rates that small products in a run reach", f"{processors.share:.0%}")
    for name in sorted({key.split(" ", 1)[1] for key in measured if key.startswith("encode ")}):
        coded = (format_rate(1 / measured[f"{way} {name}"]) for way in ("encode", "decode"))
        table.add_row(f"{name}, encode and decode", ", ".join(coded))
    console.print(table)
    console.print(f"fitted to {len(runs)} short runs: " + ", ".join(format_seconds(r.wall_s) for r in runs))
