"""`rayemu whatif`: a scenario on machines that nobody has yet, by number of modules.

Every time but `plan_wall_s` is emulated. docs/planning.md says what is planned, and what is left out.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayemu.alltoall import LEAST_ROWS, count_slices
from rayemu.hardware import Hardware, load_hardware
from rayemu.hardware.transfers import bandwidth_needed
from rayemu.model.model import Model, routers_of
from rayemu.pricing.choices import Drawn, chosen_by_model
from rayemu.pricing.draw import Choices, Plan, draw_graph, most_events
from rayemu.pricing.graph import DISPATCH, MESSAGE, EventGraph
from rayemu.pricing.memory import PricingError, refuse_overfull
from rayemu.pricing.price import price
from rayemu.pricing.recorded import held_by
from rayemu.pricing.schedule import schedule
from rayemu.protocol.config import ProtocolConfig
from rayemu.report.wording import count
from rayemu.scenario import Scenario, ScenarioError
from rayemu.scenario.sections import MOST_MODULES
from rayemu.streams.aim import Aimed, aim
from rayemu.study.price import UNPRICED_ARRIVALS
from rayemu.units import format_bytes, format_joules, format_rate, format_seconds

MOST_FLOPS, MOST_WEIGHTS = 3e10, 1 << 30  # up to which the model itself chooses
MOST_CHOICES = 1 << 21  # of all batches and layers, without --batches
MOST_EVENTS, MOST_PAIRS = 1 << 24, 1 << 22  # of a plan, 230 B each; of a layer's batches, 100 B each
_ALONE = ("faults=[]", "rebalance=null")  # what planning leaves out


def refuse_recorded_choices(scenario: Scenario) -> None:
    """Raise PricingError where choices are not made in one place for each row, top_k of them."""
    place = scenario.routing.place
    if place in ("hybrid", "distributed"):
        raise PricingError(
            f"routing.place: {place} cannot be planned; run the scenario and price the run, or plan with "
            "coordinator or modules (routing.place=modules)"
        )
    for layer, router in enumerate(routers_of(scenario.spec)):
        if router.scope == "batch" or router.varies:
            kind = scenario.spec.router_of(layer)[0]
            raise PricingError(
                f"routing.kind: {kind} (layer {layer}) cannot be planned: its choices depend on the "
                "batch, or vary in number; run the scenario and price the run, or plan with softmax_topk"
            )


@dataclass(frozen=True)
class Machines:
    """Which machines: numbers of modules, in nodes of so many, or in so many nodes; else the scenario's."""

    modules: tuple[int, ...]
    nodes: int | None = None
    modules_per_node: int | None = None


def whatif(
    source: str,
    hardware: Sequence[str],
    machines: Machines,
    tokens: int | None,
    batches: int | None,
    settings: list[str],
    allow_overfull: bool,
    as_json: bool,
    deadline: float | None = None,
) -> None:
    """Plan a scenario on each hardware and number of modules, and print the figures.

    With a `deadline` in seconds also the bandwidth that the fullest layer's dispatch needs to end in it.
    Raises PricingError or ScenarioError where not one of them can be.
    """
    hardwares = [load_hardware(name) for name in hardware]
    scenario = Scenario.load(source).with_overrides([*settings, *_ALONE])
    refuse_recorded_choices(scenario)
    given = {"run.batch_tokens": tokens, "run.batches": batches}
    scenario = scenario.with_overrides(f"{key}={value}" for key, value in given.items() if value is not None)
    if batches is None:
        scenario = scenario.with_overrides([f"run.batches={affordable_batches(scenario)}"])
    rows, refused = [], []
    once = None if isinstance(scenario.stream.build(), Aimed) else cache(lambda: choices_of(scenario))
    for modules in machines.modules:
        for one in hardwares:
            try:
                placed = on_modules(scenario, machines, modules)
                rows.append(planned(placed, one, allow_overfull, once, deadline))
            except (PricingError, ScenarioError) as error:
                refused.append((one.name, modules, error))
    if not rows:
        raise refused[0][2]
    for row in rows:
        least = next(first for first in rows if first["hardware"] == row["hardware"])
        each = [r["tokens_per_emu_s"] / r["modules"] for r in (row, least)]
        row["scaling_efficiency"] = each[0] / each[1]
    if as_json:
        told = [
            {"hardware": name, "modules": modules, "refused": " ".join(str(error).split())}
            for name, modules, error in refused
        ]
        print(json.dumps([*rows, *told], indent=1))
        return
    console = Console()
    _print(rows, scenario, console)
    for line in [*_notes(rows), *(f"{name}, {modules} modules: {error}" for name, modules, error in refused)]:
        console.print(escape(line), highlight=False, soft_wrap=True)


