"""The record of a run: one row per frame, routing, part of an expert GEMM and combine, in columns.

Each process appends to a file of its own through a memory map, so what it wrote survives its own SIGKILL; on
a full disk it goes on without a record, and that is said. The run folder holds all merged, as one compressed
column per field; docs/record.md has them one by one. Times are wall time; those of a simulation are virtual,
and their columns are named so.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np

from rayemu.protocol.config import TOTALS
from rayemu.protocol.memory import open_with_room
from rayemu.protocol.messages import Totals

VERSION = 2
KINDS = (
    "dispatch",
    "forward",
    "gemm",
    "reply",
    "combine",
    "encode",
    "decode",
    "route",
    "submit",
    "slice",
    "route_request",
    "route_reply",
    "result",
    "control",
    "scores",
    "groups",
    "offer_request",
    "offer",
    "offer_reply",
)
DISPATCH, FORWARD, GEMM, REPLY, COMBINE, ENCODE, DECODE = range(7)
ROUTE, SUBMIT, SLICE, ROUTE_REQUEST, ROUTE_REPLY, RESULT, CONTROL, SCORES = range(7, 15)
GROUPS, OFFER_REQUEST, OFFER, OFFER_REPLY = range(15, 19)

_FIELDS = [
    ("kind", "u1"),  # index into KINDS
    ("level", "u1"),  # 0 local (or to and from coordinator and client), 1 module link, 2 node link
    ("codec", "u1"),  # number among the run's codecs; 0 is raw
    ("src", "i2"),  # module; -1 the coordinator, -2 the client
    ("dst", "i2"),
    ("incarnation", "u2"),  # of the process that noted the row
    ("home", "i2"),  # module whose rows these are; -1 where there is none
    ("layer", "i2"),
    ("micro", "i2"),  # -1 where it is of a whole slice or batch
    ("batch", "i4"),
    ("slice", "i4"),
    ("epoch", "i4"),  # of the plan that a dispatch belongs to; -1 elsewhere
    ("expert", "i4"),  # -1 where there are several, or none
    ("rows", "i4"),
    ("id", "i4"),  # the row's place in the record; -1 until all are collected
    ("cause", "i4"),  # id of the row that this one waited for last; -1 none
    ("request", "i8"),  # number of a dispatch request, unique with `home`; -1 none
    ("job", "i8"),  # number of a merged GEMM, unique with `src`; -1 none
    ("flops", "f8"),
    ("raw_bytes", "i8"),  # rows in float32, choices and weights
    ("sent_bytes", "i8"),  # the whole frame; 0 where nothing left the process
]


def _record(clock: str) -> np.dtype:
    return np.dtype([*_FIELDS, *((f"{what}_{clock}_s", "f8") for what in ("queued", "start", "end"))])


RECORD = _record("wall")  # Unix time
VIRTUAL_RECORD = _record("virtual")
_LETTERS = {"u1": "B", "u2": "H", "i2": "h", "i4": "i", "i8": "q", "f8": "d"}  # of fields, in structs
_ROW = struct.Struct("<" + "".join(_LETTERS[RECORD[n].str[1:]] for n in range(len(RECORD.names or ()))))
_GROW = 1 << 14  # rows


def clock_of(record: np.ndarray) -> str:
    """Return which time a record is in: "wall" or "virtual"."""
    return "virtual" if record.dtype == VIRTUAL_RECORD else "wall"


def starts(record: np.ndarray) -> np.ndarray:
    """Return when each row began [N] float64, in seconds on the record's clock."""
    return record[f"start_{clock_of(record)}_s"]


def ends(record: np.ndarray) -> np.ndarray:
    """Return when each row ended [N] float64, in seconds on the record's clock."""
    return record[f"end_{clock_of(record)}_s"]


def queued(record: np.ndarray) -> np.ndarray:
    """Return when each row could have begun [N] float64, in seconds on the record's clock."""
    return record[f"queued_{clock_of(record)}_s"]


class RecordError(ValueError):
    """A file that holds no whole record of this version: names the file, what is wrong and the remedy."""


