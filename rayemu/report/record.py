"""The record of a run: one row per dispatch, expert GEMM and combine, in columns.

Each module appends to its own file through a memory map, so what it wrote survives its own SIGKILL. The
run folder holds all of them merged, as one compressed column per field.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

ROUTE, DISPATCH, FORWARD, GEMM, REPLY, COMBINE, ENCODE, DECODE = range(8)
KINDS = ("route", "dispatch", "forward", "gemm", "reply", "combine", "encode", "decode")

RECORD = np.dtype(
    [
        ("kind", "u1"),  # index into KINDS
        ("level", "u1"),  # 0 local, 1 module link, 2 node link
        ("codec", "u1"),  # number among the run's codecs; 0 is raw
        ("src", "i2"),  # module; -1 the coordinator
        ("dst", "i2"),
        ("layer", "i2"),
        ("micro", "i2"),
        ("batch", "i4"),
        ("shard", "i4"),
        ("epoch", "i4"),  # of the plan that a dispatch belongs to; -1 elsewhere
        ("expert", "i4"),  # -1 where there are several, or none
        ("rows", "i4"),
        ("flops", "f8"),
        ("raw_bytes", "i8"),  # rows in float32
        ("sent_bytes", "i8"),  # the whole frame; 0 where nothing left the module
        ("start_wall_s", "f8"),  # Unix time
        ("end_wall_s", "f8"),
    ]
)
_GROW = 1 << 14  # rows


class Recorder:
    """Appends to a record file. The file may end in unused rows, whose end time is 0."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0
        self._rows = np.memmap(path, RECORD, "w+", shape=(_GROW,))

    def append(
        self,
        kind: int,
        src: int,
        dst: int,
        rows: int,
        start_wall_s: float,
        *,
        layer: int,
        micro: int,
        batch: int,
        shard: int = -1,
        epoch: int = -1,
        expert: int = -1,
        level: int = 0,
        codec: int = 0,
        flops: float = 0.0,
        raw_bytes: int = 0,
        sent_bytes: int = 0,
        end_wall_s: float = 0.0,
    ) -> None:
        """Write one row; see RECORD for the fields. It ends now unless an end is given."""
        if self._size == len(self._rows):
            self._rows = np.memmap(self.path, RECORD, "r+", shape=(self._size + _GROW,))
        where = (kind, level, codec, src, dst, layer, micro, batch, shard, epoch, expert)
        what = (rows, flops, raw_bytes, sent_bytes, start_wall_s, end_wall_s or time.time())
        self._rows[self._size] = where + what
        self._size += 1


def read_record(path: Path) -> np.ndarray:
    """Read what a recorder wrote, without the unused rows."""
    rows = np.fromfile(path, RECORD)
    return rows[rows["end_wall_s"] > 0]


def merge_records(paths: list[Path]) -> np.ndarray:
    """Merge the files of all modules in order of start time."""
    rows = np.concatenate([np.zeros(0, RECORD), *(read_record(p) for p in paths)])
    return rows[np.argsort(rows["start_wall_s"], kind="stable")]


def save_columns(path: Path, rows: np.ndarray) -> None:
    """Save a record as one compressed array per field (`numpy.load` reads it)."""
    columns: dict[str, Any] = {name: rows[name] for name in RECORD.names or ()}
    np.savez_compressed(path, **columns)


def load_columns(path: Path) -> np.ndarray:
    """Load what `save_columns` wrote."""
    with np.load(path) as columns:
        rows = np.zeros(len(columns["kind"]), RECORD)
        for name in RECORD.names or ():
            rows[name] = columns[name]
    return rows