def parse_modules(text: str) -> tuple[int, ...]:
    """Read "8..4096" (doubling from the first), "8,16,32" or "64". ValueError for what is none of these."""
    number = r"\s*([0-9]{1,9})\s*"
    span = re.fullmatch(rf"{number}\.\.{number}", text)
    if span is None and re.fullmatch(rf"{number}(,{number})*", text) is None:
        raise ValueError(f"{text!r} is not allowed; write 8..4096, 8,16,32 or one number")
    found = [int(part) for part in (span.groups() if span else text.split(","))]
    if wrong := [n for n in found if not 1 <= n <= MOST_MODULES]:
        raise ValueError(f"{wrong[0]} is not allowed; allowed: 1 to {MOST_MODULES} modules")
    if span is None:
        return tuple(dict.fromkeys(found))
    low, high = found
    if low > high:
        raise ValueError(f"{text!r} is not allowed; a range goes upward: {high}..{low}")
    return tuple(low << step for step in range((high // low).bit_length()))


def on_modules(scenario: Scenario, machines: Machines, modules: int) -> Scenario:
    """Put a scenario on so many modules; nodes are as large as its own, or smaller where that are all.

    Raises ScenarioError where they do not make whole nodes, or the scenario cannot be on them.
    """
    if machines.nodes is not None:
        option, by, each = "--nodes", machines.nodes, modules // machines.nodes
    else:
        wanted = machines.modules_per_node or scenario.cluster.modules_per_node
        option, by = "--modules-per-node", wanted if machines.modules_per_node else min(wanted, modules)
        each = by
    if modules % by:
        raise ScenarioError(
            [f"{option} {by}: {modules} modules do not make whole nodes; allowed: divisors of {modules}"]
        )
    return scenario.with_overrides([f"cluster.nodes={modules // each}", f"cluster.modules_per_node={each}"])


def affordable_batches(scenario: Scenario) -> int:
    """The scenario's batches, or as many as have MOST_CHOICES choices in all layers, and one at least."""
    spec, run = scenario.spec, scenario.run
    choices = run.batch_tokens * spec.top_k * max(1, spec.moe_layers)
    return max(1, min(run.batches, MOST_CHOICES // choices))


def refuse_too_large(scenario: Scenario) -> None:
    """Raise PricingError for a plan that may have too many events, or choices of one layer."""
    spec, run, modules = scenario.spec, scenario.run, scenario.cluster.modules
    slices = count_slices(run.batch_tokens, modules, scenario.exchange.min_slice_rows or LEAST_ROWS)
    units = slices * min(scenario.exchange.micro_batches, run.batch_tokens)
    events = most_events(spec, run.batches, run.batch_tokens, units)
    at_once = min(run.in_flight, run.batches) * run.batch_tokens * spec.top_k
    for name, many, most in (("events", events, MOST_EVENTS), ("choices of a layer", at_once, MOST_PAIRS)):
        if many > most:
            raise PricingError(
                f"{run.batches} batches of {run.batch_tokens} tokens on {modules} modules may be {many} "
                f"{name}; allowed: up to {most}; take fewer --batches, --tokens or layers, or a larger "
                "exchange.min_slice_rows"
            )


def planned(
    scenario: Scenario,
    hardware: Hardware,
    allow_overfull: bool = False,
    choosing: Callable[[], tuple[Choices, str]] | None = None,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Plan a scenario as it stands on a hardware: the figures of `rayemu price`, and what planning says.

    `choosing` gives what `choices_of` would, where that is the same for several. Raises PricingError where
    modules cannot hold their experts, unless `allow_overfull`.
    """
    began = time.perf_counter()
    refuse_too_large(scenario)
    cluster, run, spec = scenario.cluster, scenario.run, scenario.spec
    memory = held_by(scenario, hardware)
    if not allow_overfull:
        refuse_overfull(memory, hardware)
    choices, how = choosing() if choosing is not None else choices_of(scenario)
    nodes = np.repeat(np.arange(cluster.nodes, dtype=np.int32), cluster.modules_per_node)
    config = ProtocolConfig.from_scenario(scenario)
    plan = Plan(spec, config, scenario.placed(), nodes, run.batch_tokens, run.batches, run.in_flight)
    graph = draw_graph(plan, choices)
    figures = price(graph, schedule(graph, hardware, spec), hardware, spec, run.batches * run.batch_tokens)
    took = time.perf_counter() - began
    messages = int(np.count_nonzero(graph.kind == MESSAGE))
    wanted = {} if deadline is None else {"bandwidth_needed": _bandwidth(graph, hardware, deadline)}
    return {
        **figures,
        **wanted,
        "arrivals": scenario.arrivals.kind,
        "choices": how,
        "events": len(graph),
        "messages": messages,
        "modules_without_experts": int(np.count_nonzero(memory.experts == 0)),
        "memory": {
            "needed_bytes": int(memory.total.max()),
            "expert_bytes": int(memory.experts.max()),
            "capacity_bytes": memory.capacity,
            "fits": memory.fits,
        },
        "plan_wall_s": took,
        "messages_per_wall_s": messages / took,
    }


def _bandwidth(graph: EventGraph, hardware: Hardware, deadline: float) -> dict[str, float] | str:
    """Bytes/s by link level with which the layer that dispatches most bytes does so in `deadline` seconds.

    Or why no bandwidth is enough. Of a layer all batches count, and what relays hand on as well.
    """
    sent = np.flatnonzero((graph.kind == MESSAGE) & (graph.role == DISPATCH))
    if not len(sent):
        return {}
    layer = int(np.bincount(graph.layer[sent], graph.bytes[sent]).argmax())
    sent = sent[graph.layer[sent] == layer]
    modules = len(graph.module_to_node)
    pair = graph.src[sent].astype(np.int64) * modules + graph.dst[sent]
    sizes = np.bincount(pair, graph.bytes[sent], modules * modules).reshape(modules, modules)
    try:
        return bandwidth_needed(hardware.spec, sizes, graph.module_to_node, deadline)
    except ValueError as error:
        return str(error)


def choices_of(scenario: Scenario) -> tuple[Choices, str]:
    """Who chooses the experts, and a word for it: the model itself where it is small, else chance.

    The model chooses for as many batches as MOST_FLOPS allows, which then come in turn. By chance, experts
    are as popular as the stream's law says of its tokens (zipf), as its trace says, or all alike.
    Raises PricingError where the stream cannot be aimed at the model.
    """
    spec, run, stream = scenario.spec, scenario.run, scenario.stream.build()
    chosen = min(run.batches, int(MOST_FLOPS // (spec.flops_per_token() * run.batch_tokens)))
    if chosen and spec.model_bytes() <= MOST_WEIGHTS:
        try:
            aimed = aim(stream, spec, scenario.placed(), run.seed)
        except ValueError as error:
            raise PricingError(str(error)) from None
        batches = aimed.batches(run.batch_tokens, spec.d_model, run.seed)
        found = chosen_by_model(Model(spec), islice(batches, chosen))
        how = "the model's own" if chosen == run.batches else f"the model's own of {chosen} batches, in turn"
        return lambda which, layer: np.concatenate([found[b % chosen][layer] for b in which]), how
    if told := getattr(stream, "shares", None):  # a stream that knows its experts' shares [W, E], by windows
        shares, every = told(), stream.every
        drawn = Drawn(
            spec, run.batch_tokens, lambda b: shares[b // every % len(shares)], run.seed, shuffled=False
        )
        return drawn, f"drawn by {stream.path}"
    alpha = getattr(stream, "alpha", 0.0)  # of streams whose tokens follow a Zipf law
    share = np.arange(1.0, spec.experts + 1) ** -alpha
    how = f"drawn, zipf {alpha:g}" if alpha else "drawn, all experts alike"
    return Drawn(spec, run.batch_tokens, lambda _: share, run.seed, shuffled=True), how


# -- what is shown ------------------------------------------------------------------------------------------
def _print(rows: list[dict[str, Any]], scenario: Scenario, console: Console) -> None:
    run, spec = scenario.run, scenario.spec
    console.print(
        f"{scenario.name}: {spec.name} at full width ({spec.layers} layers, {spec.experts} experts), "
        f"{run.batches} x {run.batch_tokens} tokens, {run.in_flight} in flight; "
        f"choices: {rows[0]['choices']}. "
        "A step is a batch through all layers, in emulated time.",
        markup=False,
        highlight=False,
    )
    several = len({row["hardware"] for row in rows}) > 1
    first = [*(["hardware"] if several else []), "modules"]
    figures = _table([*first, "nodes", "step", "tokens/s", "scaling", "per token", "busy", "empty", "memory"])
    path = _table([*first, *rows[0]["critical_path"]])
    for row in rows:
        step, memory = row["step_emu_s"], row["memory"]
        head = [*([escape(row["hardware"])] if several else []), str(row["modules"])]
        figures.add_row(
            *head,
            str(row["nodes"]),
            format_seconds(step),
            count(row["tokens_per_emu_s"]),
            f"{row['scaling_efficiency']:.1%}",
            format_joules(row["joules_per_token"]),
            f"{row['utilisation']['modules']['mean']:.1%}",
            str(row["modules_without_experts"]),
            format_bytes(memory["needed_bytes"]) + ("!" if memory["fits"] is False else ""),
        )
        parts = row["critical_path"].values()
        path.add_row(*head, *(f"{format_seconds(part)} {part / (step or 1):4.0%}" for part in parts))
    console.print(figures)
    console.print(path)


def _table(heads: list[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in heads:
        table.add_column(head, justify="right", overflow="fold")
    return table


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    """What a reader must know beside the figures."""
    notes = [
        "scaling: tokens/s of a module, over those of the first number of modules; busy: modules, on average",
        "queue: waiting for modules and links that serve others",
    ]
    if (arrivals := rows[0]["arrivals"]) != "closed":
        notes.append(UNPRICED_ARRIVALS.format(arrivals))
    for name in dict.fromkeys(row["hardware"] for row in rows):
        mine = [row for row in rows if row["hardware"] == name]
        if unknown := mine[0]["energy_not_known"]:
            notes.append(
                f"{name}: energy of {', '.join(unknown).replace('_', ' ')} is not known, not counted"
            )
        if any(row["memory"]["fits"] is False for row in mine):
            capacity = format_bytes(mine[0]["memory"]["capacity_bytes"])
            notes.append(f"{name}: DOES NOT FIT where memory has a !, a module has {capacity}")
    if any(row["modules_without_experts"] for row in rows):
        notes.append(
            "empty: modules without experts, since there are fewer copies than modules; they are homes only"
        )
    for row in rows:
        if needed := row.get("bandwidth_needed"):
            told = (
                needed
                if isinstance(needed, str)
                else ", ".join(f"{level} links {format_rate(rate)}" for level, rate in needed.items())
            )
            notes.append(f"{row['hardware']}, {row['modules']} modules, to dispatch a layer in time: {told}")
    seconds, messages = (sum(row[name] for row in rows) for name in ("plan_wall_s", "messages"))
    notes.append(f"{count(messages)} messages planned and priced in {format_seconds(seconds)} of wall time")
    return notes
