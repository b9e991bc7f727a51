"""Recorders keep every row, in files and in memory, beyond the room that they begin with."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayemu.drivers.record import (
    GEMM,
    RECORD,
    VIRTUAL_RECORD,
    ModuleRecord,
    Recorder,
    in_order,
    is_cut,
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
        dispatch = SimpleNamespace(batch=batch, slice=10 + batch, micro=batch)
        return Part(SimpleNamespace(dispatch=dispatch), rows, np.arange(count), None)  # type: ignore[arg-type]

    machine: Any = SimpleNamespace(me=2, model=SimpleNamespace(spec=SimpleNamespace(d_model=4)))
    record = ModuleRecord(recorder, machine, lambda: 0.0)
    record.computed(Job(1, 3, [part(0, 2), part(5, 3), part(0, 1), part(6, 2)], 8, 80.0), 10.0, 18.0)
    record.computed(Job(1, SHARED, [Part(None, rows, None, None)], 8, 80.0), 20.0, 21.0)
    noted = recorder.rows()
    assert noted["batch"].tolist() == [0, 5, 6, -1]
    assert noted["slice"].tolist() == [10, 15, 16, -1]
    assert noted["rows"].tolist() == [3, 3, 2, 8]
    assert noted["flops"].tolist() == [30, 30, 20, 80]
    assert noted["start_wall_s"].tolist() == [10, 13, 16, 20]
    assert noted["end_wall_s"].tolist() == [13, 16, 18, 21]
    assert noted["raw_bytes"].tolist() == [48, 48, 32, 128]
    assert (record.totals["rows"], record.totals["busy_s"]) == (16, 9)


FULL_DISK = """
import sys
from pathlib import Path
from rayemu.cluster.pulse import Pulses
from rayemu.cluster.turns import Turns
from rayemu.drivers.record import GEMM, Recorder, is_cut, read_records

disk = Path(sys.argv[1])
recorder = Recorder(disk / "record")
for n in range(40_000):
    recorder.append(GEMM, 3, 4, n, 1e9, 1e9 + 0.5, layer=1, micro=2, batch=n)
rows = read_records([disk / "record"])
assert len(rows) == len(recorder.rows()) == 16384, len(rows)
assert rows["rows"].tolist() == list(range(16384))
assert is_cut(disk / "record")
with open(disk / "filler", "wb", 0) as filler:
    try:
        while True:
            filler.write(bytes(4096))
    except OSError:
        pass
late = Recorder(disk / "late")
late.append(GEMM, 3, 4, 1, 1e9, 1e9 + 0.5, layer=1, micro=2, batch=1)
assert len(late.rows()) == 0 and is_cut(disk / "late")
for mapped in (lambda: Pulses(str(disk), 1000), lambda: Turns(disk, 2)):
    try:
        mapped()
    except OSError as error:
        print(Path(error.filename).name.split("-")[0])
"""


def test_on_a_full_disk_records_end_early_and_nothing_is_killed(tmp_path: Path) -> None:
    """A disk of 2 MiB: the recorder's first room fits, no more."""
    unshare = ["unshare", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=2m tmpfs {tmp_path}"
    if shutil.which("unshare") is None or subprocess.run([*unshare, "sh", "-c", mount]).returncode:
        pytest.skip("a disk of one's own cannot be made here")
    run = shlex.join([sys.executable, "-c", FULL_DISK, str(tmp_path)])
    done = subprocess.run(
        [*unshare, "sh", "-c", f"{mount} && exec {run}"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["pulses", "turns"]


def test_a_record_with_room_is_not_cut(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "record")
    assert not is_cut(tmp_path / "record")
    fill(recorder, 1)
    assert not is_cut(tmp_path / "record")
