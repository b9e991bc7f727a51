"""Stopped processes are continued in time; nobody else is, and what waits ends with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayemu.cluster import resume
from rayemu.cluster.faults import LocalProcess
from rayemu.cluster.pulse import process_state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux's /proc")
Sleeper = subprocess.Popen[bytes]


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def until(done: Any, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(done())


def waiting() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "resume"]


@pytest.mark.parametrize("pidfd", [True, False], ids=["pidfd", "without"])
def test_a_hang_ends_when_its_time_is_over(
    sleeper: Sleeper, pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    began = time.monotonic()
    LocalProcess(sleeper.pid).stop(2.0)
    assert until(lambda: process_state(sleeper.pid) == "T")
    assert until(lambda: process_state(sleeper.pid) == "S")
    assert time.monotonic() - began >= 2.0
    assert until(lambda: not waiting())


@pytest.mark.parametrize("pidfd", [True, False], ids=["pidfd", "without"])
def test_the_waiting_ends_with_the_process(
    sleeper: Sleeper, pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So no signal is left that could hit whoever gets its number."""
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    LocalProcess(sleeper.pid).stop(30.0)
    assert waiting()
    sleeper.kill()
    sleeper.wait()
    assert until(lambda: not waiting())
    with pytest.raises(ProcessLookupError):
        LocalProcess(sleeper.pid).stop(30.0)
    assert not waiting()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("struck", ["in time", "killed"])
def test_a_process_that_stops_itself_is_continued_and_its_helper_ends_with_it(struck: str) -> None:
    script = (
        "import os, time; from rayemu.cluster.faults import LocalProcess;"
        "LocalProcess(os.getpid()).stop(SECONDS); print('on', flush=True); time.sleep(60)"
    ).replace("SECONDS", "0.6" if struck == "in time" else "60")
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert until(lambda: process_state(process.pid) == "T")
        (helper,) = children(process.pid)
        if struck == "in time":
            assert process.stdout.readline() == b"on\n"
        else:
            process.kill()
            process.wait()
        assert until(lambda: process_state(helper) in "XZ")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_helper_whose_parent_is_gone_touches_nobody(sleeper: Sleeper) -> None:
    os.kill(sleeper.pid, signal.SIGSTOP)  # has the number of a parent that ended
    subprocess.run(
        [sys.executable, "-I", "-S", resume.__file__, str(sleeper.pid), "0"], check=True, timeout=10
    )
    assert process_state(sleeper.pid) == "T"


def test_helpers_that_have_ended_are_let_go_of() -> None:
    """A module that hangs often has one zombie at most."""
    script = (
        "import os, time; from rayemu.cluster.faults import LocalProcess\n"
        "for _ in range(3): LocalProcess(os.getpid()).stop(0.2); time.sleep(0.3)\n"
        "print('done', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"done\n"
            assert len(children(process.pid)) <= 1
        finally:
            process.kill()
