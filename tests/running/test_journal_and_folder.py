"""The journal writes at once and on two clocks; a run folder has one run at a time."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from rayemu.running.folder import RunError, claimed_folder
from rayemu.running.journal import Journal, read_journal


def test_events_are_on_disk_at_once_with_both_times(tmp_path: Path) -> None:
    clock = iter([50.0, 100.0, 103.0])
    with open(tmp_path / "events.jsonl", "w") as file:
        journal = Journal(file, lambda: next(clock))
        journal.began = 90.0
        journal.write("started", cores=2)  # at 100
        journal.write("dead", 101.5, module=3)  # noted at 103
        first, second = read_journal(tmp_path / "events.jsonl")
    assert (first["kind"], first["cores"], first["since_start_s"]) == ("started", 2, 10.0)
    assert (second["module"], second["since_start_s"]) == (3, 11.5)
    assert second["wall_s"] == pytest.approx(time.time() - 1.5, abs=1.0)
    assert journal.take_new() == (first, second)
    assert journal.take_new() == ()


def test_virtual_times_do_not_pass_for_wall_times(tmp_path: Path) -> None:
    with open(tmp_path / "events.jsonl", "w") as file:
        journal = Journal(file, lambda: 7.0, virtual=True)
        journal.began = 2.0
        journal.write("dead", 5.0)
    event = journal.take_new()[0]
    assert event["since_start_virtual_s"] == 3.0 and "since_start_s" not in event
    assert event["wall_s"] == pytest.approx(time.time(), abs=1.0)


def test_a_finished_run_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with claimed_folder(folder, False) as (claimed, events):
        assert claimed == folder
        events.write("{}\n")
        (folder / "summary.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"run holds a finished run; .*--out .*--set name=.*--overwrite"):
        with claimed_folder(folder, False):
            pass
    assert (folder / "events.jsonl").read_text() == "{}\n", "a refusal changes nothing"
    with claimed_folder(folder, True):
        assert sorted(os.listdir(folder)) == ["events.jsonl", "notes.txt"]
        assert (folder / "events.jsonl").read_text() == ""


def test_what_an_interrupted_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("{}\n")
    (tmp_path / "scenario.yaml").write_text("old")
    with claimed_folder(tmp_path, False):
        assert os.listdir(tmp_path) == ["events.jsonl"]


def test_a_folder_in_use_is_refused_even_for_overwriting(tmp_path: Path) -> None:
    with claimed_folder(tmp_path, False), pytest.raises(RunError, match="another run is writing"):
        with claimed_folder(tmp_path, True):
            pass


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file cannot be written: File exists"):
        with claimed_folder(tmp_path / "file", False):
            pass


def test_a_full_disk_is_said_with_the_folder(tmp_path: Path) -> None:
    said = rf"disk of the run folder {tmp_path} is full: No space.*--out DIR"
    with pytest.raises(RunError, match=said), claimed_folder(tmp_path, False):
        with open("/dev/full", "w") as full:
            full.write("a record")
    with pytest.raises(OSError, match="not a disk's"), claimed_folder(tmp_path, False):
        raise OSError(errno.EPERM, "not a disk's")
