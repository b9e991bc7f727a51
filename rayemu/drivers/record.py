"""The record of a run: one row per dispatch, expert GEMM and combine, in columns.

Each process of a module appends to a file of its own through a memory map, so what it wrote survives its
own SIGKILL; on a full disk it goes on without a record, and that is said. The run folder holds all merged,
as one compressed column per field. Times are wall time; those of a simulation are virtual, and their columns
are named so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rayemu.protocol.config import LEVELS, TOTALS
from rayemu.protocol.memory import open_with_room
from rayemu.protocol.messages import Dispatch, Reply, Totals
from rayemu.protocol.module import ModuleMachine
from rayemu.protocol.server import SHARED, Job, Part

DISPATCH, FORWARD, GEMM, REPLY, COMBINE, ENCODE, DECODE = range(7)
KINDS = ("dispatch", "forward", "gemm", "reply", "combine", "encode", "decode")

_FIELDS = [
    ("kind", "u1"),  # index into KINDS
    ("level", "u1"),  # 0 local, 1 module link, 2 node link
    ("codec", "u1"),  # number among the run's codecs; 0 is raw
    ("src", "i2"),  # module; -1 the coordinator
    ("dst", "i2"),
    ("layer", "i2"),
    ("micro", "i2"),
    ("batch", "i4"),
    ("slice", "i4"),
    ("epoch", "i4"),  # of the plan that a dispatch belongs to; -1 elsewhere
    ("expert", "i4"),  # -1 where there are several, or none
    ("rows", "i4"),
    ("flops", "f8"),
    ("raw_bytes", "i8"),  # rows in float32
    ("sent_bytes", "i8"),  # the whole frame; 0 where nothing left the module
]
RECORD = np.dtype([*_FIELDS, ("start_wall_s", "f8"), ("end_wall_s", "f8")])  # Unix time
VIRTUAL_RECORD = np.dtype([*_FIELDS, ("start_virtual_s", "f8"), ("end_virtual_s", "f8")])
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


class Recorder:
    """Keeps rows in a file, which may end in unused rows (their end time is 0); without a path, in memory.

    Where its disk has no more room, what comes then is dropped, and the file has no unused row: see `is_cut`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._size = 0
        self._rows = np.zeros(0, RECORD)
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
        layer: int,
        micro: int,
        batch: int,
        slice: int = -1,
        epoch: int = -1,
        expert: int = -1,
        level: int = 0,
        codec: int = 0,
        flops: float = 0.0,
        raw_bytes: int = 0,
        sent_bytes: int = 0,
    ) -> None:
        """Write one row; see RECORD for the fields."""
        if self._size == len(self._rows):
            return
        where = (kind, level, codec, src, dst, layer, micro, batch, slice, epoch, expert)
        self._rows[self._size] = (*where, rows, flops, raw_bytes, sent_bytes, start_s, end_s)
        self._size += 1
        if self._size == len(self._rows):
            self._grow()

    def rows(self) -> np.ndarray:
        """Return what was written so far."""
        return self._rows[: self._size]

    def _grow(self) -> None:
        """Make room for more rows, if there is any."""
        if self.path is None:
            more = np.zeros(max(self._size, _GROW), RECORD)
            self._rows = np.concatenate([self._rows, more])
            return
        rows = self._size + _GROW
        try:
            os.close(open_with_room(self.path, rows * RECORD.itemsize))
            self._rows = np.memmap(self.path, RECORD, "r+", shape=rows)
        except OSError:
            pass


def is_cut(path: Path) -> bool:
    """Whether the file of a recorder ends where its disk had no more room."""
    rows = path.stat().st_size // RECORD.itemsize
    if not rows:
        return True
    (last,) = np.fromfile(path, RECORD, 1, offset=(rows - 1) * RECORD.itemsize)
    return bool(last["end_wall_s"] > 0)


