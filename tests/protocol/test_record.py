"""Recorders keep every row, in files and in memory, beyond the room that they begin with."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayemu.protocol.record import (
    GEMM,
    RECORD,
    VIRTUAL_RECORD,
    ModuleRecord,
    Recorder,
    in_order,
    load_columns,
    read_records,
    save_columns,
)
from rayemu.protocol.server import SHARED, Job, Part

MANY = 40_000  # more than fit at first, and than fit after growing once


def fill(recorder: Recorder, sign: int) -> None:
    for n in range(MANY):
        start = 1e9 + sign * n
        recorder.append(GEMM, 3, 4, n, start, start + 0.5, layer=1, micro=2, batch=n, sent_bytes=n << 20)


def check(rows: np.ndarray) -> None:
    n = np.arange(MANY)
    assert rows["rows"].tolist() == rows["batch"].tolist() == n.tolist()
    assert rows["sent_bytes"].tolist() == (n << 20).tolist()
    assert {(r["kind"], r["src"], r["dst"], r["layer"], r["micro"], r["expert"]) for r in rows} == {
        (GEMM, 3, 4, 1, 2, -1)
    }


def test_a_file_grows_and_is_read_without_its_unused_rows(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "record")
    fill(recorder, 1)
    rows = read_records([tmp_path / "record"])
    check(rows)
    assert rows["start_wall_s"].tolist() == [1e9 + n for n in range(MANY)]
    assert rows["end_wall_s"].tolist() == [1e9 + n + 0.5 for n in range(MANY)]


def test_memory_grows(tmp_path: Path) -> None:
    recorder = Recorder()
    fill(recorder, 1)
    check(recorder.rows())


def test_the_rows_of_all_files_are_put_in_order_of_time(tmp_path: Path) -> None:
    for name, sign in (("a", 1), ("b", -1)):
        fill(Recorder(tmp_path / name), sign)
    rows = in_order(read_records([tmp_path / "a", tmp_path / "b"]))
    assert len(rows) == 2 * MANY and (np.diff(rows["start_wall_s"]) >= 0).all()
    assert len(read_records([])) == 0


@pytest.mark.parametrize("dtype", [RECORD, VIRTUAL_RECORD])
def test_columns_survive_a_file(tmp_path: Path, dtype: np.dtype) -> None:
    rows = np.zeros(5, dtype)
    for number, name in enumerate(dtype.names or ()):
        rows[name] = np.arange(5) + number
    save_columns(tmp_path / "record.npz", rows)
    loaded = load_columns(tmp_path / "record.npz")
    assert loaded.dtype == dtype and (loaded == rows).all()


def test_a_gemm_of_several_batches_has_a_row_for_each() -> None:
    recorder, rows = Recorder(), np.zeros((8, 4), np.float32)

    def part(batch: int, count: int) -> Any:
        dispatch = SimpleNamespace(batch=batch, shard=10 + batch, micro=batch)
        return Part(SimpleNamespace(dispatch=dispatch), rows, np.arange(count), None)  # type: ignore[arg-type]

    machine: Any = SimpleNamespace(me=2, model=SimpleNamespace(spec=SimpleNamespace(d_model=4)))
    record = ModuleRecord(recorder, machine, lambda: 0.0)
    record.computed(Job(1, 3, [part(0, 2), part(5, 3), part(0, 1), part(6, 2)], 8, 80.0), 10.0, 18.0)
    record.computed(Job(1, SHARED, [Part(None, rows, None, None)], 8, 80.0), 20.0, 21.0)
    noted = recorder.rows()
    assert noted["batch"].tolist() == [0, 5, 6, -1]
    assert noted["shard"].tolist() == [10, 15, 16, -1]
    assert noted["rows"].tolist() == [3, 3, 2, 8]
    assert noted["flops"].tolist() == [30, 30, 20, 80]
    assert noted["start_wall_s"].tolist() == [10, 13, 16, 20]
    assert noted["end_wall_s"].tolist() == [13, 16, 18, 21]
    assert noted["raw_bytes"].tolist() == [48, 48, 32, 128]
    assert (record.totals["rows"], record.totals["busy_s"]) == (16, 9)
