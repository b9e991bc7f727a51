"""Running totals of the modules, as a live view needs them: without the dips of restarts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Totals:
    """Adds up what the modules report. A replacement counts from zero again; its predecessor's work stays."""

    def __init__(self, modules: int) -> None:
        self._last: list[dict[str, float]] = [{} for _ in range(modules)]
        self._before: list[dict[str, float]] = [{} for _ in range(modules)]

    def update(self, totals: Mapping[str, Any]) -> None:
        """Take in a report, see `Emulator.totals`."""
        for name, new in totals.get("modules", {}).items():
            module = int(name)
            last = self._last[module]
            if any(new.get(key, 0.0) < value for key, value in last.items()):
                before = self._before[module]
                self._before[module] = {key: before.get(key, 0.0) + value for key, value in last.items()}
            self._last[module] = dict(new)

    def of(self, module: int, key: str) -> float:
        """One figure of one module: rows, busy_s, raw_bytes, sent_bytes, sent_module or sent_node."""
        return self._before[module].get(key, 0.0) + self._last[module].get(key, 0.0)

    def sum(self, key: str) -> float:
        """One figure of all modules together."""
        return sum(self.of(module, key) for module in range(len(self._last)))