class ModuleRecord:
    """Notes what one module does: in a recorder, and as running totals for live views.

    `clock` gives the time in seconds; what has no end of its own has ended when it is noted.
    """

    def __init__(self, recorder: Recorder, machine: ModuleMachine, clock: Callable[[], float]) -> None:
        self._append, self._clock, self._machine = recorder.append, clock, machine
        self._me, self._spec = machine.me, machine.model.spec
        self.totals = dict.fromkeys(TOTALS, 0.0)

    def combines(self, start_s: float) -> None:
        """Note the combines that the machine has done since the last call."""
        d_model = self._spec.d_model
        for unit in self._machine.combined():
            self._append(
                COMBINE,
                self._me,
                self._me,
                unit.rows,
                start_s,
                self._clock(),
                layer=unit.layer,
                micro=unit.micro,
                batch=unit.batch,
                slice=unit.slice,
                flops=2.0 * unit.rows * self._spec.top_k * d_model,
                raw_bytes=unit.rows * d_model * 4,
            )

    def encoded(self, message: Dispatch | Reply, to: int, codec: int, start_s: float) -> None:
        """Note that a codec encoded a message's rows, to be sent to another module."""
        self._rows(ENCODE, message, self._me, start_s, level=self._machine.level(to), codec=codec)

    def decoded(self, message: Dispatch | Reply, codec: int, start_s: float) -> None:
        """Note that a codec decoded a message's rows."""
        self._rows(DECODE, message, self._me, start_s, codec=codec)

    def sent(self, message: Dispatch | Reply, to: int, codec: int, size: int, start_s: float) -> None:
        """Note that a frame of `size` bytes was sent."""
        level = self._machine.level(to)
        if isinstance(message, Dispatch):
            kind = DISPATCH if message.home == self._me else FORWARD
            slice, epoch = message.slice, message.epoch
            expert = message.lots[0][1] if len(message.lots) == 1 else -1
        else:
            kind = REPLY if message.sender == self._me else FORWARD
            slice, epoch, expert = -1, -1, -1
        self.totals["raw_bytes"] += message.rows.nbytes
        self.totals["sent_bytes"] += size
        self.totals[f"sent_{LEVELS[level]}"] += size
        self._rows(
            kind,
            message,
            to,
            start_s,
            slice=slice,
            epoch=epoch,
            expert=expert,
            level=level,
            codec=codec,
            sent_bytes=size,
        )

    def computed(self, job: Job, start_s: float, end_s: float) -> None:
        """Note a GEMM: a row for each batch in it, with the share of the time that its rows have.

        Slice and micro-batch are those of the batch's first request.
        """
        self.totals["rows"] += job.rows
        self.totals["busy_s"] += end_s - start_s
        batches: dict[int, list[Part]] = {}
        for part in job.parts:
            batches.setdefault(part.work.dispatch.batch if part.work is not None else -1, []).append(part)
        done, began_s = 0, start_s
        for batch, parts in batches.items():
            work, rows = parts[0].work, sum(part.count for part in parts)
            done += rows
            ended_s = start_s + (end_s - start_s) * done / job.rows if done < job.rows else end_s
            self._append(
                GEMM,
                self._me,
                self._me,
                rows,
                began_s,
                ended_s,
                layer=job.layer,
                micro=work.dispatch.micro if work is not None else 0,
                batch=batch,
                slice=work.dispatch.slice if work is not None else -1,
                expert=-1 if job.expert == SHARED else job.expert,
                flops=job.flops * rows / job.rows,
                raw_bytes=rows * self._spec.d_model * 4,
            )
            began_s = ended_s

    def _rows(self, kind: int, message: Dispatch | Reply, to: int, start_s: float, **facts: int) -> None:
        self._append(
            kind,
            self._me,
            to,
            len(message.rows),
            start_s,
            self._clock(),
            layer=message.layer,
            micro=message.micro,
            batch=message.batch,
            raw_bytes=message.rows.nbytes,
            **facts,
        )


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
    }


def read_records(paths: Iterable[Path]) -> np.ndarray:
    """Read the files of recorders one after the other, without the unused rows."""
    rows = np.concatenate([np.zeros(0, RECORD), *(np.fromfile(path, RECORD) for path in paths)])
    return rows[rows["end_wall_s"] > 0]


def in_order(record: np.ndarray) -> np.ndarray:
    """Sort a record by start time."""
    return record[np.argsort(starts(record), kind="stable")]


def save_columns(path: Path, record: np.ndarray) -> None:
    """Save a record as one compressed array per field (`numpy.load` reads it)."""
    columns: dict[str, Any] = {name: record[name] for name in record.dtype.names or ()}
    np.savez_compressed(path, **columns)


def load_columns(path: Path) -> np.ndarray:
    """Load what `save_columns` wrote."""
    with np.load(path) as columns:
        dtype = RECORD if "start_wall_s" in columns else VIRTUAL_RECORD
        record = np.zeros(len(columns["kind"]), dtype)
        for name in dtype.names or ():
            record[name] = columns[name]
    return record
