"""A module's event loop over a link without a cluster: what goes wrong in any thread is the module's end."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu import Scenario
from rayemu.alltoall import ALIVE
from rayemu.cluster import module_runtime as runtime_module
from rayemu.cluster.host import own_host
from rayemu.cluster.link import QueueLink
from rayemu.cluster.module_runtime import ModuleRuntime
from rayemu.cluster.pulse import Pulses
from rayemu.cluster.setup import Setup
from rayemu.model.agreement import own_arithmetic
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.epochs import slots_of, text_of
from rayemu.protocol.messages import Epoch, Slice


def module(directory: Path) -> ModuleRuntime:
    scenario = Scenario.load("smoke").with_overrides(["cluster.nodes=1", "model.layers=1"])
    setup = Setup(
        run_id="test",
        config=ProtocolConfig.from_scenario(scenario),
        spec=scenario.spec,
        placement=scenario.placed(),
        module_to_node=np.zeros(1, np.int32),
        seed=0,
        heartbeat=0.02,
        machine_of=np.zeros(1, np.int32),
        blas_threads=1,
        zmq=None,
        links={},
        directory=str(directory),
        arithmetic=own_arithmetic(),
    )
    states = np.array([ALIVE], np.uint8), np.zeros(1, np.int32)
    epoch = Epoch(1, 0, text_of(["m"]), *states, slots_of(setup.placement, np.ones(len(setup.placement))))
    return ModuleRuntime(setup, 0, 0, epoch, QueueLink("m", lambda endpoint, frame: None))


@pytest.mark.parametrize("where", ["compute", "heartbeat", "loop"])
def test_what_fails_in_any_thread_ends_the_module_with_its_reason(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = module(tmp_path)
    expected = f"its {where} thread failed: MemoryError: no room"

    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    if where == "compute":
        monkeypatch.setattr(runtime_module, "INLINE_FLOPS", 0.0)
        monkeypatch.setattr(runtime_module, "run_job", fail)
    elif where == "heartbeat":
        monkeypatch.setattr(failing.record, "totals", {})  # a heartbeat finds nothing to tell
        expected = "its heartbeat thread failed: KeyError: 'rows'"
    else:
        monkeypatch.setattr(failing.machine, "receive", fail)
        expected = "^no room"
    choices = np.tile(np.array([0, 1], np.int32), (8, 1)), np.full((8, 2), 0.5, np.float32)
    slice = Slice(0, 0, 0, 1, 0, np.ones((8, 64), np.float32), *choices)
    assert isinstance(failing.link, QueueLink)
    if where != "heartbeat":
        failing.link.post(failing.wire.encode_pieces(slice))
    ended: list[BaseException] = []

    def serve() -> None:
        try:
            failing.serve("coordinator", "client", own_host())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it goes on as if nothing had been"
    with pytest.raises((RuntimeError, MemoryError), match=expected):
        raise ended[0]
    if where != "heartbeat":  # its end would tell of a death without a reason
        pulses, now = Pulses(str(tmp_path), 1), time.monotonic()
        time.sleep(0.1)
        assert pulses.read()[0][2] > now
