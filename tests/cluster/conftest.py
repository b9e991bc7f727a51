"""What several tests of the running system share."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayemu.cluster import local_ray
from rayemu.cluster.host import processes_in


@pytest.fixture(scope="module")
def one_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start Ray once for a file of tests: emulators join it and end only what is theirs."""
    directory = Path(tempfile.mkdtemp(prefix="rayemu-test-"))  # short: sockets have short names
    connection = local_ray.Connection(directory)
    connection.open(None, 10)
    assert connection.ours
    started = b" ".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in processes_in(directory))
    assert sys.platform != "linux" or b"raylet" in started
    assert not [name for name in (b"/dashboard.py", b"/monitor.py", b"/log_monitor.py") if name in started]
    yield
    connection.close()
    shutil.rmtree(directory, ignore_errors=True)
