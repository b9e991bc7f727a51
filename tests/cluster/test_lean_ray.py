"""What is replaced of Ray while it starts is put back, and waits as long as the original."""

from __future__ import annotations

import time
from typing import Any

import pytest
from ray._private import node

from rayemu.cluster.lean_ray import UNWANTED, _in_steps, lean_start


def test_ray_is_as_it_was_afterwards() -> None:
    names = (*UNWANTED, "start_raylet")
    before = [getattr(node.Node, name) for name in names], node.wait_for_persisted_port
    with pytest.raises(ZeroDivisionError), lean_start():
        replaced = [getattr(node.Node, name) for name in names], node.wait_for_persisted_port
        _ = 1 / 0
    assert ([getattr(node.Node, name) for name in names], node.wait_for_persisted_port) == before
    different = [a is not b for a, b in zip(replaced[0], before[0], strict=True)]
    assert different == [True, True, True, False] and replaced[1] is not before[1]


def test_the_port_is_waited_for_in_steps_as_long_as_before() -> None:
    steps: list[int] = []

    def wait(answer_at: int, *, timeout_ms: int) -> int:
        steps.append(timeout_ms)
        if len(steps) < answer_at:
            time.sleep(timeout_ms / 1000)
            raise RuntimeError("not yet")
        return 4711

    in_steps: Any = _in_steps(wait)
    assert in_steps(3, timeout_ms=5000) == 4711
    assert steps == [200, 200, 200]
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="not yet"):
        in_steps(1000, timeout_ms=500)
    assert 0.5 <= time.monotonic() - began < 2
