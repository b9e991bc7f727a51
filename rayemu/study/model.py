"""`rayemu model`: a model's parameters, operations and bytes, what each module holds, and whether it fits.

Everything is counted at the model's full width. M modules.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from rayemu.model.accounting import (
    ATTENTION,
    Attention,
    activation_bytes,
    cache_bytes,
    flops_per_token,
    parameters,
)
from rayemu.model.checkpoint_whole import whole_checkpoint
from rayemu.model.presets import PRESETS
from rayemu.model.spec import ModelSpec
from rayemu.placement import PLACEMENTS, Placement, PlacementProblem, problem_of
from rayemu.report.fitting import fitted
from rayemu.scenario import Scenario
from rayemu.units import format_bytes, parse_bytes

PRECISIONS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
MOST_MODULES, MOST_TOKENS = 1 << 16, 1 << 40
MOST_EXPERTS = 1 << 22  # of all layers, ten times those of the largest models: there is a slot for each
MODULES, TOKENS = 8, 512  # where neither the command nor a scenario says
SPREAD = ("attention", "embeddings")  # over the modules in even parts; what is not routed is in every module

# What the chapter says of its hypothetical models: parameters of an expert, and in all (from FP16 bytes).
_STATED = {"16x110b": (110e9, 1.81e12), "64x156b": (156e9, 10.2e12)}
NOTES = {
    "gpt-oss-20b": "Every other layer looks back over 128 tokens only; the cache is counted as if none did.",
    "gpt-oss-120b": "Every other layer looks back over 128 tokens only; the cache is counted as if none did.",
    "llama-4-scout": "Of four layers three look back over 8192 tokens only; the cache counts them all.",
    "switch-c-2048": "An encoder and a decoder: the cache is counted for the attention of both.",
}


class ModelError(ValueError):
    """A question that has no answer: says which argument, and what is allowed."""


@dataclass(frozen=True, eq=False)
class Counted:
    """A model at full width, and how its experts are placed."""

    name: str
    source: str  # preset, checkpoint or scenario
    spec: ModelSpec
    attention: Attention | None
    problem: PlacementProblem
    place: Callable[[PlacementProblem], Placement]
    tokens: int = TOKENS
    notes: tuple[str, ...] = ()


def report(
    name: str, modules: int | None, memory: str | None, tokens: int | None, context: int, precision: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Print what a model takes. Raises ModelError, ScenarioError, CheckpointError."""
    if precision not in PRECISIONS:
        raise ModelError(f"--precision {precision} is not allowed; allowed: {', '.join(PRECISIONS)}")
    for option, value, most in (
        ("--modules", modules, MOST_MODULES),
        ("--tokens", tokens, MOST_TOKENS),
        ("--context", context, MOST_TOKENS),
    ):
        if value is not None and not 1 <= value <= most:
            raise ModelError(f"{option} {value} is not allowed; allowed: 1 to {most}")
    limit = None if memory is None else memory_of(memory)
    facts = account(find(name), modules, limit, tokens, context, precision)
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    console = Console()
    for shown in (_parts(facts), _dynamic(facts), _map(facts)):
        for table in fitted(console.width, *shown):
            console.print(table)
    for line in [*_verdict(facts), *facts["notes"]]:
        console.print(escape(line), highlight=False)


def memory_of(text: str) -> int:
    """Bytes of a module's memory. Raises ModelError; a bare number is refused, as it may mean GB or bytes."""
    try:
        if text.strip()[-1:].isdigit():
            raise ValueError("has no unit; write it like '64 GB'")
        size = parse_bytes(text)
        if not size:
            raise ValueError("is not allowed; allowed: above 0")
    except ValueError as error:
        raise ModelError(f"--memory {text} {error}") from None
    return size


def find(name: str) -> Counted:
    """A preset, a checkpoint's directory or a scenario. Raises ModelError, ScenarioError, CheckpointError."""
    if name in PRESETS:
        spec = PRESETS[name]
        return Counted(name, "preset", spec, ATTENTION[name], _one_each(spec), _linear, notes=_notes(name))
    path, packaged = Path(name).expanduser(), Scenario.packaged()
    if name and path.is_dir() and name not in packaged:
        spec, attention = whole_checkpoint(path)
        return Counted(spec.name, "checkpoint", spec, attention, _one_each(spec), _linear)
    if name == "-" or (name and path.exists()) or path.stem in packaged:
        return _of_scenario(Scenario.load(name))
    near = difflib.get_close_matches(name.lower(), [*PRESETS, *packaged], n=3, cutoff=0.5)
    meant = f", but {' or '.join(near)} is" if near else ""
    raise ModelError(
        f"{name} is not known{meant}; allowed: a scenario, a checkpoint's directory, {', '.join(PRESETS)}"
    )


