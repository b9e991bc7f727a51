"""`rayemu router`: where and at which precision routing is computed, priced, beside the texts' figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayemu.hardware import Hardware, HardwareError
from rayemu.hardware.quantities import write
from rayemu.hardware.router import (
    PRECISIONS,
    Work,
    accelerator,
    grouped_cycles,
    pair_winner_cycles,
    pair_winners_right,
    places,
    saved_by_choices,
    serial_cycles,
    tree_comparators,
    tree_cycles,
)
from rayemu.model.presets import preset

# Text 000, section 11.3.1, which does not say of how many tokens; section 11.3.3; section 11.3.2; 11.3.6.
TEXT_SECONDS = {"coordinator, rows": 1e-4, "modules, gate in parts": 3e-4, "hybrid": 2e-4}
TEXT_SAVED = {"fp32": 0.875}
TEXT_TREE = {"tree": 4, "serial": 32}
TEXT_SILICON = {"latency_emu_s": 32e-9, "tokens_per_emu_s": 1e6, "tokens_per_emu_s_per_mm2": 1.25e6}
TEXT_EXPERTS, TEXT_TOP_K, GROUPS = 32, 2, 4


def work_of(
    model: str, tokens: int, modules: int, d_model: int | None, experts: int | None, top_k: int | None
) -> Work:
    """The work of a preset at its full width, or of the dimensions given instead. Raises HardwareError."""
    try:
        spec = preset(model).full()
        wide, many, chosen = d_model or spec.d_model, experts or spec.experts, top_k or spec.top_k
        return Work(tokens, wide, many, chosen, modules)
    except ValueError as error:
        raise HardwareError([f"router: {error}"]) from None


def study(hardware: Hardware, work: Work) -> dict[str, Any]:
    """All figures as plain data."""
    return {
        "hardware": hardware.name,
        "work": asdict(work),
        "places": [
            {
                "place": one.place,
                "precision": one.precision,
                "link_bytes": one.link_bytes,
                "emu_s": one.seconds,
                "joules": one.joules,
                "text_s": TEXT_SECONDS.get(one.place),
            }
            for one in places(hardware, work)
        ],
        "choices_save": {
            name: {
                "share": saved_by_choices(work.experts, work.top_k, bits),
                "text_experts_share": saved_by_choices(TEXT_EXPERTS, TEXT_TOP_K, bits),
                "text": TEXT_SAVED.get(name),
            }
            for name, bits in PRECISIONS.items()
        },
        "top_k_cycles": {
            "model": _trees(work.experts, work.top_k),
            "text_experts": _trees(TEXT_EXPERTS, TEXT_TOP_K),
            "text": TEXT_TREE,
        },
        "silicon": _silicon(hardware, work),
    }


def report(hardware: Hardware, work: Work, as_json: bool) -> None:
    """Print the study."""
    facts = study(hardware, work)
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    console = Console()
    console.print(
        f"routing {work.tokens} tokens (D={work.d_model} E={work.experts} K={work.top_k}) on {work.modules} "
        f"modules of {escape(hardware.name)}; sending rows on to experts comes after it",
        highlight=False,
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("computed by", style="cyan", overflow="fold")
    for column in ("precision", "on links", "emulated", "energy", "the text"):
        table.add_column(column, justify="right", overflow="fold")
    before = ""
    for one in facts["places"]:
        first = one["place"] != before
        if first and before:
            table.add_section()
        before = one["place"]
        energy = "-" if one["joules"] is None else f"{one['joules'] * 1e6:.4g} uJ"
        text = write(one["text_s"], "time") if first and one["text_s"] else ""
        size = write(one["link_bytes"], "size") if one["link_bytes"] else "0"
        table.add_row(
            one["place"] if first else "", one["precision"], size, write(one["emu_s"], "time"), energy, text
        )
    console.print(table)
    for line in _lines(facts):
        console.print(line, highlight=False)


def _lines(facts: dict[str, Any]) -> list[str]:
    work, trees, text = facts["work"], facts["top_k_cycles"]["model"], facts["top_k_cycles"]["text_experts"]
    saved = ", ".join(f"{name} {one['share']:.1%}" for name, one in facts["choices_save"].items())
    lines = [
        f"choices instead of all scores save {saved} of the bytes; "
        f"{TEXT_TOP_K} of {TEXT_EXPERTS} at fp32 save "
        f"{facts['choices_save']['fp32']['text_experts_share']:.1%} (text: 87.5 %)",
        f"cycles for the best {work['top_k']} of {work['experts']}: {trees['tree']} by a tree of "
        f"{trees['comparators']} comparators, {trees['serial']} one by one, {trees['grouped']} in "
        f"{GROUPS} groups",
        f"for the text's {TEXT_TOP_K} of {TEXT_EXPERTS}: {text['tree']}, {text['serial']} and "
        f"{text['grouped']}; its tree of pair winners takes {text['pair_winners']} and loses the "
        f"second best in {text['pair_winners_lose']:.1%} of cases (text: 4 against 32)",
    ]
    if (silicon := facts["silicon"]) is not None:
        rate = silicon["tokens_per_emu_s"]
        line = (
            f"the router's silicon: {silicon['score_cycles']} cycles of scores and "
            f"{silicon['select_cycles']} to select, {write(silicon['latency_emu_s'], 'time')} for a token, "
            f"{rate / 1e6:.3g} M tokens/s"
        )
        if silicon["joules_per_token"] is not None:
            line += f", {silicon['joules_per_token'] * 1e9:.3g} nJ a token"
        if silicon["tokens_per_emu_s_per_mm2"] is not None:
            line += f", {silicon['tokens_per_emu_s_per_mm2'] / 1e6:.3g} M tokens/s/mm2"
        lines.append(f"{line} (text, at D=8192 E=32: 32 cycles, 1 M tokens/s, 1.25 M tokens/s/mm2)")
    return lines


def _trees(experts: int, top_k: int) -> dict[str, Any]:
    left = 2 * top_k  # the text's tree compares the last 2 K in full
    return {
        "tree": tree_cycles(experts, top_k),
        "comparators": tree_comparators(experts, top_k),
        "serial": serial_cycles(experts),
        "grouped": grouped_cycles(experts, top_k, min(GROUPS, experts)),
        "pair_winners": pair_winner_cycles(experts, top_k),
        "pair_winners_lose": None if experts % left else 1 - pair_winners_right(experts, top_k, left),
    }


def _silicon(hardware: Hardware, work: Work) -> dict[str, Any] | None:
    router = hardware.spec.router
    if router is None:
        return None
    found = accelerator(router, work.d_model, work.experts, work.top_k)
    area = None if found.rate_per_area is None else found.rate_per_area * 1e-6
    return {
        "score_cycles": found.score_cycles,
        "select_cycles": found.select_cycles,
        "latency_emu_s": found.latency,
        "tokens_per_emu_s": found.rate,
        "joules_per_token": found.joules,
        "tokens_per_emu_s_per_mm2": area,
        "area_mm2": None if router.area is None else router.area * 1e6,
        "power_w": router.power,
        "text": TEXT_SILICON,
    }
