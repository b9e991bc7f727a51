"""The coordinator's event loop over a link without a cluster behind it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu import Scenario
from rayemu.alltoall import ALIVE
from rayemu.cluster.coordinator_runtime import CoordinatorRuntime
from rayemu.cluster.link import QueueLink
from rayemu.cluster.setup import Setup
from rayemu.model.agreement import own_arithmetic
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.messages import CLIENT, Heartbeat, Join, Notice
from rayemu.protocol.wire import Wire
from tests.views import everything


class Over(Exception):
    """Ends the loop."""


class Traffic(QueueLink):
    """A link on which something always waits: heartbeats of all modules but the silent ones."""

    def __init__(self, wire: Wire, seconds: float, beats: Callable[[], list[Any]]) -> None:
        self.sent: list[tuple[int, Any]] = []
        super().__init__("coordinator", None)
        self.wire, self.beats = wire, beats
        self.end = time.monotonic() + seconds

    def send(self, address: int, frame: list[Any]) -> None:
        self.sent.append((address, self.wire.decode(frame)))

    def receive(self, timeout_s: float) -> list[Any]:
        if time.monotonic() > self.end:
            raise Over
        time.sleep(min(0.001, timeout_s))
        return [self.wire.encode_pieces(message) for message in self.beats()]

    def notices(self) -> list[tuple[str, dict[str, Any]]]:
        found = [(m.kind, m.facts) for to, m in self.sent if to == CLIENT and isinstance(m, Notice)]
        return [(kind, facts) for kind, facts in found if kind != "totals"]


def coordinator(
    directory: Path, seconds: float, beats: Callable[[], list[Any]], replace: Callable[[int, int], None]
) -> tuple[CoordinatorRuntime, Traffic]:
    scenario = Scenario.load("smoke").with_overrides(["cluster.nodes=4", "cluster.replace_after=50 ms"])
    config = ProtocolConfig.from_scenario(scenario)
    nodes = np.arange(4, dtype=np.int32)
    setup = Setup(
        run_id="test",
        config=config,
        spec=scenario.spec,
        placement=scenario.placed(),
        module_to_node=nodes,
        seed=0,
        heartbeat=0.04,
        machine_of=nodes,
        blas_threads=1,
        zmq=None,
        links={},
        directory=str(directory),
        arithmetic=own_arithmetic(),
    )
    link = Traffic(Wire(config.codecs), seconds, beats)
    return CoordinatorRuntime(setup, link, replace, lambda module, incarnation: None), link


def nothing(module: int, incarnation: int) -> None:
    """Replaces no module."""


def joins(module: int) -> Join:
    return Join(module, 0, f"e{module}", everything(), 1, 1, "elsewhere")


def test_one_that_is_never_idle_still_sees_silence(tmp_path: Path) -> None:
    def beats() -> list[Any]:
        return [Heartbeat(module, 0, 4) for module in (0, 1, 2)]

    runtime, link = coordinator(tmp_path, 1.0, beats, nothing)
    for module in range(4):
        runtime.machine.receive(joins(module), time.monotonic())
    with pytest.raises(Over):
        runtime.run("client")
    seen = [(kind, facts["module"]) for kind, facts in link.notices()]
    assert ("suspected", 3) in seen and not {m for kind, m in seen if kind == "suspected"} - {3}


def test_a_replacement_that_cannot_be_started_is_heard_of_and_tried_again(tmp_path: Path) -> None:
    tried: list[tuple[int, int]] = []

    def beats() -> list[Any]:
        return [Heartbeat(module, 0, 4) for module in (0, 1, 3)]

    def replace(module: int, incarnation: int) -> None:
        tried.append((module, incarnation))
        if incarnation < 3:
            raise OSError("no room\nfor it")
        join = Join(module, incarnation, "e", everything(), 1, 1, "elsewhere")
        link.beats = lambda: [*beats(), join, Heartbeat(module, incarnation, 4)]
        link.end = time.monotonic() + 0.5

    runtime, link = coordinator(tmp_path, 60.0, beats, replace)
    for module in range(4):
        runtime.machine.receive(joins(module), time.monotonic())
    runtime.post_down(2, 0, "actor", "MemoryError: it was too much")
    with pytest.raises(Over):
        runtime.run("client")
    assert tried == [(2, 1), (2, 2), (2, 3)]
    told = [(kind, facts) for kind, facts in link.notices() if kind not in ("suspected", "recovered")]
    story = [(kind, facts["incarnation"], facts.get("reason")) for kind, facts in told]
    assert story[:7] == [
        ("dead", 0, "MemoryError: it was too much"),
        ("replace", 1, None),
        ("replacement_failed", 1, "OSError: for it"),
        ("replace", 2, None),
        ("replacement_failed", 2, "OSError: for it"),
        ("replace", 3, None),
        ("joined", 3, None),
    ]
    assert runtime.machine.membership.view.state.tolist() == [ALIVE] * 4
