"""Where a Ray cluster has room, and what happens where a Ray that is started here has none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from rayemu import Emulator
from rayemu.cluster import local_ray
from rayemu.cluster.client_runtime import ClusterError
from rayemu.cluster.local_ray import RayStopped, may_fit
from tests.cluster.small_run import batches, check, scenario


def fits(count: int, size: int, cpus: tuple[float, ...]) -> bool:
    """By trying every way to put bundles of a size on machines."""
    return any(
        all(chosen.count(machine) * size <= number for machine, number in enumerate(cpus))
        for chosen in product(range(len(cpus)), repeat=count)
    )


def test_bundles_of_a_size_fit_as_trying_every_way_says() -> None:
    for count, size in product(range(1, 5), range(1, 5)):
        for cpus in product((0.0, 1.0, 2.5, 4.0, 7.0), repeat=2):
            assert may_fit(np.full(count, size), list(cpus)) == fits(count, size, cpus), (count, size, cpus)


def test_unlike_bundles_are_refused_by_the_largest_and_by_their_sum() -> None:
    assert may_fit(np.array([4, 1, 1]), [4.0, 2.0])
    assert not may_fit(np.array([4, 1, 1]), [3.0, 3.0])
    assert not may_fit(np.array([4, 1, 1]), [5.0])


def test_a_local_ray_without_room_is_refused_in_a_line_and_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(
        prefix="rl-", dir="/tmp"
    ) as temporary:  # short: sockets have short names
        settings = ["--set", f"cluster.modules_per_node={2 * (os.cpu_count() or 1)}"]
        out = ["--address", "local", "--out", f"{temporary}/out"]
        environment = {**os.environ, "TMPDIR": temporary, "RAY_ADDRESS": "127.0.0.1:1"}
        with subprocess.Popen(
            [sys.executable, "-m", "rayemu.cli", "run", "smoke", "-q", *settings, *out],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            _, shown = process.communicate(timeout=60)
        assert process.returncode == 2
        assert re.fullmatch("rayemu: no room on the Ray cluster: 2 emulated nodes need .*CPUs;.*\n", shown)
        assert os.listdir(temporary) == ["out"]
        assert not list(Path("/tmp/ray").glob(f"session_*_{process.pid}"))


def test_ray_is_shut_down_after_the_threads_that_wait_in_it() -> None:
    """Its shutdown under them would end this process with a segmentation fault, as it once did."""
    directory = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))
    connection = local_ray.Connection(directory)
    connection.open(None, 10)
    try:
        emulators = [Emulator(scenario(cluster={"transport": transport})) for transport in ("zmq", "ray")]
        for emulator in emulators:
            check(emulator, batches(2))
        kept = emulators[0]._backend._coordinator
        emulators[0]._backend._coordinator = None  # closing does not end it: nothing tells who waits for it
        emulators[0].close()
        assert sorted(t.name for t in threading.enumerate() if t.name in ("watch", "collect")) == [
            "collect",
            "watch",
        ], "of the other emulator"
        connection.close()
        with pytest.raises(ClusterError, match=r"coordinator died .*Ray was shut down"):
            time.sleep(1)
            emulators[1].forward(batches(1)[0])
        emulators[1].close()
        del kept
    finally:
        connection.close()
        shutil.rmtree(directory, ignore_errors=True)


def test_nobody_is_let_in_while_ray_is_shut_down() -> None:
    visitors = local_ray._Visitors()
    inside, leave, order = threading.Event(), threading.Event(), []

    def visit() -> None:
        with visitors.inside():
            inside.set()
            leave.wait(10)
            order.append("left")

    thread = threading.Thread(target=visit)
    thread.start()
    assert inside.wait(10)
    threading.Timer(0.2, leave.set).start()
    with visitors.shut_out():
        order.append("shut")
        with pytest.raises(RayStopped, match="shut down"), visitors.inside():
            order.append("in")
    with visitors.inside():
        order.append("again")
    thread.join()
    assert order == ["left", "shut", "again"]
