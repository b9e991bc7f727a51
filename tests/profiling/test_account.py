"""Figures of processor time from a hand-made run of one module, coordinator, driver and Ray."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rayemu.profiling.account import Window, account, stacks
from rayemu.profiling.meters import Calls, Metered
from rayemu.profiling.processes import RAY, Thread, Used
from rayemu.profiling.speedscope import SCHEMA, speedscope

PRODUCT, DECODE = "rayemu.numerics.products:exact_matmul", "rayemu.protocol.wire:Wire.decode"
FRAME = "rayemu.drivers.pump:ModulePump.on_frame"


def used(scale: float) -> list[Used]:
    """A module of 6 s, in which the profiler has 1 s; a coordinator of 2 s, and 1 s of Ray's."""
    module = {
        10: Thread("ray::Module", 1.5 * scale, 0.5 * scale),
        11: Thread("ray::Module", 2.0 * scale, 0.0),  # compute
        12: Thread("ZMQbg/IO/0", 0.5 * scale, 0.0),
        13: Thread("ray::module-0", 0.75 * scale, 0.0),  # nobody's: BLAS
        14: Thread("grpc_global_tim", 0.25 * scale, 0.0),
        15: Thread("ray::Module", 1.0 * scale, 0.0),  # the profiler
    }
    return [
        Used("module 0", 10, 6.0 * scale, module),
        Used("coordinator", 20, 2.0 * scale, {20: Thread("ray::Coord", 2.0 * scale, 0.0)}),
        Used(RAY, 30, 1.0 * scale, {30: Thread("raylet", 1.0 * scale, 0.0)}),
    ]


def metered(scale: float) -> list[Metered]:
    calls = round(10 * scale)
    loop = Calls(
        inside={
            FRAME: Calls(calls, 1.0 * scale, 4.0 * scale, {DECODE: Calls(calls, 0.75 * scale, 1.0 * scale)})
        }
    )
    compute = Calls(inside={PRODUCT: Calls(calls, 1.25 * scale, 2.0 * scale)})
    threads = [("MainThread", 10, loop), ("compute", 11, compute), ("profiler", 15, Calls())]
    return [
        Metered("module 0", 10, 1e-6, threads),
        Metered("coordinator", 20, 1e-6, [("MainThread", 20, Calls())]),
    ]


@pytest.fixture
def figures() -> dict[str, Any]:
    return account(
        (used(1.0), used(3.0)), (metered(1.0), metered(3.0)), Window(0.0, 8.0, batches=4, layers=2)
    )


def test_processes_and_threads(figures: dict[str, Any]) -> None:
    assert figures["processor_s"] == 10.0 + 4.0 + 2.0  # twice what `used` says, without the profiler
    assert {name: of["processor_s"] for name, of in figures["processes"].items()} == {
        "module 0": 10.0,
        "coordinator": 4.0,
        "Ray": 2.0,
    }
    modules = {name: of["processor_s"] for name, of in figures["threads"]["modules"].items()}
    assert modules.pop("profiler") == figures["profiler_thread_s"] == 2.0
    assert modules == {"compute": 4.0, "loop": 3.0, "BLAS": 1.5, "ZeroMQ": 1.0, "Ray's own": 0.5}
    assert figures["threads"]["modules"]["loop"]["ready_wall_s"] == 1.0


def test_phases_add_up_to_the_processes(figures: dict[str, Any]) -> None:
    assert figures["phases"]["modules"] == {
        "products": 2.5 + 1.5,  # BLAS's own threads with them
        "other": 1.5 + 1.0,  # of compute and of the loop
        "receive": 2.0,
        "ZeroMQ": 1.0,
        "Ray's own": 0.5,
    }
    assert figures["phases_to_processes"] == 1.0
    assert figures["processor_to_products"] == 16.0 / 4.0
    assert figures["other"] == {"coordinator: loop": 4.0, "modules: compute": 1.5, "modules: loop": 1.0}
    assert figures["off_processor_wall_s"][f"modules: loop in {FRAME}"] == pytest.approx(6.0 - 0.5)


def test_functions_are_without_what_they_call(figures: dict[str, Any]) -> None:
    assert [(f["function"], f["phase"], f["calls"], f["own_processor_s"]) for f in figures["functions"]] == [
        (PRODUCT, "products", 20, 2.5),
        (DECODE, "receive", 20, 1.5),
        (FRAME, "receive", 20, 0.5),
    ]
    assert figures["meters_s"] == pytest.approx(60e-6)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_threads_without_a_name_multiply_in_modules_only() -> None:
    after = [Used("coordinator", 20, 3.0, {21: Thread("ray::Coord", 3.0, 0.0)})]
    found = account(([], after), ([], []), Window(0.0, 1.0, 1, 1))
    assert found["phases"]["all"] == found["phases"]["coordinator"] == {"other": 3.0}
    assert found["other"] == {"coordinator: BLAS": 3.0} and found["processor_to_products"] is None


def test_a_module_that_came_in_between_counts_from_nothing() -> None:
    before, after = used(1.0), used(3.0)
    found = account((before[1:], after), (metered(1.0)[1:], metered(3.0)), Window(0.0, 1.0, 1, 1))
    assert found["processes"]["module 0"]["processor_s"] == 15.0
    assert found["phases"]["modules"]["products"] == 3.75 + 2.25


def test_where_the_kernel_tells_nothing_phases_are_left() -> None:
    found = account(([], []), (metered(1.0), metered(3.0)), Window(0.0, 1.0, 1, 1))
    assert found["processor_s"] == 0.0 and found["processor_to_products"] is None
    assert found["phases"]["all"] == {"products": 2.5, "receive": 2.0}


def check_speedscope(content: dict[str, Any]) -> None:
    """What the schema and speedscope's reader ask of sampled profiles."""
    assert content["$schema"] == SCHEMA and content["profiles"]
    frames = content["shared"]["frames"]
    assert all(isinstance(frame["name"], str) for frame in frames)
    for profile in content["profiles"]:
        assert profile["type"] == "sampled" and profile["unit"] == "seconds"
        assert len(profile["samples"]) == len(profile["weights"]) > 0
        assert all(stack and all(0 <= frame < len(frames) for frame in stack) for stack in profile["samples"])
        assert all(weight > 0 for weight in profile["weights"])
        assert profile["startValue"] == 0 and profile["endValue"] == sum(profile["weights"])
    assert 0 <= content["activeProfileIndex"] < len(content["profiles"])


def test_the_flame_graph_has_every_thread_s_seconds() -> None:
    content = speedscope("x", stacks((used(1.0), used(3.0)), (metered(1.0), metered(3.0))))
    check_speedscope(content)
    ends = {profile["name"]: profile["endValue"] for profile in content["profiles"]}
    assert ends["module 0: loop"] == 3.0 and ends["module 0: compute"] == 4.0
    assert sum(ends.values()) == 18.0  # all, with the profiler's two
    loop = next(p for p in content["profiles"] if p["name"] == "module 0: loop")
    names = [[content["shared"]["frames"][i]["name"] for i in stack] for stack in loop["samples"]]
    assert dict(zip(map(tuple, names), loop["weights"], strict=True)) == {
        (FRAME,): 0.5,
        (FRAME, DECODE): 1.5,
        ("loop: other",): 1.0,
    }
