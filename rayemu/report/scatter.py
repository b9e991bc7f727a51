"""A scatter plot as SVG: codecs by size ratio and error, speed as the size of the dot.

Twenty dots and two axes do not earn a plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rayemu.report.svg import opened, ruled, upright, written

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 90, 40, 50, 70
LETTER, LINE = 6.2, 12  # size of a label's letters
LOSSY, LOSSLESS = "#2f6fb2", "#2d8f5a"


def scatter(lines: Sequence[Mapping[str, Any]], title: str) -> str:
    """The lines of `budget.over_layers` as one SVG document; codecs without error stand at the lower edge."""
    shown = [line for line in lines if not line.get("refused")]
    ratios = [float(line["ratio"]) for line in shown] or [1.0]
    errors = [float(line["output_error"]) for line in shown if line["output_error"] > 0] or [1e-3]
    low, high = math.floor(math.log10(min(errors))) - 1, math.ceil(math.log10(max(errors)) + 1e-9)
    left, right = math.log2(min(*ratios, 1.0)) - 0.2, math.log2(max(*ratios, 2.0)) + 0.4

    def across(ratio: float) -> float:
        return LEFT + (math.log2(ratio) - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def up(error: float) -> float:
        place = math.log10(error) if error > 0 else low
        return HEIGHT - BOTTOM - (place - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        opened(WIDTH, HEIGHT),
        written(WIDTH / 2, 26, title, "middle", 16),
        written((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18, "times smaller than float32", "middle"),
        upright(22, HEIGHT / 2, "relative error of the layer's output (worst layer)"),
    ]
    for power in range(low, high + 1):
        y = up(10.0**power)
        label = "none" if power == low else f"1e{power}"
        parts += [ruled(LEFT, y, WIDTH - RIGHT, y), written(LEFT - 8, y + 4, label, "end")]
    for power in range(math.ceil(left), math.floor(right) + 1):
        x = across(2.0**power)
        parts += [
            ruled(x, TOP, x, HEIGHT - BOTTOM),
            written(x, HEIGHT - BOTTOM + 18, f"{2**power:g}x", "middle"),
        ]
    labels: list[tuple[float, float, float]] = []  # left, right and height of those that are placed
    for line in shown:
        x, y = across(line["ratio"]), up(line["output_error"])
        slower = min(line["encode_gb_per_s"], line["decode_gb_per_s"])
        radius = 3 + 4 * math.sqrt(max(slower, 0.0))
        colour = LOSSLESS if line["lossless"] else LOSSY
        about = f"{line['codec']}: {line['ratio']:.2f}x, error {line['output_error']:.2g}, {slower:.2f} GB/s"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{min(radius, 24):.1f}" fill="{colour}" fill-opacity="0.5">'
            f"<title>{escape(about)}</title></circle>"
        )
        begin = x + min(radius, 24) + 3
        end, height = begin + LETTER * len(line["codec"]), y + 4
        while any(begin < b and a < end and abs(height - h) < LINE for a, b, h in labels):
            height += 2  # down to the next free place
        labels.append((begin, end, height))
        parts.append(written(begin, height, str(line["codec"]), "start", 11))
    parts.append(written(WIDTH - RIGHT, HEIGHT - 18, "dot: the slower of encode and decode", "end", 11))
    return "\n".join([*parts, "</svg>"]) + "\n"
