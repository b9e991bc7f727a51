"""Ctrl-C and SIGTERM, while Ray starts and while a run goes on: both end cleanly and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayemu.cluster.local_ray import interrupts_held

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for left-overs in Linux's /proc")
SEMAPHORES = Path("/proc/sysvipc/sem")
MODULES = 4
SCRIPT = """
import os
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:2]))  # modules that share cores have semaphores
from rayemu.cli import main
main()
"""


@pytest.fixture
def temporary() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="ri-", dir="/tmp"))  # short: sockets have short names
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def processes(temporary: Path) -> set[str]:
    """The pids of what was started with a path in `temporary`, or has a file open there.

    Those are a run's own processes, and Ray's: workers write their logs there. Other runs of the machine have
    other directories.
    """
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            names = [os.fsencode(os.readlink(file)) for file in (process / "fd").iterdir()]
            if any(os.fsencode(temporary) in name for name in (*names, (process / "cmdline").read_bytes())):
                found.add(process.name)
        except OSError:  # it has ended, or is another user's
            continue
    return found


class Semaphores(threading.Thread):
    """Collects the numbers of the semaphores that runs in a directory write down there, until stopped."""

    def __init__(self, temporary: Path) -> None:
        super().__init__(daemon=True)
        self.temporary, self.numbers, self.over = temporary, set[str](), threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.02):
            for file in self.temporary.glob("rayemu-*/turns*"):
                with contextlib.suppress(OSError):
                    self.numbers.update(file.read_text().split()[:1])

    def left(self) -> set[str]:
        """Those that the system still has."""
        self.over.set()
        self.join()
        return self.numbers & {line.split()[1] for line in SEMAPHORES.read_text().splitlines()[1:]}


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
    semaphores = Semaphores(temporary)
    semaphores.start()
    run = ["run", "smoke", "--set", "run.batches=100000", "--set", f"cluster.modules_per_node={MODULES // 2}"]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *run, "--out", str(tmp_path / "out")],
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
        if after == " batches, ":
            assert len(processes(temporary)) > MODULES, "the workers are seen"
            assert semaphores.numbers
        process.send_signal(number)
        shown += process.stdout.readlines()
        assert process.wait(30) == 130, "".join(shown)
    assert shown[-1] == "rayemu: interrupted\n"
    assert '"interrupted"' in (tmp_path / "out" / "events.jsonl").read_text()
    assert os.listdir(temporary) == []
    deadline = time.monotonic() + 5  # killed processes may take a moment to end
    while processes(temporary) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes(temporary) == set()
    assert semaphores.left() == set()


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
