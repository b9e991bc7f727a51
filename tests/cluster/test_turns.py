"""Turns at the processor: no more at once than there are, none lost with a process, nobody kept for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayemu import doctor
from rayemu.cluster import turns
from rayemu.cluster.turns import Turns, close_turns

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs the semaphores of Linux")


def semaphores() -> set[str]:
    """The numbers of all sets in the system."""
    return {line.split()[1] for line in Path("/proc/sysvipc/sem").read_text().splitlines()[1:]}


def number(directory: Path) -> str:
    """The number of a run's set."""
    return (directory / "turns").read_text().split()[0]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    Turns(tmp_path, 2)
    yield tmp_path
    close_turns(tmp_path)


def never() -> bool:
    return False


def _work(directory: Path, pipe: Any, seconds: float, times: int) -> None:
    own = Turns(directory)
    pipe.send("ready")
    pipe.recv()
    for _ in range(times):
        with own.one(never):
            began = time.monotonic()
            pipe.send((began, None))
            time.sleep(seconds)
            pipe.send((began, time.monotonic()))
    pipe.close()


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Any]]:
    context = multiprocessing.get_context("spawn")
    started = []

    def run(seconds: float, times: int = 1, at_once: bool = True) -> Any:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(directory, theirs, seconds, times), daemon=True)
        process.start()
        theirs.close()
        started.append(process)
        assert ours.recv() == "ready"
        if at_once:
            ours.send("go")
        return process, ours

    yield run
    for process in started:
        process.kill()
        process.join()


def spans(pipe: Any) -> list[tuple[float, float]]:
    found = []
    try:
        while True:
            began, ended = pipe.recv()
            if ended is not None:
                found.append((began, ended))
    except EOFError:
        return found


def test_no_more_at_once_than_there_are_turns(start: Callable[..., Any]) -> None:
    pipes = [start(0.02, 6, at_once=False)[1] for _ in range(5)]
    for pipe in pipes:
        pipe.send("go")
    held = [span for pipe in pipes for span in spans(pipe)]
    assert len(held) == 30
    at_once = [sum(began <= moment < ended for began, ended in held) for moment, _ in held]
    assert max(at_once) == 2


def test_a_killed_holder_gives_its_turn_back(start: Callable[..., Any], directory: Path) -> None:
    holders = [start(60.0) for _ in range(2)]
    for _, pipe in holders:
        pipe.recv()
    _, waiting = start(0.0)
    assert not waiting.poll(1.0)
    holders[0][0].kill()
    assert waiting.poll(30.0)


def test_nobody_waits_for_a_stopped_holder_in_a_hurry(start: Callable[..., Any], directory: Path) -> None:
    for process, pipe in [start(60.0) for _ in range(2)]:
        pipe.recv()
        os.kill(process.pid, signal.SIGSTOP)
    looks = []

    def hurry() -> bool:
        looks.append(time.monotonic())
        return len(looks) > 3

    with Turns(directory).one(hurry):
        pass
    assert len(looks) == 4 and looks[-1] - looks[0] >= 0.25  # it waited in between
    with Turns(directory).one(lambda: True):
        pass


def test_an_error_in_the_block_gives_the_turn_back(directory: Path) -> None:
    own = Turns(directory)
    for _ in range(5):
        with pytest.raises(ZeroDivisionError), own.one(never):
            _ = 1 / 0


class _Noting:
    """A C library that notes the sets that this process makes."""

    def __init__(self, libc: Any) -> None:
        self.libc, self.made = libc, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.libc, name)

    def semget(self, *args: int) -> int:
        made = int(self.libc.semget(*args))
        self.made.append(str(made))
        return made


def _open_at_once(directory: Path, barrier: Any, found: Any) -> None:
    libc = _Noting(turns._libc())
    turns._libc = lambda: libc  # type: ignore[assignment, return-value]
    barrier.wait()
    Turns(directory, 1)
    found.put((number(directory), libc.made))


def test_those_who_open_turns_at_once_share_them(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, found = context.Barrier(6), context.Queue()
    started = [
        context.Process(target=_open_at_once, args=(tmp_path, barrier, found), daemon=True) for _ in range(6)
    ]
    for process in started:
        process.start()
    numbers, made = zip(*(found.get(timeout=60) for _ in started), strict=True)
    for process in started:
        process.join()
    assert len(set(numbers)) == 1
    assert semaphores() & set().union(*made) == set(numbers), "who came second removed what it had made"
    assert [file.name for file in tmp_path.iterdir()] == ["turns"]
    close_turns(tmp_path)


def test_without_turns_nobody_waits(tmp_path: Path) -> None:
    with Turns(tmp_path).one(never):
        pass
    close_turns(tmp_path)


def test_closing_leaves_nothing_and_sends_waiters_on(tmp_path: Path) -> None:
    Turns(tmp_path, 1)
    assert number(tmp_path) in semaphores()
    own = Turns(tmp_path)
    with own.one(never):
        close_turns(tmp_path)
        assert number(tmp_path) not in semaphores()
        with Turns(tmp_path).one(never), own.one(never):
            pass


def test_another_ones_semaphores_are_left_alone(directory: Path, tmp_path_factory: Any) -> None:
    ours, mark = (directory / "turns").read_text().split()
    stranger = tmp_path_factory.mktemp("stranger")
    (stranger / "turns").write_text(f"{ours} {int(mark) % 32767 + 1}")
    close_turns(stranger)
    assert ours in semaphores()
    with Turns(directory).one(never), Turns(directory).one(never), Turns(stranger).one(never):
        pass  # both turns are taken


def test_the_doctor_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    run = tmp_path / "rayemu-0123abcd"
    run.mkdir()
    (run / "owner").write_text(str(2**22 + 1))  # no such process
    Turns(run, 2)
    left = number(run)
    assert left in semaphores()
    assert doctor.check_stale_directories(tmp_path, fix=True).state == doctor.OK
    assert left not in semaphores()
