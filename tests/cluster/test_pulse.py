"""Heartbeats in shared memory, between real processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from rayemu.cluster.pulse import Pulses


def test_beats_are_seen_by_other_processes(tmp_path: Path) -> None:
    pulses = Pulses(str(tmp_path), 3)
    assert pulses.read() == [(0, 0.0)] * 3
    pulses.beat(0, 7)
    script = f"from rayemu.cluster.pulse import Pulses; Pulses({str(tmp_path)!r}, 3).beat(2, 5)"
    before = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True)
    after = time.monotonic()
    first, second, third = pulses.read()
    assert first[0] == 7 and 0 < first[1] <= before
    assert second == (0, 0.0)
    assert third[0] == 5 and before <= third[1] <= after
