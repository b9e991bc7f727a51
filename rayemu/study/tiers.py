"""`rayemu tiers`: an expert cache over a hardware's tiers on a routing trace, policies side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayemu.hardware import Hardware, HardwareError
from rayemu.hardware.quantities import parse, write
from rayemu.hardware.tiers import (
    POLICIES,
    Tiered,
    Uses,
    held_by,
    prefetched,
    serve,
    uses_of_choices,
    uses_of_loads,
)
from rayemu.model.model import Model
from rayemu.model.presets import preset
from rayemu.pricing.choices import chosen_by_model
from rayemu.report.fitting import fitted
from rayemu.scenario import Scenario
from rayemu.streams.aim import aim
from rayemu.study.prefetch import prefetching
from rayemu.traces import Trace, TraceError, from_choices, read_trace

PREFETCH = 3  # experts that the texts load in advance (text 000, section 11.2.3: about 65 % of them right)


def uses_of(trace: Trace, batch: int) -> Uses:
    """Uses of a trace: in steps of `batch` tokens where it has the tokens' choices, else in its windows."""
    if trace.choices is not None:
        return uses_of_choices(trace.choices, trace.experts, batch)
    return uses_of_loads(trace.loads)


def trace_of(source: Path, tokens: int | None, known: dict[str, Any]) -> Trace:
    """A trace from a file, or from the stream of a scenario, routed by its own model in this process.

    Of a scenario its first `tokens` tokens, else a batch of it. Raises TraceError and ScenarioError.
    """
    if source.suffix not in (".yaml", ".yml") and (source.exists() or str(source) not in Scenario.packaged()):
        return read_trace(source, tokens=tokens, **known)
    scenario = Scenario.load(source)
    spec, rows = scenario.spec, tokens or scenario.run.batch_tokens
    stream = aim(scenario.stream.build(), spec, scenario.placed(), scenario.run.seed)
    (layers,) = chosen_by_model(Model(spec), islice(stream.batches(rows, spec.d_model, scenario.run.seed), 1))
    choices = np.stack(layers[spec.dense_layers :], axis=1)  # [T, L, K]
    return from_choices(choices, np.array([0, rows]), spec.experts, source=scenario.name)


def expert_size(model: str | None, size: str | None, bits: int) -> float:
    """Bytes of an expert: as given, or of a preset at its full width. Raises HardwareError."""
    if (model is None) == (size is None):
        raise HardwareError(["tiers: give --model or --expert-bytes, one of them, for the size of an expert"])
    try:
        if size is not None:
            return parse(size, "size")
        return float(preset(str(model)).full().expert_bytes(bits))
    except ValueError as error:
        name = "--expert-bytes" if size is not None else "--model"
        raise HardwareError([f"{name}: {error}"]) from None


