"""The shell scripts' choice of an interpreter, with pretended ones on the PATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"


def shell(command: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with the functions of environment.sh, seeing only the interpreters in `path`."""
    tools = ["bash", "cat", "cksum", "dirname"]
    for tool in tools:
        real = next(Path(p, tool) for p in os.environ["PATH"].split(os.pathsep) if Path(p, tool).exists())
        (path / tool).symlink_to(real)
    return subprocess.run(
        [str(path / "bash"), "-euc", f'source "$1"\n{command}', "-", str(LAUNCH / "environment.sh")],
        env={"PATH": str(path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def pretend(path: Path, name: str, *, works: bool) -> None:
    file = path / name
    file.write_text(f'#!/bin/sh\n{f"exec {sys.executable} " if works else "exit 3 # "}"$@"\n')
    file.chmod(0o755)


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda p: p.name)
def test_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=60)


def test_the_first_interpreter_that_works_is_taken(tmp_path: Path) -> None:
    pretend(tmp_path, "python3", works=False)
    pretend(tmp_path, "python3.12", works=True)
    found = shell("find_python", tmp_path)
    assert (found.returncode, found.stdout) == (0, "python3.12\n")


def test_no_interpreter_is_said(tmp_path: Path) -> None:
    pretend(tmp_path, "python3", works=False)
    found = shell("find_python", tmp_path)
    assert found.returncode == 1
    assert "no Python 3.10 to 3.14 found" in found.stderr


def test_a_chosen_interpreter_must_work(tmp_path: Path) -> None:
    pretend(tmp_path, "python3", works=True)
    found = shell("find_python", tmp_path, PYTHON="python2")
    assert found.returncode == 1
    assert "PYTHON=python2" in found.stderr


def test_a_chosen_interpreter_is_taken(tmp_path: Path) -> None:
    pretend(tmp_path, "python3", works=False)
    found = shell("find_python", tmp_path, PYTHON=sys.executable)
    assert (found.returncode, found.stdout) == (0, f"{sys.executable}\n")


def test_the_fingerprint_is_of_version_and_pins(tmp_path: Path) -> None:
    first = shell("fingerprint 3.11; fingerprint 3.12", tmp_path).stdout.splitlines()
    assert first[0] != first[1]
    assert first[0].split()[1:] == first[1].split()[1:]
