"""Ctrl-C and SIGTERM, while Ray starts and while a run goes on: both end cleanly and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayemu.cluster.local_ray import interrupts_held

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for left-overs in Linux's /proc")
SEMAPHORES = Path("/proc/sysvipc/sem")


@pytest.fixture
def temporary() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="ri-", dir="/tmp"))  # short: sockets have short names
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def processes(temporary: Path) -> set[str]:
    """The pids of Ray's workers, anyone's, and of what was started with a path in `temporary`."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes()
        except OSError:
            continue
        if line.startswith(b"ray::") or os.fsencode(temporary) in line:
            found.add(file.parent.name)
    return found


@pytest.mark.parametrize(
    ("number", "after"),
    [
        (signal.SIGINT, "starting the cluster"),
        (signal.SIGTERM, "starting the cluster"),
        (signal.SIGINT, " batches, "),
        (signal.SIGTERM, " batches, "),
    ],
)
def test_it_leaves_nothing_behind(
    number: signal.Signals, after: str, temporary: Path, tmp_path: Path
) -> None:
    workers, semaphores = processes(temporary), SEMAPHORES.read_text().count("\n")
    run = ["run", "smoke", "--set", "run.batches=100000", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen(
        [sys.executable, "-c", "from rayemu.cli import main; main()", *run],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        shown = []
        for line in process.stdout:
            shown.append(line)
            if after in line:
                break
        time.sleep(0.7)  # into Ray's start, or into the run
        process.send_signal(number)
        shown += process.stdout.readlines()
        assert process.wait(30) == 130, "".join(shown)
    assert shown[-1] == "rayemu: interrupted\n"
    assert '"interrupted"' in (tmp_path / "out" / "events.jsonl").read_text()
    assert os.listdir(temporary) == []
    deadline = time.monotonic() + 5  # killed processes may take a moment to end
    while processes(temporary) - workers and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes(temporary) - workers == set()
    assert SEMAPHORES.read_text().count("\n") == semaphores


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_one_does_not_stop_the_cleaning_up(number: signal.Signals) -> None:
    got: list[int] = []
    previous = signal.signal(number, lambda received, _: got.append(received))
    try:
        with interrupts_held():
            os.kill(os.getpid(), number)
        assert got == []
        os.kill(os.getpid(), number)
        assert got == [number], "afterwards it is heard again"
    finally:
        signal.signal(number, previous)
