"""The doctor's checks, each on a machine made up for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayemu import doctor
from rayemu.doctor import OK, WARNING, WRONG
from rayemu.emulator import Emulator
from rayemu.numerics import ByElement, MendedEdges, products
from rayemu.scenario import Scenario


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def run_directory(temporary: Path, name: str, owner: int | None) -> Path:
    directory = temporary / name
    (directory / "ray").mkdir(parents=True)
    if owner is not None:
        (directory / "owner").write_text(str(owner))
    return directory


def test_only_directories_of_dead_runs_are_stale_and_fix_removes_them(tmp_path: Path) -> None:
    dead = run_directory(tmp_path, "rayemu-00000001", dead_process())
    living = run_directory(tmp_path, "rayemu-00000002", os.getpid())
    fresh = run_directory(tmp_path, "rayemu-00000003", None)
    old = run_directory(tmp_path, "rayemu-00000004", None)
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))
    other = run_directory(tmp_path, "rayemu-notes", dead_process())

    found = doctor.check_stale_directories(tmp_path, fix=False)
    assert found.state == WRONG and "--fix" in found.remedy
    assert found.text.endswith("rayemu-00000001, rayemu-00000004")
    assert dead.exists()

    fixed = doctor.check_stale_directories(tmp_path, fix=True)
    assert fixed.state == OK and "removed" in fixed.text
    assert not dead.exists() and not old.exists()
    assert living.exists() and fresh.exists() and other.exists()
    assert doctor.check_stale_directories(tmp_path, fix=False).state == OK


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")
def test_a_directory_in_which_a_process_works_is_left_alone(tmp_path: Path) -> None:
    directory = run_directory(tmp_path, "rayemu-00000001", dead_process())
    script = "import time; print(flush=True); time.sleep(60)"
    sleeper = [sys.executable, "-c", script, f"--session={directory}/ray"]
    with subprocess.Popen(sleeper, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        assert doctor.check_stale_directories(tmp_path, fix=True).state == OK
        assert directory.exists()
        worker.kill()
    assert doctor.check_stale_directories(tmp_path, fix=False).state == WRONG


def test_little_shared_memory_is_wrong_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"total": 64 << 20, "free": 64 << 20})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    finding = doctor.check_shared_memory(tmp_path)
    assert (
        finding.state == WRONG and "64.0 MiB of 64.0 MiB" in finding.text and "--shm-size" in finding.remedy
    )
    assert doctor.check_shared_memory(tmp_path / "none").state == OK


def test_a_temporary_directory_must_be_short_and_writable(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    finding = doctor.check_temporary_directory(deep)
    assert finding.state == WRONG and "TMPDIR" in finding.remedy
    strange = tmp_path.parents[-2] / "ü#"
    finding = doctor.check_temporary_directory(strange)
    assert finding.state == WRONG and "'ü#'" in finding.text and "TMPDIR" in finding.remedy
    missing = doctor.check_temporary_directory(Path("/none"))
    assert missing.state == WRONG and "No such file" in missing.text


def test_a_full_disk_for_temporary_files_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000 << 10))
    finding = doctor.check_temporary_directory(Path("/tmp"))
    assert finding.state == WRONG and "1000 KiB free" in finding.text and "TMPDIR" in finding.remedy


def test_a_niced_process_is_warned_of() -> None:
    assert doctor.check_niceness(0).state == OK
    assert doctor.check_niceness(5).state == WARNING


def test_the_way_of_products_is_named_with_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_way", MendedEdges(320))
    monkeypatch.setattr("rayemu.numerics.cost", lambda: 1.25)
    finding = doctor.check_blas()
    assert finding.state == OK and "by mended edges" in finding.text and "1.25 times" in finding.text
    monkeypatch.setattr(products, "_way", ByElement())
    finding = doctor.check_blas()
    assert finding.state == WARNING and "install NumPy from PyPI" in finding.remedy


def in_memory(scenario: Scenario) -> Emulator:
    return Emulator(scenario.with_overrides(["cluster.transport=memory"]))


def test_the_emulation_of_the_doctor_computes_exactly() -> None:
    finding = doctor.check_ray(in_memory)
    assert finding.state == OK and "exact" in finding.text


def test_a_ray_that_does_not_start_is_one_line() -> None:
    def fail(scenario: Any) -> Any:
        raise RuntimeError("no\nroom")

    finding = doctor.check_ray(fail)
    assert finding.state == WRONG and "did not run two modules: no room" in finding.text


def test_the_cheap_checks_run_anywhere() -> None:
    names = [finding.name for finding in doctor.examine(with_ray=False)]
    assert names == [
        "python",
        "cores",
        "memory",
        "shared memory",
        "temporary files",
        "niceness",
        "open files",
        "ports",
        "BLAS",
        "left-overs",
    ]
