"""Pieces of SVG that the plots share."""

from __future__ import annotations

from html import escape

INK, FAINT = "#222", "#ddd"


def opened(width: int, height: int) -> str:
    """The beginning of a document, with a white ground."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="13" fill="{INK}"><rect width="100%" height="100%" fill="white"/>'
    )


def written(x: float, y: float, text: str, anchor: str = "start", size: int = 13) -> str:
    """A text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def upright(x: float, y: float, text: str) -> str:
    """A text that reads upwards, as on a vertical axis."""
    return f'<g transform="rotate(-90 {x} {y})">{written(x, y, text, "middle")}</g>'


def ruled(x1: float, y1: float, x2: float, y2: float, dashes: str = "") -> str:
    """A faint line."""
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{FAINT}"{dashed}/>'
