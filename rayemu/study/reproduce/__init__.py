"""What the texts that the project comes from say in figures, worked out again (docs/reproduce.md)."""

from __future__ import annotations

import re

from rayemu.study.reproduce import balance, compute, exchange, models, notes, routing
from rayemu.study.reproduce.row import AGREES, CONTRADICTS, DIFFERS, TEXTS, VERDICTS, Row

__all__ = ["AGREES", "CONTRADICTS", "DIFFERS", "ROWS", "TEXTS", "VERDICTS", "Row"]


def _in_order(rows: list[Row]) -> tuple[Row, ...]:
    """By text, then by section as the text numbers them; a section's rows together."""
    first = {row.section: place for place, row in reversed(list(enumerate(rows)))}

    def place(row: Row) -> tuple[str, list[int], int]:
        number = re.match(r"[\d.]*", row.section)
        parts = number[0].split(".") if number and number[0] else []
        return row.text, [int(part) for part in parts], first[row.section]

    return tuple(sorted(rows, key=place))


ROWS = _in_order([row for room in (models, compute, balance, exchange, routing, notes) for row in room.ROWS])