class Recorder:
    """Keeps rows in a file, which may end in unused rows (their end time is 0); without a path, in memory.

    Where its disk has no more room, what comes then is dropped, and the file has no unused row: see `is_cut`.
    One that is not `on` keeps nothing and makes no file.
    """

    def __init__(self, path: Path | None = None, on: bool = True) -> None:
        self.path, self.on = path, on
        self._size = 0
        self._take(np.zeros(0, RECORD))
        if on:
            self._grow()

    def write(self, row: tuple[float, ...]) -> None:
        """Write one row, its fields in the order of RECORD: this is what everyone does for every frame."""
        if self._size == self._room:
            return
        _ROW.pack_into(self._bytes, self._size * _ROW.size, *row)
        self._size += 1
        if self._size == self._room:
            self._grow()

    def append(
        self,
        kind: int,
        src: int,
        dst: int,
        rows: int,
        start_s: float,
        end_s: float,
        *,
        queued_s: float | None = None,
        layer: int = -1,
        micro: int = -1,
        batch: int = -1,
        slice: int = -1,
        epoch: int = -1,
        expert: int = -1,
        home: int = -1,
        request: int = -1,
        job: int = -1,
        incarnation: int = 0,
        level: int = 0,
        codec: int = 0,
        flops: float = 0.0,
        raw_bytes: int = 0,
        sent_bytes: int = 0,
    ) -> None:
        """Write one row; see RECORD for the fields. What is not told of a queue began at once."""
        where = (kind, level, codec, src, dst, incarnation, home, layer, micro, batch, slice, epoch, expert)
        cost = (rows, -1, -1, request, job, flops, raw_bytes, sent_bytes)
        self.write((*where, *cost, start_s if queued_s is None else queued_s, start_s, end_s))

    def rows(self) -> np.ndarray:
        """Return what was written so far."""
        return self._rows[: self._size]

    def _grow(self) -> None:
        """Make room for more rows, if there is any."""
        if self.path is None:
            more = np.zeros(max(self._size, _GROW), RECORD)
            self._take(np.concatenate([self._rows, more]))
            return
        rows = self._size + _GROW
        try:
            os.close(open_with_room(self.path, rows * RECORD.itemsize))
            self._take(np.memmap(self.path, RECORD, "r+", shape=rows))
        except OSError:
            pass

    def _take(self, rows: np.ndarray) -> None:
        self._rows, self._room = rows, len(rows)
        self._bytes = memoryview(rows.view(np.uint8))  # type: ignore[arg-type]


def is_cut(path: Path) -> bool:
    """Whether the file of a recorder ends where its disk had no more room."""
    rows = path.stat().st_size // RECORD.itemsize
    if not rows:
        return True
    (last,) = np.fromfile(path, RECORD, 1, offset=(rows - 1) * RECORD.itemsize)
    return bool(last["end_wall_s"] > 0)


def totals_report(totals: Totals | None) -> dict[str, Any]:
    """Return running totals as live views read them: per module, by the names in TOTALS."""
    if totals is None:
        return {}
    counts = (dict(zip(TOTALS, row, strict=True)) for row in totals.counts.tolist())
    return {
        "modules": dict(zip(map(str, totals.modules.tolist()), counts, strict=True)),
        "live": totals.live,
        "reissued": totals.reissued,
        "open_batches": totals.open_batches,
        "routing": dict(totals.routing),
    }


def read_records(paths: Iterable[Path]) -> np.ndarray:
    """Read the files of recorders one after the other, without the unused rows."""
    rows = np.concatenate([np.zeros(0, RECORD), *(np.fromfile(path, RECORD) for path in paths)])
    return rows[rows["end_wall_s"] > 0]


def in_order(record: np.ndarray) -> np.ndarray:
    """Sort a record by start time."""
    return record[np.argsort(starts(record), kind="stable")]


def save_columns(path: Path, record: np.ndarray) -> None:
    """Save a record as one compressed array per field, and its version (`numpy.load` reads it)."""
    columns: dict[str, Any] = {name: record[name] for name in record.dtype.names or ()}
    np.savez_compressed(path, version=np.int64(VERSION), **columns)


def load_columns(path: Path) -> np.ndarray:
    """Load what `save_columns` wrote. Raises RecordError for another version and what is cut or damaged."""
    remedy = "run the scenario again to record it anew"
    try:
        with np.load(path) as file:
            columns = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise RecordError(f"{path}: there is no record; {remedy}") from None
    except Exception as error:  # a damaged archive raises whatever its reader stumbles over
        said = error if is_zipfile(path) else "it is no whole .npz file"  # else NumPy advises to unpickle it
        raise RecordError(f"{path}: cut or no record at all ({said}); {remedy}") from None
    found = columns.pop("version", np.int64(1))
    if found.shape or found != VERSION:
        raise RecordError(f"{path}: a record of version {found}; this is read: version {VERSION}; {remedy}")
    dtype = RECORD if "start_wall_s" in columns else VIRTUAL_RECORD
    names = dtype.names or ()
    if missing := [name for name in names if name not in columns]:
        raise RecordError(f"{path}: cut, without {', '.join(missing)}; {remedy}")
    lengths = {name: columns[name].shape for name in names}
    if len({*lengths.values()}) != 1 or len(lengths["kind"]) != 1:
        told = ", ".join(f"{name} {shape}" for name, shape in lengths.items())
        raise RecordError(f"{path}: cut, its columns are not of one length ({told}); {remedy}")
    record = np.zeros(len(columns["kind"]), dtype)
    most = {"kind": len(KINDS) - 1, "level": 2, "cause": len(record) - 1}
    least = {"src": -2, "dst": -2, "cause": -1, "rows": 0}
    for name in names:
        given = columns[name]
        if given.dtype.kind in "biuf" and np.isfinite(given).all():
            record[name] = given
            held = record[name]  # where a value is beyond the column's type it is another one
            low, high = held >= least.get(name, -np.inf), held <= most.get(name, np.inf)
            if np.array_equal(held, given) and low.all() and high.all():
                continue
        raise RecordError(f"{path}: damaged, {name} has values that it cannot have; {remedy}")
    return record
