"""What a run tells while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """One report. `done` of `batches` are finished (phase run) or compared with the reference (check).

    `wall_s` counts from the first batch handed out. `totals` are the modules' running totals, see
    `Emulator.totals`; `events` what was written to events.jsonl since the last report.
    """

    phase: str  # start | run | check
    done: int
    batches: int
    tokens: int = 0
    wall_s: float = 0.0
    totals: Mapping[str, Any] = field(default_factory=dict)
    events: tuple[Mapping[str, Any], ...] = ()
