"""What carries out a rebalancer's decisions, beside a backend that only notes what it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from rayemu.balance.rebalancer import RebalancePolicy, Rebalancer
from rayemu.balance.triggers import TRIGGERS
from rayemu.drivers.rebalancing import Rebalancing
from rayemu.placement import Placement, PlacementProblem, from_columns, problem_of
from rayemu.protocol.client import BatchResult
from rayemu.protocol.messages import Moved

PROBLEM = problem_of(np.ones((1, 4), int), 2)
UNEVEN = np.array([[30.0, 30, 10, 10]])


def on(modules: list[int]) -> Placement:
    return from_columns(np.zeros(4, int), np.arange(4), np.array(modules))


@dataclass
class Notes:
    """A backend that moves nothing; how far moves are is in `status`."""

    placement: Placement = field(default_factory=lambda: on([0, 0, 1, 1]))
    asked: list[Placement] = field(default_factory=list)
    status: Moved | None = None
    now: float = 7.0

    def move(self, placement: Placement) -> int:
        self.asked.append(placement)
        self.status = None
        return len(self.asked) - 1

    def moved(self, number: int) -> Moved | None:
        return self.status


class To:
    """A planner with one plan."""

    def __init__(self, modules: list[int]) -> None:
        self.modules = modules

    def place(self, problem: PlacementProblem) -> Placement:
        return on(self.modules)


def rebalancing(backend: Notes, planner: object, **changes: object) -> Rebalancing:
    policy = {"trigger": TRIGGERS["every"](2), "planner": planner, "window": 2, "gain": None} | changes
    return Rebalancing(Rebalancer(RebalancePolicy(**policy), PROBLEM), backend, at_once=True)  # type: ignore[arg-type]


def result(number: int, finished_at: float = 0.0) -> BatchResult:
    return BatchResult(number, np.zeros((2, 1)), UNEVEN, np.ones(2, np.int32), finished_at=finished_at)


def test_nothing_is_decided_while_experts_move_and_the_next_thing_once_they_have() -> None:
    backend = Notes()
    machine = rebalancing(backend, To([0, 1, 0, 1]))
    for number in range(9):
        machine.observe(result(number))
    assert len(backend.asked) == 1, "nothing is known of the move"
    backend.status = Moved(0, False, 1, 0, 0, 0, 1.0)
    machine.observe(result(9))
    backend.status = Moved(0, True, 1, 0, 0, 0, 1.0, superseded=True)
    machine.observe(result(10))
    assert len(backend.asked) == 2
    assert [(n.facts["batch"], n.facts["decision"], n.facts["move"]) for n in machine.take_notices()] == [
        (1, "move", 0),
        (10, "move", 1),
    ]
    assert machine.take_notices() == []


@pytest.mark.parametrize(
    ("modules", "says"),
    [([0, 0, 0, 5], r"placement.module\[3\] is 5"), ([0, 0, 0, -1], r"placement.module\[3\] is -1")],
)
def test_a_plan_that_no_run_can_have_is_not_carried_out(modules: list[int], says: str) -> None:
    backend = Notes()
    machine = rebalancing(backend, To(modules))
    for number in range(2):
        machine.observe(result(number))
    (notice,) = machine.take_notices()
    assert notice.facts["decision"] == "failed" and says.replace("\\", "") in notice.facts["why"]
    assert backend.asked == []


def test_a_trigger_that_fails_is_told_of_and_the_run_goes_on() -> None:
    class Fails:
        reach = 1

        def fires(self, history: object) -> str | None:
            raise ImportError("pip install 'rayemu[predict]'")

    machine = rebalancing(Notes(), To([0, 1, 0, 1]), trigger=Fails())
    for number in range(2):
        machine.observe(result(number))
    (notice,) = machine.take_notices()
    assert notice.facts == {
        "batch": 1,
        "decision": "failed",
        "why": "ImportError: pip install 'rayemu[predict]'",
    }


def test_what_a_batch_takes_is_the_time_between_ends_in_their_order() -> None:
    """Results are taken by number; these ended in pairs the other way round, 1 s apart."""
    machine = rebalancing(Notes(), To([0, 0, 1, 1]), trigger=TRIGGERS["every"](99))
    for number, end in enumerate([2.0, 1.0, 4.0, 3.0, 6.0, 5.0]):
        machine.observe(result(number, end))
    assert machine._batch_s() == 1.0


def test_results_of_batches_that_failed_or_were_empty_say_nothing_of_loads() -> None:
    machine = rebalancing(Notes(), To([0, 1, 0, 1]))
    for number in range(4):
        failed = result(number)
        failed.failure = object()  # type: ignore[assignment]
        machine.observe(failed)
        empty = BatchResult(-1, np.zeros((0, 1)), 0 * UNEVEN, np.zeros(0, np.int32))
        machine.observe(empty)
    assert machine.take_notices() == [] and len(machine.rebalancer._loads) == 0
