"""Tables of figures that fit the terminal: never with a figure cut, which at "168 G…" could be anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.align import VerticalAlignMethod
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

ROOM = 30  # columns that sentences take at least


def fitted(
    width: int,
    title: str | None,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    style: str = "",
    sentences: tuple[str, Sequence[str]] | None = None,
) -> Iterator[Table]:
    """The table in `width` columns: one, or where it is too wide several, each with the first column.

    The first column is text (in `style`), the others figures. Heads may have several lines; only cells of
    the first column are ever folded, where it leaves no room for a second. `sentences`, a head and a cell for
    each row, are a last column where there is room for them.
    """
    cells = [heads, *rows]
    widths = [
        max(cell_len(line) for row in cells for line in row[at].split("\n")) for at in range(len(heads))
    ]
    gap = 2 if _taken(widths, 2) <= width else 1
    room = sentences is not None and _taken(widths, gap) + ROOM <= width
    first = 1
    while first < len(heads):
        last = first + 1
        while last < len(heads) and _taken([widths[0], *widths[first : last + 1]], gap) <= width:
            last += 1
        shown = Table(
            title=escape(title) if title is not None and first == 1 else None,
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, gap - 1, 0, 0),
        )
        at: VerticalAlignMethod = "top" if room else "bottom"
        shown.add_column(escape(heads[0]), overflow="fold", vertical=at, style=style)
        for head in heads[first:last]:
            shown.add_column(escape(head), justify="right", no_wrap=True, vertical=at)
        if sentences is not None and room:
            shown.add_column(escape(sentences[0]), overflow="fold")
        for number, row in enumerate(rows):
            said = [sentences[1][number]] if sentences is not None and room else []
            shown.add_row(*map(escape, (row[0], *row[first:last], *said)))
        yield shown
        first = last


def _taken(widths: Sequence[int], gap: int) -> int:
    return sum(widths) + gap * len(widths) + 1
