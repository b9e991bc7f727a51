"""Meters read what functions take, in whatever thread, and leave nothing behind."""

from __future__ import annotations

import gc
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import rayemu.model.expert
from rayemu.emulator import as_rows
from rayemu.model.expert import Expert, expert_forward
from rayemu.numerics import products
from rayemu.profiling.meters import Calls, Meters, paths, read_meters
from rayemu.profiling.phases import GARBAGE
from rayemu.protocol.wire import Wire

PRODUCT, ACTIVATION = "rayemu.numerics.products:exact_matmul", "rayemu.model.expert:activated"


@pytest.fixture
def meters(tmp_path: Path) -> Iterator[Meters]:
    running = Meters(tmp_path, "test", "module 3")
    yield running
    running.stop()


def forward(rows: int = 256) -> None:
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((64, 256), np.float32), rng.standard_normal((128, 64), np.float32)
    expert_forward(Expert(up, down), rng.standard_normal((rows, 64), np.float32))


def told(meters: Meters, tmp_path: Path) -> dict[str, Calls]:
    """By thread, what the file says."""
    meters._write()
    (metered,) = read_meters(tmp_path)
    assert metered.process == "module 3" and 0 < metered.call_s < 1e-3
    return {name: top for name, _, top in metered.threads}


def test_calls_are_counted_in_the_thread_that_makes_them(meters: Meters, tmp_path: Path) -> None:
    threads = [threading.Thread(target=forward, name=f"compute-{n}") for n in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    found = told(meters, tmp_path)
    for n in range(2):
        inside = found[f"compute-{n}"].inside
        assert (inside[PRODUCT].calls, inside[ACTIVATION].calls) == (2, 1)
        assert 0 < inside[PRODUCT].processor_s
    assert PRODUCT not in found.get("MainThread", Calls()).inside


def test_seconds_agree_with_the_thread_s_own_clock(meters: Meters, tmp_path: Path) -> None:
    forward()
    before = sum(own for _, _, own, _ in paths(told(meters, tmp_path)["MainThread"]))
    x, w = np.ones((512, 512), np.float32), np.ones((512, 512), np.float32)
    began = time.thread_time()
    for _ in range(20):
        products.exact_matmul(x, w)
    took_s = time.thread_time() - began
    seen_s = sum(own for _, _, own, _ in paths(told(meters, tmp_path)["MainThread"])) - before
    assert seen_s == pytest.approx(took_s, rel=0.05, abs=1e-3)


def test_garbage_is_told_apart(meters: Meters, tmp_path: Path) -> None:
    forward(1)  # the thread is known
    gc.collect()
    top = told(meters, tmp_path)["MainThread"]
    assert top.inside[GARBAGE].calls >= 1 and top.inside[GARBAGE].processor_s > 0


def test_errors_go_through_and_the_way_back_is_found(meters: Meters, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="dtype"):
        rayemu.emulator.as_rows(np.zeros((2, 2), np.int32), 2)
    forward(1)
    top = told(meters, tmp_path)["MainThread"]
    assert PRODUCT in top.inside and top.inside["rayemu.emulator:as_rows"].calls == 1


def test_functions_are_put_back_wherever_they_were_imported_to(tmp_path: Path) -> None:
    before = products.exact_matmul, rayemu.model.expert.exact_matmul, Wire.decode, rayemu.emulator.as_rows
    meters = Meters(tmp_path, "test", "driver")
    during = products.exact_matmul, rayemu.model.expert.exact_matmul, Wire.decode, rayemu.emulator.as_rows
    meters.stop()
    after = products.exact_matmul, rayemu.model.expert.exact_matmul, Wire.decode, rayemu.emulator.as_rows
    assert after == before and not set(during) & set(before) and as_rows is before[3]
    assert not any("Meters" in str(callback) for callback in gc.callbacks)


def test_what_was_imported_meanwhile_gets_the_functions_back(tmp_path: Path) -> None:
    before = products.exact_matmul
    meters = Meters(tmp_path, "test", "driver")
    late = types.ModuleType("rayemu.late")  # as one that says `from ... import exact_matmul`
    late.product, sys.modules["rayemu.late"] = products.exact_matmul, late  # type: ignore[attr-defined]
    try:
        meters.stop()
        assert late.product is before  # type: ignore[attr-defined]
    finally:
        del sys.modules["rayemu.late"]


def test_paths_are_without_what_they_call() -> None:
    inner = Calls(4, 2.0, 3.0)
    top = Calls(inside={"f": Calls(1, 5.0, 9.0, {"g": inner}), "running": Calls(0, 0.0, 0.0, {"g": inner})})
    assert list(paths(top)) == [
        (("f",), 1, 3.0, 6.0),
        (("f", "g"), 4, 2.0, 3.0),
        (("running",), 0, 0.0, 0.0),
        (("running", "g"), 4, 2.0, 3.0),
    ]
