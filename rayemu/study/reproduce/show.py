"""`rayemu reproduce`: the texts' figures and ours, for people, as JSON and as a table of Markdown."""

from __future__ import annotations

import difflib
import itertools
import json
import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from rayemu.study.reproduce import AGREES, CONTRADICTS, DIFFERS, ROWS, TEXTS, VERDICTS, Row
from rayemu.study.reproduce.row import Input

_COLOURS = {AGREES: "green", DIFFERS: "yellow", CONTRADICTS: "red"}
_LONGEST = 60  # of what is asked for, when it is shown again


def unknown(only: str) -> str | None:
    """The line that says that there is no such text or row, and what there is; None where there is one."""
    ids = [row.id for row in ROWS]
    if only in TEXTS or only in ids:
        return None
    short = only[:_LONGEST]
    within = [name for name in ids if short and short in name]
    close = (within or difflib.get_close_matches(short, [*TEXTS, *ids], n=3, cutoff=0.5))[:3]
    meant = f"did you mean {', '.join(close)}? " if close else ""
    return f"--only {short!r} is no text or row; {meant}allowed: {', '.join(TEXTS)}, or a row's id"


def select(only: str | None, differs: bool) -> list[Row]:
    """The rows of one text, or one row; with `differs` without those that agree."""
    asked = [row for row in ROWS if only in (None, row.text, row.id)]
    return [row for row in asked if not (differs and row.verdict == AGREES)]


def report(rows: list[Row], as_json: bool = False, as_markdown: bool = False) -> None:
    """Print the rows and how many agree."""
    if as_json:
        print(json.dumps({"rows": [facts(row) for row in rows], "count": count(rows)}, indent=1))
    elif as_markdown:
        print(markdown(rows), end="")
    else:
        console = Console(highlight=False)
        console.print(Text("\n").join(lines(rows, console.width)), soft_wrap=True)


def count(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows have each verdict."""
    found = Counter(row.verdict for row in rows)
    return {verdict: found[verdict] for verdict in VERDICTS}


def facts(row: Row) -> dict[str, Any]:
    """A row as plain data; `ours` in the row's unit."""
    names = (
        "id",
        "text",
        "section",
        "what",
        "inputs",
        "formula",
        "theirs",
        "ours",
        "unit",
        "factor",
        "verdict",
    )
    return {name: getattr(row, name) for name in (*names, "reading", "why")}


def lines(rows: list[Row], width: int) -> Iterator[Text]:
    """The table for a terminal that is `width` columns wide; of a single row also how it was worked out."""
    # Widths of all rows, so that columns do not move with what is asked for.
    widths = [max(len(cell) for cell in column) for column in zip(*map(_cells, ROWS), strict=True)]
    for text, of_text in itertools.groupby(rows, lambda row: row.text):
        yield Text(f"Text {text}, {TEXTS[text]}", style="bold")
        yield Text(_line(("row", "text", "ours", "unit", "factor", "verdict"), widths), style="dim")
        for section, of_section in itertools.groupby(of_text, lambda row: row.section):
            yield Text(section, style="cyan")
            for row in of_section:
                yield Text(_line(_cells(row), widths), style=_COLOURS[row.verdict])
                for said in _said(row, alone=len(rows) == 1):
                    for line in textwrap.wrap(said, max(width - 2, 20)):
                        yield Text(f"  {line}")
        yield Text("")
    counts = ", ".join(f"{verdict} {number}" for verdict, number in count(rows).items())
    yield Text(f"rows {len(rows)}: {counts}")


def markdown(rows: Iterable[Row]) -> str:
    """A table for each text and section, as docs/reproduce.md has them."""
    out = []
    for text, of_text in itertools.groupby(rows, lambda row: row.text):
        out.append(f"\n### Text {text}, {TEXTS[text]}\n")
        out.append("| row | what | text | ours | factor | verdict |\n| --- | --- | --- | --- | --- | --- |")
        for section, of_section in itertools.groupby(of_text, lambda row: row.section):
            out.append(f"| **{section}** | | | | | |")
            for row in of_section:
                id_, theirs, ours, unit, factor, verdict = _cells(row)
                what, *notes = _said(row, alone=False)
                about = "<br>".join((what, *(f"*{note}*" for note in notes)))
                figures = " | ".join(f"{figure} {unit}".strip() for figure in (theirs, ours))
                out.append(f"| `{id_}` | {about} | {figures} | {factor} | {verdict} |")
    return "\n".join(out) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    return row.id, row.theirs, figure(row.ours), row.unit, factor(row.factor), row.verdict


def _line(cells: Iterable[str], widths: list[int]) -> str:
    aligned = zip(cells, "<>><><", widths, strict=True)
    return " ".join(f"{cell:{align}{width}}" for cell, align, width in aligned).rstrip()


def _said(row: Row, alone: bool) -> Iterator[str]:
    yield row.what
    if alone:
        yield f"from {', '.join(f'{name} = {_shown(value)}' for name, value in row.inputs.items())}"
        yield f"by {row.formula}, in SI units"
    if row.reading:
        yield f"read as: {row.reading}"
    if row.why:
        yield f"why: {row.why}"


def _shown(value: Input) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return value if isinstance(value, str) else f"{value:,}"


def figure(value: float) -> str:
    """Four digits that count, or all before the point, thousands apart: 1,295,690, 0.0005325, 3e-10."""
    power = math.floor(math.log10(abs(value))) if value else 0
    if not -5 < power < 7:
        return f"{value:.4g}"
    text = f"{value:,.{max(3 - power, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def factor(value: float) -> str:
    """Three digits that count, in seven columns at most."""
    if not 1e-3 <= abs(value) < 1e4:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
