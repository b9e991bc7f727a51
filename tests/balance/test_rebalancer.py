"""Decisions of a rebalancer on loads whose best plans are plain to see."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from rayemu.balance.predictors import PREDICTORS, Recurrent
from rayemu.balance.rebalancer import RebalancePolicy, Rebalancer
from rayemu.balance.triggers import TRIGGERS, History
from rayemu.placement import PLACEMENTS, Placement, PlacementProblem, from_columns, problem_of

PROBLEM = problem_of(np.ones((1, 4), int), 2)
SIDE_BY_SIDE = PLACEMENTS["linear"]().place(PROBLEM)  # 0 and 1 on module 0, 2 and 3 on module 1
UNEVEN = np.array([[30.0, 30, 10, 10]])  # 60 against 20; 40 against 40 is possible
EVEN = np.array([[10.0, 30, 10, 30]])


class Swapped:
    """A planner that knows but one plan: 0 and 2 on module 0, 1 and 3 on module 1."""

    def place(self, problem: PlacementProblem) -> Placement:
        return from_columns(np.zeros(4, int), np.arange(4), np.array([0, 1, 0, 1]))


def rebalancer(**changes: object) -> Rebalancer:
    policy = {"trigger": TRIGGERS["every"](4), "planner": Swapped(), "window": 4, "rate": 10.0} | changes
    problem = problem_of(np.ones((1, 4), int), 2)
    return Rebalancer(RebalancePolicy(**policy), PlacementProblem(**{**vars(problem), "expert_bytes": 100}))  # type: ignore[arg-type]


def told(machine: Rebalancer, *loads: np.ndarray) -> Rebalancer:
    for load in loads:
        machine.observe(load)
    return machine


def recent(machine: Rebalancer) -> np.ndarray:
    return np.array(machine.recall()[0])


def test_a_plan_is_due_as_often_as_its_trigger_fires() -> None:
    machine = rebalancer()
    reasons = []
    for _ in range(10):
        machine.observe(UNEVEN)
        reasons.append(machine.consider(*machine.recall(), SIDE_BY_SIDE) is not None)
    assert [n for n, due in enumerate(reasons) if due] == [3, 7]


def test_a_plan_that_gains_is_carried_out_and_its_figures_are_those_by_hand() -> None:
    machine = told(rebalancer(), *[UNEVEN] * 4)
    decision = machine.decide("because", recent(machine), SIDE_BY_SIDE, batch_s=3.0)
    assert decision.plan is not None and decision.moves == 2 and decision.moved_bytes == 200
    assert decision.balance_before == pytest.approx(40 / 60) and decision.promised == 1.0
    assert decision.gain == pytest.approx(1 / 3)  # 60 rows become 40
    # A module fetches one expert, 100 bytes at 10 a second; a batch of 3 s becomes a third shorter.
    assert decision.break_even == pytest.approx(10.0)
    assert decision.facts()["decision"] == "move"


def test_what_is_judged_are_batches_that_the_plan_has_not_seen() -> None:
    """The planner would swap for the older half, where it pays; in the newer half it does not."""
    machine = told(rebalancer(), UNEVEN, UNEVEN, EVEN, EVEN)
    decision = machine.decide("because", recent(machine), SIDE_BY_SIDE)
    assert decision.plan is None and decision.gain == pytest.approx(-0.5)  # 40 rows would become 60
    assert decision.balance_before == 1.0 and decision.promised == pytest.approx(40 / 60)
    assert "20%" in decision.why


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"gain": 0.33}, True),
        ({"gain": 0.34}, False),
        ({"gain": None}, True),
        ({"within": 10.5}, True),
        ({"within": 9.5}, False),
    ],
)
def test_what_must_be_gained_is_held_to(changes: dict[str, float], moves: bool) -> None:
    machine = told(rebalancer(**changes), *[UNEVEN] * 4)
    decision = machine.decide("because", recent(machine), SIDE_BY_SIDE, batch_s=3.0)
    assert (decision.plan is not None) == moves, decision.why
    if "within" in changes and not moves:
        assert "pays after 10.0 batches" in decision.why


def test_without_knowing_how_long_a_batch_takes_no_break_even_is_claimed() -> None:
    machine = told(rebalancer(within=1e9), *[UNEVEN] * 4)
    decision = machine.decide("because", recent(machine), SIDE_BY_SIDE)
    assert decision.plan is None and decision.break_even is None


def test_the_plan_that_there_is_is_no_plan() -> None:
    machine = told(rebalancer(gain=None), *[EVEN] * 4)
    present = Swapped().place(PROBLEM)
    decision = machine.decide("because", recent(machine), present)
    assert decision.plan is None and decision.moves == 0 and "what there is" in decision.why


def test_planners_are_told_loads_variances_and_the_present_plan_of_each_half() -> None:
    problems: list[PlacementProblem] = []

    class Noting(Swapped):
        def place(self, problem: PlacementProblem) -> Placement:
            problems.append(problem)
            return super().place(problem)

    loads = np.array([[[1.0, 0, 0, 0]], [[0, 2, 0, 0]], [[0, 0, 3, 1]], [[0, 0, 0, 0]]])
    rebalancer(planner=Noting()).decide("because", loads, SIDE_BY_SIDE)
    older, newer = problems
    assert older.present is newer.present is SIDE_BY_SIDE and older.expert_bytes == 100
    assert older.loads.tolist() == [[1, 2, 0, 0]] and newer.loads.tolist() == [[0, 0, 3, 1]]
    assert older.variances is not None and newer.variances is not None
    assert older.variances.tolist() == [[1 / 4, 1 / 4, 0, 0]]  # shares 1 and 0, 0 and 1
    assert newer.variances.tolist() == [[0, 0, (3 / 8) ** 2, (1 / 8) ** 2]]  # 3/4 and 0, 1/4 and 0


def test_modules_are_named_so_that_little_moves() -> None:
    """The same plan with both modules the other way round moves nothing."""
    machine = told(rebalancer(gain=None), *[UNEVEN] * 4)
    present = from_columns(np.zeros(4, int), np.arange(4), np.array([1, 0, 1, 0]))
    assert machine.decide("because", recent(machine), present).moves == 0


@dataclass(frozen=True)
class Far:
    """Fires once it sees as many batches as it looks back on."""

    reach: int

    def fires(self, history: History) -> str | None:
        return "seen" if len(history.loads) >= self.reach else None


def test_as_many_batches_are_remembered_as_the_trigger_looks_back_on() -> None:
    machine = rebalancer(trigger=Far(300))
    fired = []
    for _ in range(301):
        machine.observe(UNEVEN)
        fired.append(machine.consider(*machine.recall(), SIDE_BY_SIDE) is not None)
    assert fired.index(True) == 299
    assert [TRIGGERS[k]().reach for k in ("every", "imbalance", "trend", "predicted")] == [0, 10, 11, 320]


def test_a_trigger_that_fails_starts_anew() -> None:
    class Fails(Far):
        def fires(self, history: History) -> str | None:
            raise ZeroDivisionError

    machine = told(rebalancer(trigger=Fails(1)), UNEVEN, UNEVEN)
    with pytest.raises(ZeroDivisionError):
        machine.consider(*machine.recall(), SIDE_BY_SIDE)
    assert machine.recall()[1] == 0


def test_batches_that_come_while_a_plan_is_made_count_from_when_it_was_asked_for() -> None:
    machine = told(rebalancer(), *[UNEVEN] * 4)
    asked = machine.recall()
    told(machine, UNEVEN, UNEVEN)
    assert machine.consider(*asked, SIDE_BY_SIDE) is not None
    assert machine.recall()[1] == 2


def test_a_predictor_has_enough_windows_to_learn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recurrent network stays the naive forecast unless it has `context` + 1 of them."""
    seen = []

    class Counts:
        def fit(self, history: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
            seen.append(len(history))
            return lambda recent: recent[-1]

    monkeypatch.setitem(PREDICTORS, "last_window", Counts)
    machine = rebalancer(trigger=TRIGGERS["predicted"](predictor="last_window", window=2, over=9.0))
    for _ in range(200):
        machine.observe(UNEVEN)
        machine.consider(*machine.recall(), SIDE_BY_SIDE)
    assert max(seen) == 64 > Recurrent().context + 1
    assert TRIGGERS["predicted"](window=4096, windows=1).reach == 4096
    with pytest.raises(ValueError, match="window: 4097 is not allowed; allowed: 1 to 4096"):
        TRIGGERS["predicted"](window=4097)


class Told:
    """A planner that notes its problems, and swaps where experts 0 and 1 have most."""

    def __init__(self) -> None:
        self.problems: list[PlacementProblem] = []

    def place(self, problem: PlacementProblem) -> Placement:
        self.problems.append(problem)
        swap = problem.loads[0, :2].sum() > problem.loads[0, 2:].sum()
        return Swapped().place(problem) if swap else SIDE_BY_SIDE


def test_the_judged_plan_is_of_the_older_half_and_the_one_carried_out_of_the_newer() -> None:
    planner = Told()
    machine = told(rebalancer(planner=planner), 2 * EVEN, EVEN, UNEVEN, 3 * UNEVEN)
    decision = machine.decide("because", recent(machine), SIDE_BY_SIDE, batch_s=3.0)
    older, newer = planner.problems
    assert older.loads.tolist() == (3 * EVEN).tolist() and newer.loads.tolist() == (4 * UNEVEN).tolist()
    assert older.present is SIDE_BY_SIDE and newer.present is SIDE_BY_SIDE
    # Shares are alike in both batches of a half.
    assert older.variances is not None and older.variances.tolist() == [[0.0] * 4]
    assert decision.plan is None and decision.gain == 0.0, "it would not have moved then"
    assert decision.fitted == 1.0 and decision.break_even == pytest.approx(10.0), "what it would do now"


def test_a_plan_that_would_have_gained_nothing_is_not_carried_out_whatever_is_asked() -> None:
    machine = told(rebalancer(gain=None), EVEN, EVEN, EVEN, EVEN)
    machine.policy.planner.place = lambda _: SIDE_BY_SIDE  # type: ignore[method-assign]
    decision = machine.decide("because", recent(machine), SIDE_BY_SIDE)
    assert decision.plan is None
    machine = told(rebalancer(gain=None), UNEVEN, UNEVEN, EVEN, EVEN)
    decision = machine.decide("because", recent(machine), SIDE_BY_SIDE)
    assert decision.plan is None and "more than nothing is wanted" in decision.why


def test_a_plan_that_only_drops_copies_is_a_plan() -> None:
    """Expert 0 is on both modules; without the copy on module 0 the load is even."""
    present = from_columns(np.zeros(5, int), np.array([0, 0, 1, 2, 3]), np.array([0, 1, 0, 0, 1]))

    class Drops:
        def place(self, problem: PlacementProblem) -> Placement:
            return from_columns(np.zeros(4, int), np.arange(4), np.array([1, 0, 0, 1]))

    machine = told(rebalancer(planner=Drops(), gain=None), *[np.array([[20.0, 30, 20, 10]])] * 4)
    decision = machine.decide("because", recent(machine), present, batch_s=1.0)
    assert decision.plan is not None and decision.moves == 0 and decision.break_even == 0.0


def test_layers_run_one_after_the_other_so_that_their_busiest_modules_count() -> None:
    """In two layers opposite modules have most: summed first, they would look even."""
    both = problem_of(np.ones((2, 2), int), 2)
    machine = Rebalancer(RebalancePolicy(TRIGGERS["every"](1), Both(), gain=None), both)
    loads = np.array([[[30.0, 10.0], [10.0, 30.0]]] * 2)
    present = from_columns(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1]))
    decision = machine.decide("because", loads, present)
    assert decision.gain == pytest.approx(1 - 40 / 60) and decision.plan is not None


class Both:
    """A planner that gives every expert to both modules."""

    def place(self, problem: PlacementProblem) -> Placement:
        return from_columns(np.repeat([0, 1], 4), np.tile([0, 0, 1, 1], 2), np.tile([0, 1], 4))
