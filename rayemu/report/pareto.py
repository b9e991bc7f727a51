"""What routers bring against what they cost, as one HTML page that loads nothing: needs bokeh.

Readable in black and white: the shape of a point says whose choice it is, a row's or a batch's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from typing import Any

import numpy as np

WIDTH, HEIGHT = 560, 520  # of a panel's frame, pixels
LETTER, LINE, GAP = 5.7, 13, 9  # of labels: a letter's width, a line's height, how far from the point
NEAR = 5  # pixels between points that share a label
SCOPES = {  # in the order of drawing: where both lie in one place, the circle is in the square
    "batch": {"marker": "square", "fill_color": "white", "line_color": "#222", "size": 12, "line_width": 1.5},
    "row": {"marker": "circle", "fill_color": "#222", "line_color": "#222", "size": 6},
}
PANELS = (
    ("remote", "remote share (% of choices whose expert is not on the token's home module)"),
    ("balance", "busiest expert's load (times the mean expert's)"),
)


@dataclass(frozen=True)
class Point:
    """A router: its place, in which panels nothing beats it, and the row of the table that it stands for."""

    name: str
    scope: str
    error: float  # relative
    remote: float  # per cent
    balance: float
    best: tuple[str, ...]
    row: Mapping[str, str]


def can_be_drawn() -> str:
    """Why no page can be made here; empty where one can."""
    try:
        found = find_spec("bokeh") is not None
    except ValueError:  # of a module that is None on purpose
        found = False
    return "" if found else "a plot needs bokeh, which is not installed: pip install 'rayemu[plots]'"


def page(points: Sequence[Point], title: str, notes: Iterable[str] = ()) -> str:
    """The whole page: a panel for each cost, output error upwards; `notes` are lines below."""
    from bokeh.embed import file_html
    from bokeh.layouts import column, row
    from bokeh.models import Div
    from bokeh.resources import INLINE

    said = "".join(f"<br>{escape(note)}" for note in notes)
    below = (
        "Filled circles: a row's choice depends on that row alone; open squares: on its whole batch. Dashed: "
        f"the routers that no other beats in both. Point at one for its row of the table.{said}"
    )
    parts = [
        Div(text=f"<b>{escape(title)}</b>"),
        row(*(_panel(points, cost, label) for cost, label in PANELS)),
        Div(text=below, width=2 * WIDTH),
    ]
    html: str = file_html(column(*parts), INLINE, title)
    return html


def _panel(points: Sequence[Point], cost: str, label: str) -> Any:
    from bokeh.models import HoverTool
    from bokeh.plotting import figure

    xs, ys = [getattr(point, cost) for point in points], [point.error for point in points]
    x_range, y_range = _range(xs), _range(ys)
    plot = figure(frame_width=WIDTH, frame_height=HEIGHT, x_range=x_range, y_range=y_range, tools="")
    plot.toolbar_location = None
    plot.xaxis.axis_label = label
    plot.yaxis.axis_label = "output error (relative, Frobenius norm, whole stack)"
    best = sorted({(x, y) for x, y, point in zip(xs, ys, points, strict=True) if cost in point.best})
    if best:
        plot.step(
            [x for x, _ in best],
            [y for _, y in best],
            mode="after",
            line_color="#222",
            line_dash="dashed",
            name="best",
        )
    keys = list(points[0].row) if points else []
    tooltip = ", ".join(f"{key.replace('_', ' ')} @{{{key}}}" for key in keys)
    drawn = []
    for scope, looks in SCOPES.items():
        mine = [point for point in points if point.scope == scope]
        data: dict[str, list[Any]] = {key: [point.row[key] for point in mine] for key in keys}
        data |= {"name": [point.name for point in mine], "x": [getattr(point, cost) for point in mine]}
        data["y"] = [point.error for point in mine]
        drawn.append(plot.scatter("x", "y", source=data, legend_label=f"scope {scope}", name=scope, **looks))
    width = "max-width: 420px"
    tip = f'<div style="{width}"><b>@name</b>: {tooltip}</div>'
    plot.add_tools(HoverTool(renderers=drawn, tooltips=tip))
    plot.legend.location = "top_right"
    pixels = [
        (
            (x - x_range[0]) / (x_range[1] - x_range[0]) * WIDTH,
            (y - y_range[0]) / (y_range[1] - y_range[0]) * HEIGHT,
        )
        for x, y in zip(xs, ys, strict=True)
    ]
    labels: dict[str, list[Any]] = {key: [] for key in ("x", "y", "text", "right", "up", "to_x", "to_y")}
    names = [point.name for point in points]
    for some, text, (right, up), (to_right, to_up) in placed(names, pixels):
        x, y = xs[some[0]], ys[some[0]]
        ends = (
            x + to_right * (x_range[1] - x_range[0]) / WIDTH,
            y + to_up * (y_range[1] - y_range[0]) / HEIGHT,
        )
        found = x, y, text, right, -up, *ends  # a text's offset counts downwards
        for column, value in zip(labels.values(), found, strict=True):
            column.append(value)
    plot.segment("x", "y", "to_x", "to_y", source=labels, line_color="#888")
    plot.text(
        "x", "y", "text", source=labels, x_offset="right", y_offset="up", text_font_size="11px",
        text_baseline="middle", name="labels",
    )  # fmt: skip
    return plot


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A little more than the values take."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.08 * (high - low) or 0.08 * abs(high) or 1.0
    return low - margin, high + margin


def placed(
    names: Sequence[str], pixels: Sequence[tuple[float, float]]
) -> Iterator[tuple[list[int], str, tuple[float, float], tuple[float, float]]]:
    """Where labels stand, so that none covers another or a point: of which points, the text, and two offsets.

    Points that lie together have one label. Offsets, in pixels to the right and up from the first of the
    points, are those of the middle of its left edge, and of where it is nearest to the point. A label without
    a free place stands to the right.
    """
    groups: list[list[int]] = []
    for at, (x, y) in enumerate(pixels):
        for some in groups:
            if abs(pixels[some[0]][0] - x) < NEAR and abs(pixels[some[0]][1] - y) < NEAR:
                some.append(at)
                break
        else:
            groups.append([at])
    taken = [(x - 7, x + 7, y - 7, y + 7) for x, y in pixels]
    rights, ups = np.meshgrid(np.arange(-WIDTH, WIDTH, 3.0), np.arange(-HEIGHT, HEIGHT, 3.0))
    for some in sorted(groups, key=len, reverse=True):
        x, y = pixels[some[0]]
        step = 1 if len(some) <= 3 else 2  # names in a line
        lines = [", ".join(names[at] for at in some[low : low + step]) for low in range(0, len(some), step)]
        width, height = LETTER * max(map(len, lines)), LINE * len(lines)
        left, low_edge = x + rights, y + ups - height / 2
        free = (left >= 0) & (left + width <= WIDTH) & (low_edge >= 0) & (low_edge + height <= HEIGHT)
        for a, b, c, d in taken:
            free &= (left >= b) | (left + width <= a) | (low_edge >= d) | (low_edge + height <= c)
        aside = np.maximum(np.maximum(rights, -rights - width), 0)  # from the point to the label
        away = np.maximum(np.abs(ups) - height / 2, 0)
        cost = np.maximum(np.hypot(aside, away), GAP) + 0.01 * np.abs(ups) + 0.1 * (rights < 0)
        best = int(np.where(free, cost, np.inf).argmin()) if free.any() else None
        right, up = (float(GAP), 0.0) if best is None else (float(rights.flat[best]), float(ups.flat[best]))
        box = x + right, x + right + width, y + up - height / 2, y + up + height / 2
        taken.append(box)
        nearest = min(max(x, box[0]), box[1]) - x, min(max(y, box[2]), box[3]) - y
        yield some, "\n".join(lines), (right, up), nearest
