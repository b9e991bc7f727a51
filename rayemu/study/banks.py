"""`rayemu banks`: mappings of experts to a module's banks side by side, under a few ways of reading them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayemu.hardware import Hardware, HardwareError
from rayemu.hardware.banks import (
    MAPPINGS,
    Layout,
    Served,
    layout_of,
    locate,
    one_pass,
    passes,
    serve,
    token_rows,
)
from rayemu.hardware.quantities import write

EXPERTS, AT_WORK, TOKENS, TOP_K, LAYERS = 32, 16, 64, 2, 2  # the texts' layer and batch
EXPERT = 1 << 18  # bytes of an expert: hit rates do not depend on it
TOKEN = 16384  # bytes of a token's row: 8,192 values of FP16
UNIT = 1024  # bytes that the texts' interleaving deals at once
BATCHES = 10  # drawn, and averaged
TEXTS = {"the texts', one bank each": "group", "the texts', interleaved": "staggered"}


@dataclass(frozen=True)
class Line:
    """A mapping under one way of reading."""

    reading: str
    mapping: str
    hit_rate: float
    parallelism: float
    touched: float
    share: float


READINGS = {
    "pass": "one expert's weights, from first to last",
    "experts": f"{AT_WORK} of {EXPERTS} experts at once, who is next drawn",
    "batch": f"{LAYERS} layers, each with {TOKENS} tokens of top-{TOP_K} of {EXPERTS}: experts by their load",
    "tokens": f"{TOKENS} rows of tokens anywhere in memory, a batch after the other",
}


def study(hardware: Hardware, lookahead: int = 1, seed: int = 0) -> list[Line]:
    """Every mapping under every reading. Raises HardwareError where its banks' rows are not known or odd."""
    try:
        return _study(hardware, lookahead, seed)
    except HardwareError:
        raise
    except ValueError as error:
        raise HardwareError([f"{hardware.name}: module.banks.rows: {error}"]) from None


def _study(hardware: Hardware, lookahead: int, seed: int) -> list[Line]:
    spec = hardware.spec
    if spec.module.banks.rows is None:
        known = "text-pim, hbm2-pim"
        raise HardwareError(
            [f"{hardware.name}: module.banks.rows: is missing; give the rows' timing, or take one of {known}"]
        )
    timing, banks = spec.module.banks.rows, spec.module.banks.count
    if spec.module.banks.capacity < (needed := 2 * LAYERS * EXPERTS * EXPERT):
        held, least = write(spec.module.banks.capacity, "size"), write(needed, "size")
        raise HardwareError(
            [f"{hardware.name}: module.banks.capacity: {held} is too little to study; at least {least}"]
        )
    lines = []
    for reading in READINGS:
        for name, layout in _layouts(hardware):
            rng = np.random.default_rng(seed)  # the same draws for every mapping
            if reading == "tokens":
                layout = replace(layout, experts=_within(layout) // EXPERT + 1)
            found = [
                serve(*locate(layout, address), timing, banks, lookahead=lookahead)
                for address in _read(reading, layout, name in TEXTS, rng)
            ]
            lines.append(_mean(reading, name, found))
    return lines


def report(hardware: Hardware, lookahead: int, as_json: bool) -> None:
    """Print the study."""
    lines = study(hardware, lookahead)
    if as_json:
        data: dict[str, Any] = {"hardware": hardware.name, "lookahead": lookahead, "readings": READINGS}
        print(json.dumps(data | {"lines": [asdict(line) for line in lines]}, indent=1))
        return
    console = Console()
    for reading, what in READINGS.items():
        table = Table(box=SIMPLE_HEAD, title=escape(what), title_justify="left")
        table.add_column("mapping", style="cyan", no_wrap=True)
        for column in ("row hits", "banks at work", "banks touched", "of the bandwidth"):
            table.add_column(column, justify="right")
        for line in lines:
            if line.reading == reading:
                cells = (f"{line.hit_rate:.1%}", f"{line.parallelism:.1f}", f"{line.touched:.1f}")
                table.add_row(line.mapping, *cells, f"{line.share:.1%}")
        console.print(table)
    claims = "row hits from 45 to 78 % by interleaving, 12 of 16 banks at work (text 000, section 11.2.2)"
    console.print(f"The texts claim {claims}; docs/hardware-memory.md says when.", highlight=False)


def _layouts(hardware: Hardware) -> Iterator[tuple[str, Layout]]:
    """The mappings by name, the texts' own two last."""
    count = hardware.spec.module.banks.count
    pairs = max(count // 2, 1)
    rows = hardware.spec.module.banks.rows
    least = count * int(rows.burst) if rows is not None else 1
    wide = -(-TOKEN // least) * least  # bytes of a matrix row, in whole bursts for each bank
    for mapping in MAPPINGS:
        if mapping == "hashed" and count & (count - 1):
            continue
        layout = layout_of(hardware.spec, mapping, EXPERT, groups=pairs, experts=LAYERS * EXPERTS, pitch=wide)
        yield mapping, layout
    for name, mapping in TEXTS.items():
        groups, unit = (count, 0) if mapping == "group" else (pairs, UNIT)
        layout = layout_of(hardware.spec, mapping, EXPERT, groups=groups, experts=LAYERS * EXPERTS)
        yield name, replace(layout, unit=unit)


def _read(reading: str, layout: Layout, of_texts: bool, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Addresses of some batches [N]."""
    if reading == "pass":
        yield one_pass(layout, EXPERT)
        return
    for _ in range(BATCHES):
        if reading == "tokens":
            yield token_rows(layout, rng.integers(_within(layout) // TOKEN, size=TOKENS), TOKEN)
            continue
        work = np.zeros((LAYERS, EXPERTS), np.int64)  # bytes to read of each
        if reading == "experts":
            work[0, rng.choice(EXPERTS, AT_WORK, replace=False)] = EXPERT
        else:
            chosen = rng.permuted(np.tile(np.arange(EXPERTS), (LAYERS * TOKENS, 1)), axis=1)[:, :TOP_K]
            layer = np.repeat(np.arange(LAYERS), TOKENS * TOP_K)
            np.add.at(work, (layer, chosen.ravel()), 128 * layout.burst)
        sizes = np.zeros(LAYERS * EXPERTS, np.int64)
        layer, expert = np.nonzero(work)
        sizes[_region(layout, layer, expert, of_texts)] = work[layer, expert]
        yield passes(layout, sizes, rng)


def _region(layout: Layout, layer: np.ndarray, expert: np.ndarray, of_texts: bool) -> np.ndarray:
    """Where the weights of an expert of a layer are, counted in experts.

    The texts' map_expert_to_banks: bank 2 (e mod 8) + layer mod 2, for eight pairs of banks.
    """
    if not (of_texts and layout.mapping == "group"):
        return layer * EXPERTS + expert
    pairs = max(layout.groups // 2, 1)
    return expert // pairs * layout.groups + (expert % pairs * 2 + layer % 2) % layout.groups


def _within(layout: Layout) -> int:
    """Bytes that every mapping has room for: those of whole experts leave some at the end."""
    return layout.banks * layout.bank * 7 // 8


def _mean(reading: str, mapping: str, found: list[Served]) -> Line:
    figures = [(one.hit_rate, one.parallelism, one.touched, one.share) for one in found]
    return Line(reading, mapping, *(float(figure) for figure in np.mean(figures, axis=0)))
