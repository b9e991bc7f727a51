"""Processor time of this process and those that it started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from rayemu.benchmarks import processor
from rayemu.benchmarks.processor import Meter, descendants, process_seconds

pytestmark = pytest.mark.skipif(not processor.AVAILABLE, reason=processor.UNAVAILABLE)

# Works for as many seconds of processor time as it is told, in a thread that ends, and answers; ends on 0.
WORKER = """
import sys, threading, time
def work(seconds):
    began = time.thread_time()
    while time.thread_time() - began < seconds: pass
for line in iter(sys.stdin.readline, "0\\n"):
    thread = threading.Thread(target=work, args=(float(line),))
    thread.start(); thread.join(); print("done", flush=True)
"""


class Worker:
    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", WORKER], **pipes)  # type: ignore[call-overload]
        self.pid = self.process.pid
        self.work(0.001)

    def work(self, seconds: float) -> None:
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.communicate("0\n")


@pytest.fixture
def worker() -> Iterator[Worker]:
    one = Worker()
    yield one
    one.end()


def test_ended_threads_count(worker: Worker) -> None:
    before = process_seconds(worker.pid)
    worker.work(0.05)
    assert 0.05 <= process_seconds(worker.pid) - before < 0.15
    assert process_seconds(os.getpid()) == pytest.approx(time.process_time(), abs=0.05)


def test_a_window_counts_what_other_processes_use_in_it(worker: Worker) -> None:
    assert worker.pid in descendants(os.getpid())
    meter = Meter()
    with meter.window():
        worker.work(0.05)
    assert meter.used is not None and set(meter.used) >= {"driver", "ray"}
    assert 0.05 <= meter.used["ray"] < 0.15 and meter.used["driver"] < 0.05
    worker.work(0.05)
    with meter.window():
        pass
    assert meter.used["ray"] < 0.02


def test_processes_apart_are_not_counted(worker: Worker) -> None:
    meter = Meter(apart=[worker.pid])
    with meter.window():
        worker.work(0.05)
    assert meter.used is not None and meter.used.get("ray", 0.0) < 0.02


def test_what_begins_in_a_window_counts_and_what_ends_in_it_leaves_no_figure() -> None:
    meter = Meter()
    with meter.window():
        late = Worker()
        late.work(0.05)
    assert meter.used is not None and meter.used["ray"] >= 0.05
    with meter.window():
        late.end()
    assert meter.used is None


def test_elsewhere_than_on_linux_there_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "AVAILABLE", False)
    meter = Meter()
    with meter.window():
        pass
    assert meter.used is None
