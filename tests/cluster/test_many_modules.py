"""As many modules as a model has experts, on however few cores: for minutes, not seconds.

`bash launch/test.sh --slow -k many_modules` runs it.
"""

from __future__ import annotations

import time

import numpy as np
import pytest

from rayemu import Emulator
from tests.cluster.small_run import alive, scenario

MODULES = 128


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_modules_start_compute_exactly_and_end() -> None:
    """128 modules of one fine-grained expert each; every batch gives rows to all of them.

    A process takes about a second of processor time to start, so on 2 cores the start alone takes more than
    a minute. Patience is for those who wait: what is asked of the run is that nothing is lost, nobody is
    taken for dead, and no process is left.
    """
    given = scenario(
        model={"d_model": 64, "d_ff": 32, "experts": MODULES, "top_k": 8, "layers": 2},
        cluster={"nodes": 8, "modules_per_node": MODULES // 8, "transport": "zmq", "evict_after": "2 min"},
        placement={"copies": 1},
        exchange={"min_slice_rows": 64},
    )
    rng = np.random.default_rng(3)
    inputs = [rng.standard_normal((1024, 64), dtype=np.float32) for _ in range(4)]
    with Emulator(given) as emulator:
        pids = dict(emulator.pids)
        assert len(pids) == MODULES
        results = list(emulator.stream(inputs))
        for x, result in zip(inputs, results, strict=True):
            assert (result.delivered == 1).all()
            assert (result.expert_tokens > 0).all(), "an expert had nothing to do"
            assert np.array_equal(emulator.reference(x, result), result.y)
        dead = [notice for notice in emulator.take_notices() if notice.kind == "dead"]
        assert not dead
    end = time.monotonic() + 60
    while left := [pid for pid, _ in pids.values() if alive(pid)]:
        assert time.monotonic() < end, f"{len(left)} modules did not end"
        time.sleep(0.2)
