"""The journal of a run: what a person wants to know, one JSON object per line, as it happens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from rayemu.protocol.messages import Notice


class Journal:
    """Appends events to an open file. Lines are written at once, so that they survive whatever ends the run.

    `clock` is what events are stamped by: `time.monotonic`, or a simulation's virtual clock (`virtual`).
    """

    def __init__(
        self, file: IO[str], clock: Callable[[], float] = time.monotonic, virtual: bool = False
    ) -> None:
        self._file = file
        self.clock, self.virtual = clock, virtual
        self.opened = clock()
        self.began: float | None = None  # on `clock`: the first batch was handed out
        self._new: list[dict[str, Any]] = []

    def write(self, kind: str, at: float | None = None, **facts: Any) -> None:
        """Note an event. `at` is on `clock`; without it the event is now.

        `wall_s` is Unix time; `since_start_s` counts from the first batch, on the clock of the run.
        """
        now = self.clock()
        at = now if at is None else at
        event: dict[str, Any] = {"wall_s": round(time.time() + (0.0 if self.virtual else at - now), 6)}
        if self.began is not None:
            event["since_start_virtual_s" if self.virtual else "since_start_s"] = round(at - self.began, 6)
        event |= {"kind": kind, **facts}
        self._new.append(event)
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()

    def note(self, notices: Iterable[Notice]) -> list[Notice]:
        """Note what the coordinator reported; where its clock is another machine's, the arrival counts."""
        noted = []
        for notice in notices:
            if not self.virtual and not self.opened <= notice.wall_s <= self.clock():
                notice = replace(notice, wall_s=self.clock())
            noted.append(notice)
            self.write(notice.kind, notice.wall_s, **notice.facts)
        return noted

    def take_new(self) -> tuple[dict[str, Any], ...]:
        """The events since the last call."""
        new, self._new = tuple(self._new), []
        return new


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The events of a run folder's events.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
