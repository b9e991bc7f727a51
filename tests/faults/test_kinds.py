"""What every kind of fault keeps to, whichever it is; and how one that a message tells of is made."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rayemu.faults
from rayemu.faults import (
    FAULTS,
    UNTIL_THE_END_S,
    ActiveFaults,
    Delay,
    Drop,
    Fault,
    Hang,
    Kill,
    Slow,
    fault_of,
)

PARAMETERS = [(kind, name) for kind, fault in FAULTS.items() for name in fault.parameters()]
# Of each parameter, by its meaning: what can be, and what cannot.
POSSIBLE = {"rate": [1e-9, 0.3, 1, 1.0], "delay": [0, 0.0, 2.5], "factor": [1.001, 3, 1e6]}
IMPOSSIBLE = {"rate": [0, -0.1, 1.01], "delay": [-1e-9, -3], "factor": [1, 0.5, 0, -4]}


class Struck:
    """A process that notes what happens to it."""

    def __init__(self) -> None:
        self.blows: list[tuple[str, float]] = []

    def kill(self) -> None:
        self.blows.append(("kill", 0.0))

    def stop(self, seconds: float) -> None:
        self.blows.append(("stop", seconds))


def sent(kind: type[Fault], seed: int, frames: list[list[np.ndarray]], shared: bool) -> list[Any]:
    """What becomes of frames under a fault: their bytes and the delays of their copies."""
    active = ActiveFaults(np.random.default_rng(seed))
    often = {"rate": 0.5} if "rate" in kind.parameters() else {}
    active.begin(kind(**often), 1.0)
    found = [active.through(frame, 0.5, shared) for frame in frames]
    return [([piece.tobytes() for piece in pieces], delays) for pieces, delays in found]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(list(FAULTS.values())),
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=6),
    shared=st.booleans(),
)
def test_a_seed_says_what_becomes_of_frames_and_the_sender_s_are_left_alone(
    kind: type[Fault], seed: int, sizes: list[list[int]], shared: bool
) -> None:
    rng = np.random.default_rng(7)
    frames = [[rng.integers(0, 256, size, np.uint8) for size in (8, *others)] for others in sizes]
    kept = [[piece.copy() for piece in frame] for frame in frames]
    for frame in frames:
        for piece in frame:
            piece.flags.writeable = False
    lists = [list(map(id, frame)) for frame in frames]
    assert sent(kind, seed, frames, shared) == sent(kind, seed, frames, shared)
    assert [list(map(id, frame)) for frame in frames] == lists
    for frame, before in zip(frames, kept, strict=True):
        assert all(np.array_equal(piece, old) for piece, old in zip(frame, before, strict=True))


def test_what_lies_in_shared_memory_is_handed_on_as_it_is() -> None:
    frame = [np.zeros(8, np.uint8), np.zeros(8, np.uint8), np.zeros(8, np.uint8)]
    for kind in FAULTS.values():
        active = ActiveFaults(np.random.default_rng(3))
        active.begin(kind(), 1.0)
        for _ in range(200):
            pieces, _ = active.through(frame, 0.0, shared=True)
            assert pieces[1] is frame[1], kind


@pytest.mark.parametrize(("kind", "name"), PARAMETERS)
def test_a_parameter_that_cannot_work_is_refused_by_its_name(kind: str, name: str) -> None:
    for value in POSSIBLE[name]:
        assert getattr(FAULTS[kind](**{name: value}), name) == value
    for value in [*IMPOSSIBLE[name], math.nan, math.inf, -math.inf, "much", None, True, [0.5]]:
        with pytest.raises(ValueError, match=f"^{name}: .* is not allowed; allowed: ") as refused:
            fault_of({"kind": kind, "for": 1.0, name: value})
        assert repr(value) in str(refused.value)


def test_a_parameter_means_the_same_in_all_kinds() -> None:
    """A scenario has one key for it."""
    seen: dict[str, tuple[Any, Any]] = {}
    for kind in FAULTS.values():
        hints = get_type_hints(kind)
        for one in dataclasses.fields(kind):
            assert one.default is not dataclasses.MISSING, "a kind's name alone must be enough"
            meaning = hints[one.name], one.metadata.get("unit")
            assert seen.setdefault(one.name, meaning) == meaning
    assert FAULTS["delay"].parameters() == {"rate": "rate", "delay": "delay_s"}, "what reports call them"


def test_every_kind_is_in_the_table() -> None:
    found: set[type] = set()
    for info in pkgutil.iter_modules(rayemu.faults.__path__):
        module = importlib.import_module(f"rayemu.faults.{info.name}")
        found |= {c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Fault)}
    leaves = {one for one in found if not any(other is not one and issubclass(other, one) for other in found)}
    assert leaves == set(FAULTS.values())
    for kind in FAULTS.values():
        assert dataclasses.is_dataclass(kind) and kind().__dataclass_params__.frozen  # type: ignore[attr-defined]


# -- what strikes, what slows down ---------------------------------------------------------------------------
def test_kill_and_hang_strike_the_process_and_nothing_else_does() -> None:
    blows = {}
    for name, kind in FAULTS.items():
        process = Struck()
        kind().strike(process, 1.5)
        blows[name] = process.blows
        assert kind.strikes() == bool(process.blows)
    assert {name: blow for name, blow in blows.items() if blow} == {
        "kill": [("kill", 0.0)],
        "hang": [("stop", 1.5)],
    }


def test_a_module_is_slow_as_long_as_a_fault_lasts() -> None:
    active = ActiveFaults(np.random.default_rng(0))
    assert active.slowness(0.0) == 1.0
    active.begin(Slow(3.0), 1.0)
    active.begin(Drop(0.5), 9.0)
    active.begin(Slow(2.0), 2.0)
    assert [active.slowness(now) for now in (0.5, 1.0, 1.5, 2.0, 5.0)] == [6.0, 2.0, 2.0, 1.0, 1.0]


# -- as a message tells of it --------------------------------------------------------------------------------
def test_a_message_s_fault() -> None:
    told = {"kind": "delay", "for": 2, "rate": 0.25, "delay": 0.5}
    assert fault_of(told) == (Delay(rate=0.25, delay=0.5), 2.0)
    assert fault_of({"kind": "slow", "for": 1.0}) == (Slow(factor=4.0), 1.0)
    assert fault_of({"kind": "hang"}) == (Hang(), UNTIL_THE_END_S)
    assert fault_of({"kind": "kill"})[0] == Kill()
    assert told == {"kind": "delay", "for": 2, "rate": 0.25, "delay": 0.5}, "it is the sender's"


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"kind": "flood"}, "kind: 'flood' is none; known: kill, hang, slow,"),
        ({"kind": ["drop"]}, "kind: .* is none; known: kill"),
        ({"for": 1.0}, "kind: None is none; known: kill"),
        ({"kind": "drop", "delay": 0.1}, "delay: is not a parameter of drop, which takes: for, rate"),
        ({"kind": "kill", "rate": 0.1}, "rate: is not a parameter of kill"),
        (
            {"kind": "slow", "for": "never"},
            "could not convert string to float: 'never'; for: allowed: seconds",
        ),
        ({"kind": "slow", "for": None}, "for: allowed: seconds"),
        ({"kind": "slow", "for": 0}, "for: 0 is not allowed; allowed: seconds, more than 0"),
        ({"kind": "slow", "for": math.nan}, "for: nan is not allowed"),
    ],
)
def test_what_makes_no_sense_is_refused(told: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        fault_of(told)