def _of_scenario(scenario: Scenario) -> Counted:
    spec, given = scenario.spec.full(), scenario.model
    attention, notes = None, []
    if scenario.spec.scale > 1:
        notes.append(f"The scenario runs it at width/{scenario.spec.scale}; counted is the full width.")
    if given.checkpoint is not None:
        spec, attention = whole_checkpoint(given.checkpoint)
    elif given.preset is not None and spec.d_model == PRESETS[given.preset].d_model:
        attention, there = ATTENTION[given.preset], PRESETS[given.preset].layers
        notes += _notes(given.preset)
        if spec.layers != there:
            attention = dataclasses.replace(attention, blocks=0)
            notes.append(f"The scenario has {spec.layers} of its {there} layers.")
    else:
        notes.append(
            "Attention and embeddings are not counted: the scenario does not say what they are like."
        )
    problem = dataclasses.replace(scenario.placement_problem(), memory=None)
    under_way = scenario.run.batch_tokens * scenario.run.in_flight
    place = scenario.placement.build().place
    return Counted(scenario.name, "scenario", spec, attention, problem, place, under_way, tuple(notes))


def _one_each(spec: ModelSpec) -> PlacementProblem:
    if spec.layers * spec.experts > MOST_EXPERTS:
        raise ModelError(
            f"{spec.name}: {spec.layers} layers of {spec.experts} experts; allowed: {MOST_EXPERTS} in all"
        )
    copies = np.zeros((spec.layers, spec.experts), np.int64)
    copies[spec.dense_layers :] = 1
    return problem_of(copies, MODULES)


def _linear(problem: PlacementProblem) -> Placement:
    linear: Any = PLACEMENTS["linear"]()
    placed: Placement = linear.place(problem)
    return placed


def _notes(name: str) -> tuple[str, ...]:
    if name in _STATED:
        expert, total = _STATED[name]
        found = parameters(PRESETS[name], ATTENTION[name])
        each = found["experts"] / PRESETS[name].experts
        return (
            f"The text that this model is from contradicts itself: it states {_count(expert)} per expert and "
            f"{_count(total)} in all, and its own widths and layers give {_count(each)} and "
            f"{_count(found['total'])}.",
        )
    return (NOTES[name],) if name in NOTES else ()


def account(
    model: Counted, modules: int | None, memory: int | None, tokens: int | None, context: int, precision: str
) -> dict[str, Any]:
    """All figures as plain data; sizes in bytes. `memory` is a module's. Raises ModelError."""
    spec, attention, bits = model.spec, model.attention, PRECISIONS[precision]
    tokens = model.tokens if tokens is None else tokens
    kept = _kept_bits(precision)
    parts = parameters(spec, attention)
    one = spec.expert_parameters()
    facts: dict[str, Any] = {
        "model": model.name,
        "source": model.source,
        "dimensions": {
            key: getattr(spec, key)
            for key in ("d_model", "d_ff", "experts", "top_k", "layers", "dense_layers", "shared_d_ff")
        },
        "parameters": {**parts, "expert": one * spec.moe_layers, "expert_in_a_layer": one},
        "flops_per_token": flops_per_token(spec, attention, context),
        "bytes": {
            name: {part: _bytes(count, width) for part, count in parts.items()}
            for name, width in PRECISIONS.items()
        },
        "precision": precision,
        "tokens": tokens,
        "context": context,
        "static_bytes": _bytes(parts["total"], bits),
        "cache_bytes": cache_bytes(spec, attention, context, kept) if attention else 0,
        "activation_bytes": activation_bytes(spec, tokens, kept),
        "notes": list(model.notes),
    }
    facts["dynamic_bytes"] = facts["cache_bytes"] + facts["activation_bytes"]["total"]
    facts["modules"] = _modules(model, facts, modules, memory)
    return facts


