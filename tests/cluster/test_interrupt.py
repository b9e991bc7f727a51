"""Ctrl-C, SIGTERM and SIGHUP, during start and run: all end cleanly and leave nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayemu.cluster.interrupts import interrupts_held

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


@contextlib.contextmanager
def run(temporary: Path, out: Path, **popen: Any) -> Iterator[subprocess.Popen[str]]:
    """A run of a few minutes, with its temporary files in a directory of its own."""
    settings = ["--set", "run.batches=100000", "--set", f"cluster.modules_per_node={MODULES // 2}"]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    environment.pop("RAY_ADDRESS", None)
    pipes = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "run", "smoke", *settings, "--out", str(out)],
        env=environment,
        **(pipes | popen),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def shown_until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    """The lines that a run shows until there is one with these words."""
    assert process.stdout is not None
    shown: list[str] = []
    for line in process.stdout:
        shown.append(line)
        if wanted in line:
            break
    return shown


def until(done: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(done())


def nothing_is_left(temporary: Path) -> bool:
    """Killed processes may take a moment to end."""
    return os.listdir(temporary) == [] and until(lambda: not processes(temporary), 5)


@pytest.mark.parametrize("after", ["starting the cluster", " batches, "])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_leaves_nothing_behind(
    number: signal.Signals, after: str, temporary: Path, tmp_path: Path
) -> None:
    semaphores = Semaphores(temporary)
    semaphores.start()
    with run(temporary, tmp_path / "out") as process:
        shown = shown_until(process, after)
        time.sleep(0.7)  # into Ray's start, or into the run
        if after == " batches, ":
            assert len(processes(temporary)) > MODULES, "the workers are seen"
            assert semaphores.numbers
        process.send_signal(number)
        assert process.stdout is not None
        shown += process.stdout.readlines()
        assert process.wait(30) == 130, "".join(shown)
    assert shown[-1] == "rayemu: interrupted\n"
    assert not [line for line in shown if "received at time" in line], "Ray's traces of C++"
    assert '"interrupted"' in (tmp_path / "out" / "events.jsonl").read_text()
    assert nothing_is_left(temporary)
    assert semaphores.left() == set()


def test_a_closed_terminal_ends_a_run_in_order(temporary: Path, tmp_path: Path) -> None:
    """Then SIGHUP goes to all processes of the terminal, Ray's too, and nothing can be shown any more."""
    ours, theirs = pty.openpty()
    own_terminal = lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)  # noqa: E731
    pipes = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "text": False}
    with run(
        temporary, tmp_path / "out", start_new_session=True, preexec_fn=own_terminal, **pipes
    ) as process:
        os.close(theirs)
        shown = b""
        while b" batches, " not in shown:
            shown += os.read(ours, 1 << 16)
        os.close(ours)
        process.wait(30)
    assert '"interrupted"' in (tmp_path / "out" / "events.jsonl").read_text()
    assert nothing_is_left(temporary)


def test_a_run_under_nohup_goes_on(temporary: Path, tmp_path: Path) -> None:
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with run(temporary, tmp_path / "out", preexec_fn=ignore) as process:
        shown_until(process, "starting the cluster")
        process.send_signal(signal.SIGHUP)
        shown_until(process, " batches, ")
        process.send_signal(signal.SIGHUP)
        assert shown_until(process, " batches, ")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert nothing_is_left(temporary)


def test_a_start_that_hangs_can_be_interrupted(temporary: Path, tmp_path: Path) -> None:
    """Ray's first process is stopped as soon as it is there, so the rest waits for it."""
    with run(temporary, tmp_path / "out") as process:
        shown = shown_until(process, "starting the cluster")
        assert until(lambda: stop_gcs(temporary), 30)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert process.stdout is not None
        shown += process.stdout.readlines()
        assert process.wait(30) == 130, "".join(shown)
        assert time.monotonic() - began < 60, "Ray waits half a minute for its first process on some machines"
    assert shown[-1] == "rayemu: interrupted\n"
    assert nothing_is_left(temporary)


def stop_gcs(temporary: Path) -> bool:
    """Stop the process that Ray starts first, if it is there."""
    for pid in processes(temporary):
        with contextlib.suppress(OSError):
            if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                os.kill(int(pid), signal.SIGSTOP)
                return True
    return False


def test_without_loopback_a_start_is_refused_at_once(temporary: Path, tmp_path: Path) -> None:
    unshare = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("a network of one's own cannot be made here")
    began = time.monotonic()
    command = [*unshare, sys.executable, "-m", "rayemu.cli", "run", "smoke", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and time.monotonic() - began < 20
    assert re.fullmatch("rayemu: .*loopback.*\n", done.stderr)
    assert nothing_is_left(temporary)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
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
