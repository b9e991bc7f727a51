"""A graph of events that is written block by block."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayemu.pricing.graph import EventGraph

Array = np.ndarray


class Events:
    """Columns with room for `room` events, written block by block: what is never written takes no memory."""

    COLUMNS = (
        ("kind", np.uint8, None),
        ("role", np.uint8, 0),
        ("src", np.int16, None),
        ("dst", np.int16, None),
        ("batch", np.int32, None),
        ("layer", np.int32, -1),
        ("expert", np.int32, -1),
        ("rows", np.int32, None),
        ("bytes", np.float64, 0.0),
    )

    def __init__(self, room: int) -> None:
        self.size = self.causes = 0
        self.columns: dict[str, Array] = {name: np.empty(room, dtype) for name, dtype, _ in self.COLUMNS}
        # Of 32 bits, as memory holds far less than 2^31 events: half as much to write and to read.
        self.columns["cause_start"] = np.zeros(room + 1, np.int32)
        self.columns["causes"] = np.empty(2 * room, np.int32)

    def add(self, count: int, causes: Array, each: Any = 1, **given: Any) -> Array:
        """Add `count` events with `each` causes, one event's after another's; returns their ids."""
        low, high, end = self.size, self.size + count, self.causes + len(causes)
        for name, _, default in self.COLUMNS:
            self._room(name, high)[low:high] = given.get(name, default)
        self._room("cause_start", high + 1)[low + 1 : high + 1] = each
        self._room("causes", end)[self.causes : end] = causes
        self.size, self.causes = high, end
        return np.arange(low, high)

    def _room(self, name: str, size: int) -> Array:
        column = self.columns[name]
        if size > len(column):
            column = self.columns[name] = np.concatenate([column, np.zeros(max(size, 1024), column.dtype)])
        return column

    def graph(self, module_to_node: Array) -> EventGraph:
        """Return what was added as a graph. Operations and requests are left out: nothing prices by them."""
        size = self.size
        columns: dict[str, Any] = {name: self.columns[name][:size] for name, _, _ in self.COLUMNS}
        start = self.columns["cause_start"][: size + 1]
        np.cumsum(start, out=start)
        return EventGraph(
            **columns,
            flops=np.broadcast_to(0.0, size),
            request=np.broadcast_to(np.int64(-1), size),
            cause_start=start,
            causes=self.columns["causes"][: self.causes],
            module_to_node=module_to_node,
        )