def _modules(model: Counted, facts: dict[str, Any], wanted: int | None, memory: int | None) -> dict[str, Any]:
    """What each module holds by the placement, and with `memory` whether it fits and what would."""
    problem, spec = model.problem, model.spec
    if wanted is not None and wanted != problem.modules:
        nodes = min(problem.nodes, wanted)
        dealt = (np.arange(wanted) * nodes // wanted).astype(np.int32)
        problem = dataclasses.replace(problem, module_to_node=dealt)
    if (most := int(problem.copies.max())) > problem.modules:
        raise ModelError(
            f"--modules {problem.modules} is not allowed; allowed: {most} and above, the copies of an expert"
        )
    try:
        placed = model.place(problem)
    except (ValueError, ImportError) as error:
        raise ModelError(f"--modules {problem.modules}: {error}") from None
    count = problem.modules
    held = np.bincount(placed.module, minlength=count)  # [M] expert copies of all layers
    expert = _bytes(spec.expert_parameters(), PRECISIONS[facts["precision"]])
    each = _beside(model, facts, count)
    beside = sum(each.values())
    need = [number * expert + beside for number in held.tolist()]  # [M], of any size
    found: dict[str, Any] = {
        "count": count,
        "expert_bytes": expert,
        "experts": held.tolist(),
        "beside_experts_bytes": each,
        "total_bytes": need,
    }
    if memory is not None:
        found |= {"memory_bytes": memory, "fits": max(need) <= memory}
        found["modules_needed"] = _needed(model, facts, expert, len(placed), memory)
    return found


def _beside(model: Counted, facts: dict[str, Any], modules: int) -> dict[str, int]:
    """Bytes that a module holds beside experts, by part, with even shares of what is spread."""
    weights = facts["bytes"][facts["precision"]]
    whole = {key: weights[key] for key in ("router", "shared", "dense", "norms")}
    spread = {key: weights[key] for key in SPREAD if key in weights} | {"cache": facts["cache_bytes"]}
    rows = -(-facts["tokens"] // modules)
    buffers = activation_bytes(model.spec, rows, _kept_bits(facts["precision"]))["total"]
    return {**whole, **{key: -(-size // modules) for key, size in spread.items()}, "buffers": buffers}


def _needed(model: Counted, facts: dict[str, Any], expert: int, slots: int, memory: int) -> int | None:
    """The fewest modules on which the model fits, its expert copies dealt evenly over all layers, or None.

    More modules never hold more each, so it is found by halving.
    """

    copies = int(model.problem.copies.max())

    def fits(modules: int) -> bool:
        if modules < copies:
            return False
        return -(-slots // modules) * expert + sum(_beside(model, facts, modules).values()) <= memory

    low, high = 0, MOST_MODULES  # low does not fit
    if not fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _kept_bits(precision: str) -> int:
    """Bits of activations and cache, which stay wider than INT8 and INT4 weights."""
    return max(PRECISIONS[precision], 16)


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:.0f}"


Shown = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, heads and rows of a table


def _parts(facts: dict[str, Any]) -> Shown:
    dim, counts, flops = facts["dimensions"], facts["parameters"], facts["flops_per_token"]
    title = "{} (D={d_model} F={d_ff} E={experts} K={top_k} L={layers})".format(facts["model"], **dim)
    rows = []
    operations = {**flops, "embeddings": flops.get("head", 0)}
    for part in [*facts["bytes"]["fp32"], "expert", "expert_in_a_layer"]:
        sizes = [format_bytes(_bytes(counts[part], bits)) for bits in PRECISIONS.values()]
        done = _count(operations[part]) if operations.get(part) else "-"
        name = part.replace("_without_", ", no_").replace("_", " ")
        rows.append((name, _count(counts[part]), *sizes, done))
    if "context" in flops:
        rows.append((f"context of {facts['context']} tokens", *["-"] * 5, _count(flops["context"])))
    return title, ("part", "para-\nmeters", *map(str.upper, PRECISIONS), "FLOPs\nper token"), rows


def _dynamic(facts: dict[str, Any]) -> Shown:
    rows: list[tuple[str, ...]] = [
        (f"key and value cache, {facts['context']} tokens", format_bytes(facts["cache_bytes"]))
    ]
    for part, size in facts["activation_bytes"].items():
        rows.append((f"activations of {facts['tokens']} tokens, {part}", format_bytes(size)))
    rows.append(("dynamic in all", format_bytes(facts["dynamic_bytes"])))
    rows.append((f"static, {facts['precision']}", format_bytes(facts["static_bytes"])))
    return "while it runs", ("memory", "bytes"), rows


def _map(facts: dict[str, Any]) -> Shown:
    found = facts["modules"]
    beside = [format_bytes(size) for size in found["beside_experts_bytes"].values()]
    held = np.array(found["experts"])
    rows = []
    for number in np.unique(held)[::-1].tolist():  # modules that hold as many are alike
        which = np.flatnonzero(held == number)
        total = found["total_bytes"][which[0]]
        name = f"{len(which)}, the first is {which[0]}"
        if which[-1] - which[0] == len(which) - 1:
            name = f"{which[0]} to {which[-1]}" if len(which) > 1 else f"{which[0]}"
        size = format_bytes(number * found["expert_bytes"])
        rows.append((name, str(number), size, *beside, format_bytes(total)))
    title = f"each of {found['count']} modules, {facts['precision']}"
    return title, ("modules", "experts", "bytes", *found["beside_experts_bytes"], "total"), rows


def _verdict(facts: dict[str, Any]) -> list[str]:
    found = facts["modules"]
    lines = [
        "Routers, norms, shared experts and dense layers are in every module; attention, embeddings and "
        "cache in even parts; activations and cache have at least 16 bits, INT8 and INT4 no scales."
    ]
    if "fits" not in found:
        return lines
    memory, needed = format_bytes(found["memory_bytes"]), found["modules_needed"]
    most = max(found["total_bytes"])
    verdict = "fits" if found["fits"] else "does not fit"
    share = f"{format_bytes(most)} of {memory}, {most / found['memory_bytes']:.0%}"
    lines.append(f"So placed it {verdict}: {share}, in the fullest module.")
    if needed is None:
        whole = sum(found["beside_experts_bytes"][key] for key in ("router", "shared", "dense", "norms"))
        one = format_bytes(found["expert_bytes"])
        lines.append(
            f"No number of modules up to {MOST_MODULES} is enough: an expert of a layer takes {one}, and "
            f"what every module holds {format_bytes(whole)}."
        )
    else:
        lines.append(f"With experts dealt evenly over all layers it takes {needed} modules.")
    return lines
