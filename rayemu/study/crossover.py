"""`rayemu crossover`: one MoE layer on hardwares side by side, by batch size; where they change places."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayemu.hardware import Hardware, load_hardware
from rayemu.model.spec import ModelSpec
from rayemu.pricing.crossover import SIZES, crossings, curve
from rayemu.pricing.memory import PricingError, memory_map
from rayemu.study.model import find
from rayemu.units import format_joules, format_seconds

MODULES, MOST_MODULES = 8, 4096
_MEASURES = (("emu_s_per_token", "time"), ("joules_per_token", "energy"))


def report(name: str, names: Sequence[str], modules: int | None, zipf: float, as_json: bool) -> None:
    """Print time and energy per token of one layer by batch size, and the crossings of each pair.

    `zipf` is the exponent of the experts' popularity, 0 for all alike. Raises HardwareError, PricingError,
    ModelError, ScenarioError, CheckpointError.
    """
    modules = MODULES if modules is None else modules
    if len(names) < 2:
        raise PricingError("--hardware: name two or more to compare")
    if len({*names}) < len(names):
        raise PricingError(f"--hardware: {', '.join(names)} names one twice; name different ones")
    if not 1 <= modules <= MOST_MODULES:
        raise PricingError(f"--modules {modules} is not allowed; allowed: 1 to {MOST_MODULES}")
    if not 0 <= zipf <= 10:
        raise PricingError(f"--zipf {zipf} is not allowed; allowed: 0 to 10")
    model = find(name).spec.full()
    hardwares = [load_hardware(one) for one in names]
    if len({one.name for one in hardwares}) < len(hardwares):
        raise PricingError(f"--hardware: two of {', '.join(names)} have one name; give each file its own")
    facts = compare(hardwares, model, modules, zipf)
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    _print(facts)


def compare(hardwares: Sequence[Hardware], model: ModelSpec, modules: int, zipf: float) -> dict[str, Any]:
    """All figures as plain data."""
    loads = np.arange(1, model.experts + 1, dtype=np.float64) ** -zipf
    curves = {one.name: curve(one, model, modules, loads) for one in hardwares}
    found, same = [], []
    for one, other in combinations(curves, 2):
        for key, what in _MEASURES:
            of = [[point[key] for point in curves[name]] for name in (one, other)]
            crossed = crossings(SIZES, *of)
            for at in crossed:
                first = (one, other)[at.pop("first")]
                found.append(
                    {"of": what, "less_before": first, "less_after": _other(first, one, other), **at}
                )
            if not crossed:  # sums tell who is less where the two are equal at some sizes
                less = None if of[0] == of[1] else one if sum(of[0]) < sum(of[1]) else other
                same.append({"of": what, "between": [one, other], "less": less})
    held = np.bincount(np.arange(model.experts) * modules // model.experts, minlength=modules)
    maps = {one.name: memory_map(one, model, held * model.moe_layers, 1).fits for one in hardwares}
    return {
        "model": model.name,
        "modules": modules,
        "zipf": zipf,
        "curves": curves,
        "crossovers": found,
        "no_crossovers": same,
        "whole_model_fits": maps,
    }


def _other(first: str, one: str, other: str) -> str:
    return other if first == one else one


def _print(facts: dict[str, Any]) -> None:
    curves = facts["curves"]
    title = f"a layer of {facts['model']} on {facts['modules']} modules, emulated time and energy per token"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("tokens", justify="right", overflow="fold")
    for name in curves:
        table.add_column(escape(name), justify="right", overflow="fold")
    for row, size in enumerate(SIZES):
        points = [points[row] for points in curves.values()]
        cells = [
            f"{format_seconds(p['emu_s_per_token'])}, {format_joules(p['joules_per_token'])}" for p in points
        ]
        table.add_row(str(size), *cells)
    unknown = {name: points[-1]["energy_not_known"] for name, points in curves.items()}
    console = Console(soft_wrap=True)
    console.print(table)
    for of in facts["crossovers"]:
        console.print(
            f"{of['of']}: {of['less_before']} takes less up to about {of['about']:.0f} tokens, then "
            f"{of['less_after']} (between {of['after']} and {of['by']})",
            highlight=False,
            markup=False,
        )
    for of in facts["no_crossovers"]:
        one, other = of["between"]
        if of["less"] is None:
            says = f"{one} and {other} take the same at every size"
        else:
            says = f"{of['less']} takes less than {_other(of['less'], one, other)} at every size"
        console.print(f"{of['of']}: {says}", highlight=False, markup=False)
    for name, parts in unknown.items():
        if parts:
            listed = ", ".join(parts).replace("_", " ")
            console.print(f"{name}: energy of {listed} is not known and not counted", highlight=False)
    for name, fits in facts["whole_model_fits"].items():
        if fits is False:
            console.print(
                f"{name}: the weights of all layers do not fit {facts['modules']} modules; this is one layer",
                highlight=False,
                markup=False,
            )
