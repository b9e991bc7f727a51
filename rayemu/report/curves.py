"""Curves over time as SVG, for the few plots that come without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from rayemu.report.svg import opened, ruled, upright, written

WIDTH, HEIGHT = 900, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 60, 60
COLOURS = ("#2f6fb2", "#c0562b", "#2d8f5a")
DASHES = ("", "6 4", "2 3")  # apart in black and white, too


def curves(
    series: Mapping[str, Sequence[float]],
    title: str,
    across: str,
    up: str,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """One curve per name, a value per step from 0 on, between 0 and 1; `marks` are steps with a word."""
    steps = max((len(values) for values in series.values()), default=0)
    high = HEIGHT - BOTTOM

    def x(step: float) -> float:
        return LEFT + step / max(steps - 1, 1) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return high - value * (high - TOP)

    parts = [opened(WIDTH, HEIGHT), written(WIDTH / 2, 24, title, "middle", 16)]
    parts += [written((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16, across, "middle"), upright(20, HEIGHT / 2, up)]
    for tenth in range(0, 11, 2):
        parts.append(ruled(LEFT, y(tenth / 10), WIDTH - RIGHT, y(tenth / 10)))
        parts.append(written(LEFT - 8, y(tenth / 10) + 4, f"{tenth / 10:g}", "end"))
    for part in range(5):
        step = (steps - 1) * part / 4
        parts.append(written(x(step), high + 18, f"{step:.0f}", "middle"))
    for step, word in marks:
        parts += [ruled(x(step), TOP, x(step), high, "3 3"), written(x(step) + 4, high - 6, word, size=11)]
    for number, (name, values) in enumerate(series.items()):
        colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in enumerate(values))
        look = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
        parts.append(
            f'<polyline points="{points}" fill="none" {look}><title>{escape(name)}</title></polyline>'
        )
        left = LEFT + 10 + 230 * number
        parts.append(f'<line x1="{left}" y1="44" x2="{left + 30}" y2="44" {look}/>')
        parts.append(written(left + 36, 48, name))
    return "\n".join([*parts, "</svg>"]) + "\n"
