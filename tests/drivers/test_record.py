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

from rayemu.drivers.notes import ActorRecord, ModuleRecord
from rayemu.drivers.record import (
    GEMM,
    RECORD,
    ROUTE,
    ROUTE_REPLY,
    SLICE,
    VIRTUAL_RECORD,
    Recorder,
    RecordError,
    in_order,
    is_cut,
    load_columns,
    read_records,
    save_columns,
)
from rayemu.model.spec import ModelSpec
from rayemu.protocol.messages import RouteReply, Send, Slice
from rayemu.protocol.server import ROUTED, SHARED, Job, Own, Work
from rayemu.protocol.slices import HeldSlice, Unit
from tests.views import lots_of

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
    rows["level"], rows["cause"] = [0, 1, 2, 1, 0], [-1, 0, 1, 2, 4]  # the links and rows that there are
    save_columns(tmp_path / "record.npz", rows)
    loaded = load_columns(tmp_path / "record.npz")
    assert loaded.dtype == dtype and (loaded == rows).all()


def saved(path: Path, **changes: Any) -> Path:
    """A record of five rows in a file, some of its columns changed, or gone (None)."""
    save_columns(path, np.zeros(5, RECORD))
    with np.load(path) as file:
        columns = {name: file[name] for name in file.files} | changes
    np.savez_compressed(path, **{name: c for name, c in columns.items() if c is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"version": None}, "a record of version 1; this is read: version 2"),
        ({"version": np.int64(3)}, "a record of version 3; this is read: version 2"),
        ({"job": None, "cause": None}, "without cause, job"),
        ({"rows": np.zeros(4, np.int32)}, "not of one length"),
        ({"rows": np.array(7)}, "not of one length"),
        ({"kind": np.full(5, 99, np.uint8)}, "damaged, kind has"),
        ({"src": np.full(5, 70_000)}, "damaged, src has"),
        ({"cause": np.full(5, 5, np.int32)}, "damaged, cause has"),
        ({"rows": np.full(5, 0.5)}, "damaged, rows has"),
        ({"rows": np.full(5, -1)}, "damaged, rows has"),
        ({"batch": np.array(["one"] * 5)}, "damaged, batch has"),
        ({"end_wall_s": np.full(5, np.nan)}, "damaged, end_wall_s has"),
        ({"start_wall_s": np.full(5, np.inf)}, "damaged, start_wall_s has"),
        ({"start_wall_s": None}, "without queued_virtual_s, start_virtual_s, end_virtual_s"),
    ],
)
def test_what_is_no_whole_record_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = saved(tmp_path / "record.npz", **changes)
    with pytest.raises(RecordError) as refusal:
        load_columns(path)
    for part in (str(path), told, "run the scenario again"):
        assert part in str(refusal.value)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_is_refused(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path / "record.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RecordError, match=r"record\.npz: cut or no record at all.*run the scenario again"):
        load_columns(path)


def test_a_damaged_file_is_refused_or_harmless(tmp_path: Path) -> None:
    path = saved(tmp_path / "record.npz")
    whole, refused = path.read_bytes(), 0
    for position in range(0, len(whole), 31):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            assert (load_columns(path) == np.zeros(5, RECORD)).all()
        except RecordError:
            refused += 1
    assert refused > 50


def test_a_missing_or_other_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("kind,src\n")
    for name in ("one.npy", "text.npz", "none.npz"):
        with pytest.raises(RecordError, match=name):
            load_columns(tmp_path / name)


def test_a_merged_job_has_a_row_for_each_lot_and_a_number_for_each_expert() -> None:
    """No batch is charged for another's rows: each lot has the share of the time that its rows have."""
    recorder, rows = Recorder(), np.zeros((8, 4), np.float32)

    def work(batch: int, home: int, request: int, since: float, *lots: list[int]) -> Any:
        dispatch: Any = SimpleNamespace(
            batch=batch, slice=10 + batch, micro=batch, home=home, request=request, lots=lots_of(*lots)
        )
        return Work(dispatch, since)

    spec = ModelSpec("tiny", 4, 8, 2, 1)
    machine: Any = SimpleNamespace(me=2, incarnation=1, model=SimpleNamespace(spec=spec))
    record = ModuleRecord(recorder, machine, lambda: 0.0)
    works = [
        work(0, 1, 7, 3.0, [2, 3, 2], [2, 5, 1]),
        work(5, 0, 7, 8.0, [2, 3, 3]),
        work(6, 2, 9, 15.0, [2, 5, 2]),  # after the first expert began, but before its own
    ]
    record.computed(Job(1, ROUTED, 8, 80.0, works), 10.0, 18.0, ahead_s=2.0)
    held = HeldSlice(4, 14, 0, 1, rows, np.zeros((2, 2), np.int32))
    unit = Unit(held, 1, 0, 8, rows, layer=1)
    record.computed(Job(1, SHARED, 8, 80.0, own=Own(rows, unit, 15.0)), 20.0, 21.0)
    noted = recorder.rows()
    assert noted["batch"].tolist() == [0, 5, 0, 6, 4]
    assert noted["slice"].tolist() == [10, 15, 10, 16, 14]
    assert noted["micro"].tolist() == [0, 5, 0, 6, 1]
    assert noted["home"].tolist() == [1, 0, 1, 2, 2]
    assert noted["request"].tolist() == [7, 7, 7, 9, -1]
    assert noted["expert"].tolist() == [3, 3, 5, 5, -1]
    assert (noted["job"] - (1 << 40)).tolist() == [0, 0, 1, 1, 2]
    assert noted["incarnation"].tolist() == [1] * 5
    for name, value in (("kind", GEMM), ("src", 2), ("dst", 2), ("layer", 1), ("epoch", -1), ("cause", -1)):
        assert noted[name].tolist() == [value] * 5
    assert noted["rows"].tolist() == [2, 3, 1, 2, 8]
    assert noted["flops"].tolist() == [20, 30, 10, 20, 80]
    assert noted["queued_wall_s"].tolist() == [
        5,
        10,
        5,
        16,
        15,
    ]  # arrived, on the record's clock, not after its start
    assert noted["start_wall_s"].tolist() == [10, 12, 15, 16, 20]
    assert noted["end_wall_s"].tolist() == [12, 15, 16, 18, 21]
    assert noted["raw_bytes"].tolist() == [32, 48, 16, 32, 128]
    assert (record.totals["rows"], record.totals["busy_s"]) == (16, 9)


def test_the_coordinator_s_routing_is_shared_out_by_rows_and_choices_are_carried() -> None:
    """Three slices and a reply routed in eight seconds, one row each second; what has no choices is none."""
    recorder, spec, now = Recorder(), ModelSpec("tiny", 4, 8, 5, 2), [18.0]
    record = ActorRecord(recorder, -1, 0, spec, lambda: now[0])

    def chosen(count: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((count, 2), np.int32), np.zeros((count, 2), np.float32)

    def slice_of(number: int, count: int, *choices: np.ndarray) -> Slice:
        return Slice(7, number, 0, 3, 0, np.zeros((count, 4), np.float32), *choices)

    messages = [
        slice_of(0, 1, *chosen(1)),
        slice_of(1, 5),
        RouteReply(6, 2, 1, 3, *chosen(3)),
        slice_of(2, 4, *chosen(4)),
    ]
    sends = [Send(10 + number, message) for number, message in enumerate(messages)]
    record.routed(sends, 10.0)
    record.routed([sends[1]], 10.0)
    noted = recorder.rows()
    assert noted["kind"].tolist() == [ROUTE] * 3
    assert noted["rows"].tolist() == [1, 3, 4] and noted["home"].tolist() == [10, 12, 13]
    assert noted["queued_wall_s"].tolist() == [10, 10, 10]
    assert noted["start_wall_s"].tolist() == [10, 11, 14]
    assert noted["end_wall_s"].tolist() == [11, 14, 18]
    assert noted["batch"].tolist() == [7, 6, 7] and noted["slice"].tolist() == [0, 2, 2]
    assert noted["layer"].tolist() == [0, 3, 0] and noted["micro"].tolist() == [-1, 1, -1]
    assert noted["flops"].tolist() == [2 * rows * 4 * 5 for rows in (1, 3, 4)]
    for send in sends:
        record.frame(send.message, send.to, 100, 18.0, 18.5)
    frames = recorder.rows()[3:]
    assert frames["kind"].tolist() == [SLICE, SLICE, ROUTE_REPLY, SLICE]
    assert frames["rows"].tolist() == [1, 5, 3, 4]
    # Rows of four float32, and for each of two choices an expert and a weight of four bytes each.
    assert frames["raw_bytes"].tolist() == [16 + 16, 5 * 16, 3 * 16, 4 * 16 + 4 * 16]


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
