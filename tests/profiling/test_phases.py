"""The table of phases names functions that are there."""

from __future__ import annotations

import pytest

from rayemu.profiling.phases import GARBAGE, MEANS, OTHER, PRODUCTS, TABLE, THREADS, found, phase_of

NAMES = [name for _, names in TABLE for name in names]


@pytest.mark.parametrize("name", NAMES)
def test_every_function_of_the_table_is_there(name: str) -> None:
    owner, attribute, function = found(name)
    assert getattr(owner, attribute) is function and callable(function)


@pytest.mark.parametrize(
    "name",
    ["rayemu.nonesuch:f", "rayemu.emulator:nonesuch", "rayemu.alltoall.plan:Parcel", "rayemu.emulator:F32"],
)
def test_a_function_that_is_not_there_is_noticed(name: str) -> None:
    with pytest.raises((ImportError, AttributeError, TypeError)):
        found(name)


def test_every_phase_is_explained_and_no_function_is_twice() -> None:
    phases = {phase for phase, _ in TABLE} | {*THREADS.values(), GARBAGE, OTHER}
    assert phases == set(MEANS)
    assert len(set(NAMES)) == len(NAMES)


def test_what_is_told_apart_within_something_else_goes_first() -> None:
    product, route = "rayemu.numerics.products:exact_matmul", "rayemu.model.reference:route"
    job, reply = "rayemu.protocol.server:run_job", "rayemu.protocol.home:Home.on_reply"
    frame = "rayemu.drivers.pump:ModulePump.on_frame"
    assert phase_of([job, product]) == PRODUCTS
    assert phase_of([frame, reply, route, product]) == "route"
    assert phase_of([frame, reply]) == "settle" and phase_of([frame]) == "receive"
    assert phase_of([frame, reply, GARBAGE]) == GARBAGE
    assert phase_of([]) == phase_of(["someone.else:f"]) == OTHER