def capacities_of(hardware: Hardware, expert_bytes: float, given: Sequence[str]) -> dict[str, int]:
    """How many experts each tier holds; `given` are changes such as "module=16" or "sram=1 GB"."""
    tiers = hardware.spec.tiers
    if not tiers:
        raise HardwareError(
            [f"{hardware.name}: tiers: are missing; give them in its file, or take one with them: text-pim"]
        )
    held = dict(zip(tiers, held_by(tiers, expert_bytes), strict=True))
    for change in given:
        name, _, value = change.partition("=")
        if name not in held:
            raise HardwareError([f"--capacity: {change!r} is not allowed; tiers are: {', '.join(held)}"])
        if value.isdecimal():
            held[name] = int(value)
            continue
        try:
            held[name] = int(parse(value, "size") // expert_bytes)
        except ValueError as error:
            raise HardwareError([f"--capacity: {name}: {error}, or a number of experts"]) from None
    return held


def study(
    uses: Uses, hardware: Hardware, expert_bytes: float, held: Mapping[str, int], policies: Sequence[str]
) -> list[Tiered]:
    """Every policy on the same uses. Raises HardwareError where the tiers do not hold what is used."""
    assert hardware.spec.tiers is not None  # capacities_of has looked
    if unknown := sorted(set(policies) - set(POLICIES)):
        allowed = ", ".join(POLICIES)
        raise HardwareError([f"--policy: {unknown[0]!r} is not allowed; allowed: {allowed}"])
    try:
        return [
            serve(uses, hardware.spec.tiers, expert_bytes, policy, tuple(held.values()))
            for policy in policies
        ]
    except ValueError as error:
        raise HardwareError([f"{hardware.name}: {error}"]) from None


def report(
    file: Path,
    hardware: Hardware,
    expert_bytes: float,
    capacity: Sequence[str],
    policies: Sequence[str],
    batch: int,
    as_json: bool,
    tokens: int | None,
    known: dict[str, Any],
    prefetch: int | None = None,
    confidence: float = 0.0,
) -> None:
    """Print the study. Raises TraceError and HardwareError."""
    held = capacities_of(hardware, expert_bytes, capacity)
    trace = trace_of(file, tokens, known)
    uses = uses_of(trace, batch)
    if not len(uses.item):
        raise TraceError(f"{file}: no expert is used in it")
    found = study(uses, hardware, expert_bytes, held, policies or POLICIES)
    ahead = []
    if prefetch is not None:
        assert hardware.spec.tiers is not None  # capacities_of has looked
        if trace.choices is None or batch != 1:
            raise TraceError(
                f"--prefetch: {file}: {'--batch' if trace.choices is not None else 'the trace'} "
                f"{'is not 1' if trace.choices is not None else 'has loads only'}; "
                "prefetching needs the choices of single tokens"
            )
        try:
            ahead = prefetching(
                trace.choices, trace.experts, hardware.spec.tiers, expert_bytes, held, prefetch, confidence
            )
        except ValueError as error:
            raise HardwareError([str(error)]) from None
    guessed, chance = prefetched(uses, PREFETCH), min(PREFETCH / uses.experts, 1.0)
    facts = {
        "hardware": hardware.name,
        "steps": int(uses.step.max()) + 1,
        "uses": len(uses.item),
        "distinct_experts": uses.distinct,
        "expert_bytes": expert_bytes,
        "held_experts": held,
        "prefetch": {"experts": PREFETCH, "hit_rate": guessed, "by_chance": chance},
        "policies": [
            {
                "policy": one.policy,
                "shares": dict(zip(held, one.shares, strict=True)),
                "use_emu_s": one.seconds,
                "use_joules": one.joules,
            }
            for one in found
        ],
    }
    if ahead:
        facts["prefetching"] = [asdict(line) for line in ahead]
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    console = Console()
    steps = f"steps of {batch} tokens" if trace.choices is not None else "windows"
    size = write(expert_bytes, "size")
    console.print(
        f"{facts['steps']} {steps}, {len(uses.item)} uses of {uses.distinct} experts of {size} "
        f"(layers counted apart) on {escape(hardware.name)}",
        highlight=False,
    )
    table = Table(box=SIMPLE_HEAD)
    table.add_column("policy", style="cyan", overflow="fold")
    for name, count in held.items():
        table.add_column(f"{name}\nof {count}", justify="right")
    table.add_column("a use\n(emulated)", justify="right", overflow="fold")
    table.add_column("\nenergy", justify="right", overflow="fold")
    for one in found:
        energy = "-" if one.joules is None else f"{one.joules:.3g} J"
        shares = (f"{share:.1%}" for share in one.shares)
        table.add_row(one.policy, *shares, write(one.seconds, "time"), energy)
    console.print("share of the uses by the tier that has the expert, and of how many it holds", style="dim")
    console.print(table)
    console.print(
        f"the {PREFETCH} experts likeliest to follow hold {guessed:.1%} of the next step's (by chance "
        f"{chance:.1%}; text 000, section 11.2.3: about 65 %)",
        highlight=False,
    )
    if not ahead:
        return
    rows = [
        (
            line.predictor,
            f"{line.hit_rate:.1%}",
            f"{line.precision:.1%}",
            write(line.use_emu_s, "time"),
            f"{line.wasted:.2f}",
        )
        for line in ahead
    ]
    heads = ("predicted by", "found", "right", "a use\n(emulated)", "wasted\nper use")
    title = f"{prefetch} experts fetched for each token and layer, where confidence is {confidence:g} or more"
    for part in fitted(console.width, title, heads, rows, style="cyan"):
        console.print(part)
    console.print(
        "share of the uses that were foreseen, and of the fetches that were used; as if fetches end in time",
        style="dim",
    )
