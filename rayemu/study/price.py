"""`rayemu price`: what a recorded run would have taken and cost on modelled hardware, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayemu.hardware import load_hardware
from rayemu.pricing.price import YEARS
from rayemu.pricing.recorded import load_recorded, price_recorded
from rayemu.report.wording import count
from rayemu.units import format_bytes, format_joules, format_seconds

LEGEND = "queue: waiting for modules and links that serve others; busy: the mean and the busiest one"
UNPRICED_ARRIVALS = "arrivals ({}) are not priced; a batch is submitted when another has freed its place"
ENERGIES = ("experts", "combine", "routing", "bank_links", "module_links", "node_links", "static")


def report(folder: Path, names: Sequence[str], as_json: bool, allow_overfull: bool) -> None:
    """Price a run folder on each hardware and print it: with one and JSON its object, else a list of them.

    Raises HardwareError, PricingError, RecordError, ScenarioError.
    """
    hardwares = [load_hardware(name) for name in names]
    run = load_recorded(folder)
    priced = [price_recorded(run, hardware, allow_overfull)[0] for hardware in hardwares]
    if as_json:
        print(json.dumps(priced[0] if len(priced) == 1 else priced, indent=1))
        return
    print_priced(priced, f"{run.scenario.name}: emulated time of {run.model.name} at full width")


def print_priced(priced: Sequence[dict[str, Any]], title: str) -> None:
    """Print pricings side by side, a column each."""
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for of in priced:
        table.add_column(escape(of["hardware"]), justify="right", overflow="fold")
    columns = [dict(_rows(of)) for of in priced]
    for name in {name: None for column in columns for name in column}:
        table.add_row(name, *(escape(column.get(name, "-")) for column in columns))
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(LEGEND, highlight=False)
    for note in [note for of in priced for note in notes(of)]:
        console.print(escape(note), highlight=False)


def notes(of: dict[str, Any]) -> Iterator[str]:
    """What a reader must know beside the figures."""
    if of["energy_not_known"]:
        unknown = ", ".join(of["energy_not_known"]).replace("_", " ")
        yield f"{of['hardware']}: energy of {unknown} is not known and not counted"
    if of["memory"]["fits"] is False:
        most = max(of["memory"]["total_bytes"])
        capacity = format_bytes(of["memory"]["capacity_bytes"])
        yield f"{of['hardware']}: DOES NOT FIT, the fullest module needs {format_bytes(most)} of {capacity}"
    if of["arrivals"] != "closed":
        yield f"{of['hardware']}: {UNPRICED_ARRIVALS.format(of['arrivals'])}"
    if of["missing_causes"]:
        yield (
            f"{of['hardware']}: {of['missing_causes']} causes are missing in the record, as of modules that "
            "died with it; what they caused may begin too early"
        )


def _rows(of: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "modules, nodes", f"{of['modules']}, {of['nodes']}"
    yield "step_emu_s", format_seconds(of["step_emu_s"])
    for part, seconds in of["critical_path"].items():
        yield f"  {part}", f"{format_seconds(seconds)} {seconds / (of['step_emu_s'] or 1):4.0%}"
    rate = of["tokens_per_emu_s"]
    yield "tokens_per_emu_s", count(rate) if rate is not None else "-"
    for name, use in of["utilisation"].items():
        if use is not None:
            yield f"{name.replace('_', ' ')} busy", f"{use['mean']:.1%}, {use['max']:.1%}"
    yield "joules_per_token", format_joules(of["joules_per_token"])
    for name in ENERGIES:
        energy = of["energy_joules"].get(name)
        told = "not known" if energy is None else format_joules(energy / of["tokens"])
        yield f"  of {name.replace('_', ' ')}", told if energy or name in of["energy_not_known"] else "-"
    memory = of["memory"]
    capacity = "not known" if memory["capacity_bytes"] is None else format_bytes(memory["capacity_bytes"])
    yield "fullest module", format_bytes(max(memory["total_bytes"]))
    yield "  of", capacity
    cost = of["cost"]
    yield f"cost in {YEARS} years", "not known" if cost is None else f"{count(cost['total_usd'])} USD"
    if cost is not None:
        yield "  to buy", f"{count(cost['bought_usd'])} USD"
        yield "  of power", f"{count(cost['power_usd'])} USD"
        if "usd_per_million_tokens" in cost:
            yield "  of 1 M tokens", f"{cost['usd_per_million_tokens']:.3g} USD"
