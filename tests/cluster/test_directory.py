"""Where a run's files can lie: paths that sockets and Ray can take, on a disk with room."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from rayemu import Emulator, Scenario
from rayemu.cluster import directory as scratch
from rayemu.cluster.client_runtime import ClusterError
from rayemu.cluster.directory import SOCKET_PATH, path_fault

STRANGE = ["ü", "#", "|", "'", "\\", "\n", "\udcff"]


@pytest.fixture
def short() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


def test_the_longest_path_that_is_let_through_is_the_longest_that_the_system_takes(short: Path) -> None:
    def bindable(temporary: Path) -> bool:
        path = Path(f"{temporary}{SOCKET_PATH}")
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.bind(str(path))
            except OSError:
                return False
        return True

    for more in range(30, 75):
        temporary = short / ("x" * more)
        assert bindable(temporary) == (not path_fault(temporary, with_ray=False)), more
    # Two letters of UTF-8 a character: it is bytes that count.
    assert "too long" in path_fault(Path("/tmp/" + "ü" * 40), with_ray=False)


def test_macos_has_a_directory_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/var/folders/q5/h1mzjv3n6gd8kx1yq0d5cg7r0000gn/T")
    assert scratch.temporary_directory() == Path(tempfile.gettempdir())
    monkeypatch.setattr(scratch.sys, "platform", "darwin")
    assert scratch.temporary_directory() == Path("/tmp")
    monkeypatch.setattr(tempfile, "tempdir", "/opt/t")
    assert scratch.temporary_directory() == Path("/opt/t")


@pytest.mark.parametrize("character", STRANGE)
def test_strange_characters_are_named_with_the_remedy(
    character: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", f"/tmp/a{character}b")
    for address in (None, "127.0.0.1:6379"):
        smoke = Scenario.load("smoke").with_overrides([f"cluster.address={address}"] if address else [])
        with pytest.raises(ClusterError, match=r"characters.*TMPDIR") as caught:
            Emulator(smoke)
        assert repr(character) in str(caught.value)


def test_a_full_disk_and_a_missing_directory_are_named_with_the_remedy(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short / "none"))
    with pytest.raises(ClusterError, match="none: No such file or directory; set TMPDIR"):
        Emulator(Scenario.load("smoke"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda path: SimpleNamespace(free=100 << 10))
    with pytest.raises(ClusterError, match=r"has 100 KiB free.*set TMPDIR"):
        Emulator(Scenario.load("smoke"))
    assert os.listdir(short) == []


def test_other_characters_and_a_home_that_cannot_be_written_are_no_obstacle(
    short: Path, tmp_path: Path
) -> None:
    temporary = short / '" $;%'
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "HOME": "/proc/none"}
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "rayemu.cli", "run", "smoke", "-q", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("smoke: exact, ")
    assert os.listdir(temporary) == []
