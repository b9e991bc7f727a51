"""Heartbeats in shared memory, between real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rayemu.cluster.coordinator_runtime import LATE_BEATS
from rayemu.cluster.pulse import (
    TOTALS,
    Pulses,
    machine_busy_s,
    next_beat,
    next_look,
    process_state,
    wait_for_death,
)
from rayemu.machine import cores


def test_beats_are_seen_by_other_processes(tmp_path: Path) -> None:
    pulses = Pulses(str(tmp_path), 3)
    assert pulses.read() == [(0, 0, 0.0)] * 3
    pulses.beat(0, 7, 40, dict.fromkeys(TOTALS, 0.0))
    totals = {name: number + 0.25 for number, name in enumerate(TOTALS)}
    script = f"from rayemu.cluster.pulse import Pulses; Pulses({str(tmp_path)!r}, 3).beat(2, 5, 41, {totals})"
    before = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True)
    after = time.monotonic()
    first, second, third = pulses.read()
    assert first[:2] == (7, 40) and 0 < first[2] <= before
    assert second == (0, 0, 0.0)
    assert third[:2] == (5, 41) and before <= third[2] <= after
    assert pulses.totals(2) == totals and not any(pulses.totals(0).values())


def test_beats_are_looked_at_after_they_are_due_and_a_missing_one_stands_out() -> None:
    assert [next_beat(now, 0.5) for now in (0.0, 0.2, 0.5, 3.9)] == [0.5, 0.5, 1.0, 4.0]
    assert [next_look(now, 0.4) for now in (0.0, 0.09, 0.11, 0.49)] == pytest.approx([0.1, 0.1, 0.5, 0.5])
    interval, look = 0.04, 0.0
    for _ in range(5):
        look = next_look(look, interval)
        last_due = look // interval * interval
        assert look - last_due < interval / 2 < LATE_BEATS * interval < look - (last_due - interval)


def test_states_of_a_real_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def becomes(letters: str) -> bool:
        end = time.monotonic() + 5
        while process_state(process.pid) not in letters and time.monotonic() < end:
            time.sleep(0.005)
        return process_state(process.pid) in letters

    assert becomes("SR")
    process.send_signal(signal.SIGSTOP)
    assert becomes("T")
    process.send_signal(signal.SIGCONT)
    assert becomes("SR")
    process.kill()
    assert becomes("Z"), "killed, and not waited for"
    process.wait()
    assert process_state(process.pid) == "X"


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this system has no pidfd")
def test_the_end_of_a_thread_tells_of_its_process() -> None:
    script = (
        "import threading, time; t = threading.Thread(target=time.sleep, args=(60,), daemon=True); t.start();"
        "print(t.native_id, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    thread = int(process.stdout.readline())
    ended: list[bool] = []
    watcher = threading.Thread(target=lambda: ended.append(wait_for_death(process.pid, thread)))
    watcher.start()
    watcher.join(0.05)
    assert not ended, "it lives"
    process.kill()
    watcher.join(5)
    assert ended == [True]
    process.wait()
    process.stdout.close()
    assert wait_for_death(process.pid, thread), "gone before anyone looked"


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/stat")
def test_busy_time_grows_with_work_and_never_faster_than_time() -> None:
    began, worked = machine_busy_s(), time.process_time()
    start = time.monotonic()
    while time.process_time() < worked + 0.5:
        pass
    busy, passed = machine_busy_s() - began, time.monotonic() - start
    tick = 0.05
    assert 0.5 / cores() - tick < busy < passed + tick


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_only_the_cores_that_this_process_may_use_are_counted(tmp_path: Path) -> None:
    """On one core of several, a module has that one and shares it with all others."""
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import time, numpy as np\n"
        "from rayemu import Scenario\n"
        "from rayemu.cluster.pulse import machine_busy_s\n"
        "from rayemu.cluster.setup import Setup\n"
        "from rayemu.protocol.config import ProtocolConfig\n"
        "from rayemu.machine import cores\n"
        "s, nodes = Scenario.load('smoke'), np.zeros(2, np.int32)\n"
        "c = ProtocolConfig.from_scenario(s)\n"
        "args = ('x', c, s.spec, s.placed(), nodes, 0, 0.04, nodes, None, None, {}, 'x', None)\n"
        "fitted = Setup(*args).fitted(0)\n"
        "busy, end = machine_busy_s(), time.process_time() + 0.5\n"
        "while time.process_time() < end: pass\n"
        "print(cores(), fitted.config.modules_per_core, fitted.blas_threads, machine_busy_s() - busy)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    own, per_core, threads, busy = done.stdout.split()
    assert (own, per_core, threads) == ("1", "2.0", "1")
    assert float(busy) > 0.45  # of that core alone
