"""A run over several machines: two that are made of kernel namespaces, with a real Ray cluster across them.

Each has a network, process numbers, a host name and temporary files of its own; they share the processors and
the file system that the code is on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ADDRESSES = ("198.51.100.1", "198.51.100.2")  # of a block that is set aside for examples
PORT = 6379
# Ray's own token would be the user's, who may have none.
SETTINGS = {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def _cannot() -> str:
    """Why machines cannot be made here; empty if they can."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "mount") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} of util-linux and iproute2 not found"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "true"], capture_output=True
    )
    return "" if tried.returncode == 0 else f"namespaces need root: {tried.stderr.decode().strip()}"


CANNOT = _cannot()
pytestmark = pytest.mark.skipif(bool(CANNOT), reason=f"two machines cannot be made here: {CANNOT}")


@dataclass
class Machine:
    """Namespaces that live as long as their first process."""

    process: subprocess.Popen[str]
    first: int  # pid of that process, as seen from outside
    temporary: Path

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "--target", str(self.first), "--net", "--mount", "--pid", "--uts", "--", *words]

    def start(self, *words: str, **settings: str) -> subprocess.Popen[str]:
        """Start a command on this machine."""
        environment = {**os.environ, **SETTINGS, "TMPDIR": str(self.temporary), **settings}
        environment.pop("RAY_ADDRESS", None)
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(self.command(*words), env=environment, text=True, **pipes)

    def run(self, *words: str, timeout_s: float = 60.0, **settings: str) -> str:
        """Run a command on this machine; return its output."""
        with self.start(*words, **settings) as process:
            shown, _ = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, shown
        return shown


def _machine(name: str, temporary: Path) -> Machine:
    """Start a machine whose temporary files and shared memory nobody else sees."""
    script = (
        f"hostname {name}; mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs {temporary}; "
        "ip link set lo up; echo up; exec sleep 1000"
    )
    namespaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        ["unshare", *namespaces, "--propagation", "private", "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return Machine(process, int(children[0]), temporary)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[Machine]]:
    temporary = Path(tempfile.mkdtemp(prefix="rm-", dir="/tmp"))  # short: sockets have short names
    made: list[Machine] = []
    ray = str(Path(sys.executable).parent / "ray")
    try:
        made += [_machine("first", temporary)]
        made += [_machine("second", temporary)]
        first, second = made
        wire = f"ip link add wire type veth peer name wire netns {second.first}"
        subprocess.run(["nsenter", "--target", str(first.first), "--net", *wire.split()], check=True)
        for machine, address in zip(made, ADDRESSES, strict=True):
            machine.run("ip", "address", "add", f"{address}/24", "dev", "wire")
            machine.run("ip", "link", "set", "wire", "up")
        common = ["--object-store-memory", str(96 << 20), "--num-cpus", "4", "--disable-usage-stats"]
        head = [ray, "start", "--head", "--port", str(PORT), "--include-dashboard=false", *common]
        first.run(*head, "--node-ip-address", ADDRESSES[0], "--temp-dir", f"{temporary}/ray")
        joining = [ray, "start", "--address", f"{ADDRESSES[0]}:{PORT}", *common]
        # Of itself this machine would compute with older kernels than the driver, which round differently.
        second.run(*joining, "--node-ip-address", ADDRESSES[1], OPENBLAS_CORETYPE="Nehalem")
        yield made
    finally:
        for machine in made:
            machine.process.kill()  # and with it everything in the machine
            machine.process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def script(settings: dict[str, Any], who: str) -> list[str]:
    """The command that runs stream_and_strike.py."""
    file = str(Path(__file__).with_name("stream_and_strike.py"))
    return [sys.executable, file, f"{ADDRESSES[0]}:{PORT}", json.dumps(settings), who]


def found_in(shown: str) -> dict[str, Any]:
    """What that script found."""
    return json.loads(shown.partition("FOUND")[2])  # type: ignore[no-any-return]


def left(machine: Machine) -> list[str]:
    """What of ours lies in a machine's temporary files."""
    return [name for name in machine.run("ls", str(machine.temporary)).split() if name != "ray"]


@pytest.mark.parametrize("transport", ["zmq", "ray"])
def test_a_run_over_two_machines(machines: list[Machine], transport: str) -> None:
    found = found_in(machines[0].run(*script({"transport": transport}, "us"), timeout_s=120))
    assert found["exact"] and found["delivered"]
    first, second, third, fourth = found["hosts"]
    assert first == second != third == fourth, "a node's modules share a machine"
    # Batches, tokens, experts of each, layers; on a busy machine some rows may be computed twice.
    assert sum(found["rows"]) >= 5 * 96 * 2 * 2
    assert min(found["rows"]) > 0, "the modules of both machines are in the record"
    assert found["of_killed_kept"]
    assert ["suspected", 2] in found["seen"] and ["dead", 3] in found["seen"]
    assert [left(machine) for machine in machines] == [[], []]


def test_a_module_that_does_not_start_says_why(machines: list[Machine]) -> None:
    first, second = machines
    blocked = f"{first.temporary}/blocked"
    first.run("mkdir", blocked)
    second.run("touch", blocked)  # a file where there must be a directory
    try:
        with pytest.raises(AssertionError, match=r"ClusterError: a module did not start: .*blocked"):
            first.run(*script({}, "us"), TMPDIR=blocked)
    finally:
        for machine in machines:
            machine.run("rm", "-r", blocked)


def test_a_machine_that_dies_takes_nothing_with_it(machines: list[Machine]) -> None:
    """The last test: there is but one machine after it."""
    first, second = machines
    with first.start(*script({}, "them")) as driver:
        assert driver.stdout is not None
        try:
            while "READY" not in (line := driver.stdout.readline()):
                assert line
            second.start("sh", "-c", "kill -9 -1").wait()  # all of its processes but the first
            found = found_in(driver.stdout.read())
        finally:
            driver.kill()
    assert found["exact"] and found["delivered"]
    dead = {module for kind, module in found["seen"] if kind == "dead"}
    assert len({found["hosts"][module] for module in dead}) == 1, "modules of one machine"
    assert [name for name in left(first) if name.startswith("rayemu-")] == []
