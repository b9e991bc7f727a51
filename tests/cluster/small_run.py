"""A small run on real Ray, and what its tests ask of it."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import pytest

from rayemu import Emulator, Scenario
from rayemu.machine import cores

BASE: dict[str, Any] = {
    "model": {"d_model": 64, "d_ff": 128, "experts": 8, "top_k": 2, "layers": 2},
    "cluster": {"nodes": 2, "modules_per_node": 2},
    "placement": {"copies": 2},
    "exchange": {"min_slice_rows": 16},
    "run": {"seed": 5},
}

NEEDS_TURNS = pytest.mark.skipif(
    sys.platform != "linux" or cores() >= 4,
    reason="needs the semaphores of Linux and fewer cores than modules: 4",
)


def scenario(**sections: dict[str, Any]) -> Scenario:
    data = {key: dict(value) for key, value in BASE.items()}
    for key, value in sections.items():
        data[key] = {**data.get(key, {}), **value}
    return Scenario.from_dict(data)


def batches(count: int, rows: int = 96, width: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [rng.standard_normal((rows, width), dtype=np.float32) for _ in range(count)]


def check(emulator: Emulator, inputs: list[np.ndarray]) -> None:
    results = list(emulator.stream(inputs))
    assert len(results) == len(inputs)
    for x, result in zip(inputs, results, strict=True):
        assert (result.delivered == 1).all()
        assert np.array_equal(emulator.reference(x, result), result.y)


def wait_for(emulator: Emulator, kind: str, module: int, seconds: float = 30.0) -> Any:
    """Wait for a notice about a module."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for notice in emulator.take_notices():
            if notice.kind == kind and notice.facts["module"] == module:
                return notice
        emulator.poll()
        time.sleep(0.01)
    raise AssertionError(f"module {module} was never {kind}")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
