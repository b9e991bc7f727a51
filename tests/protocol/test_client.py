"""The client by hand: rows are taken once, results come out by number, and nothing is asked for in vain."""

from __future__ import annotations

import numpy as np
import pytest

from rayemu.alltoall import ALIVE
from rayemu.compression import WireError
from rayemu.model.spec import ModelSpec
from rayemu.protocol.client import ClientMachine
from rayemu.protocol.messages import (
    COORDINATOR,
    Accepted,
    Ack,
    Epoch,
    Failure,
    Move,
    Moved,
    Notice,
    Result,
    Send,
    Submit,
    Totals,
)
from tests.views import placed_on

RETRY = 0.25
SPEC = ModelSpec("tiny", d_model=2, d_ff=4, experts=3, top_k=2)
X = np.arange(12, dtype=np.float32).reshape(6, 2)
COUNTS = np.array([[1, 2, 3]], np.int32)


def client(batches: int = 1) -> ClientMachine:
    machine = ClientMachine(SPEC, RETRY)
    for number in range(batches):
        found, sends = machine.submit(X + number, 1.0)
        assert found == number and [(s.to, type(s.message)) for s in sends] == [(COORDINATOR, Submit)]
    return machine


def result(batch: int, slice: int, low: int, high: int, **more: np.ndarray) -> Result:
    return Result(batch, slice, low, 0, 1, (X + 10 * batch)[low:high], COUNTS, **more)


def test_slices_are_put_together_and_acknowledged_each_time() -> None:
    machine = client()
    assert machine.receive(result(0, 1, 4, 6), 2.0) == [Send(COORDINATOR, Ack(0, 1))]
    assert machine.take(0) is None
    again = result(0, 1, 4, 6)
    again.rows = again.rows + 1
    assert machine.receive(again, 2.5) == [Send(COORDINATOR, Ack(0, 1))], "the first ack may be lost"
    machine.receive(result(0, 0, 0, 4), 3.0)
    machine.receive(result(0, 0, 0, 4), 3.5)
    taken = machine.take(0)
    assert taken is not None and np.array_equal(taken.y, X) and taken.delivered.tolist() == [1] * 6
    assert taken.expert_tokens.tolist() == [[2, 4, 6]] and machine.duplicate_results == 2
    assert (taken.submitted_at, taken.finished_at) == (1.0, 3.0) and taken.failure is None
    assert machine.take(0) is None and taken.dispatch_paths is None


def test_rows_beyond_the_batch_are_refused_and_nothing_is_lost() -> None:
    machine = client()
    for start in (-1, 5, 1 << 40):
        bad = result(0, 0, 0, 4)
        bad.start = start
        with pytest.raises(WireError, match="of a batch of 6"):
            machine.receive(bad, 2.0)
    machine.receive(result(0, 0, 0, 4), 2.0)
    machine.receive(result(0, 1, 4, 6), 2.0)
    taken = machine.take(0)
    assert taken is not None and np.array_equal(taken.y, X)


def test_results_are_taken_by_number_in_any_order() -> None:
    machine = client(3)
    for batch in (2, 0):
        machine.receive(result(batch, 0, 0, 6), 2.0)
    assert machine.take(1) is None
    machine.receive(result(1, 0, 0, 6), 3.0)
    for batch in (1, 2, 0):
        taken = machine.take(batch)
        assert taken is not None and taken.batch == batch and np.array_equal(taken.y, X + 10 * batch)
        assert machine.take(batch) is None


def test_paths_are_kept_for_the_rows_that_have_some() -> None:
    machine = client()
    paths = np.full((1, 2, 2), 7, np.uint8)
    machine.receive(result(0, 0, 0, 4), 2.0)
    machine.receive(result(0, 1, 4, 6, dispatch_paths=paths, combine_paths=paths + 1), 2.0)
    taken = machine.take(0)
    assert taken is not None and taken.dispatch_paths is not None and taken.combine_paths is not None
    assert taken.dispatch_paths[0, :, 0].tolist() == [0, 0, 0, 0, 7, 7]
    assert taken.combine_paths[0, :, 1].tolist() == [0, 0, 0, 0, 8, 8]


def test_a_failure_ends_its_batch_and_only_that() -> None:
    machine = client(2)
    failure = Failure(0, 0, 0, 2, 3)
    assert machine.receive(failure, 2.0) == [Send(COORDINATOR, Ack(0, -1))]
    assert machine.receive(failure, 2.0) == [Send(COORDINATOR, Ack(0, -1))], "the coordinator asks again"
    taken = machine.take(0)
    assert taken is not None and taken.failure == failure and taken.finished_at == 2.0
    assert machine.receive(result(0, 0, 0, 6), 3.0) == [Send(COORDINATOR, Ack(0, 0))]
    assert machine.take(0) is None
    machine.receive(result(1, 0, 0, 6), 3.0)
    taken = machine.take(1)
    assert taken is not None and taken.batch == 1 and taken.failure is None


def test_what_was_not_accepted_is_submitted_again() -> None:
    machine = client(2)
    due = machine.deadline()
    assert due == 1.0 + 4 * RETRY and machine.tick(due - 1e-3) == []
    machine.receive(Accepted(0), 1.1)
    machine.receive(Accepted(7), 1.1)  # of nothing that is known
    (again,) = machine.tick(due)
    assert machine.tick(due) == []
    assert isinstance(again.message, Submit) and again.message.batch == 1
    assert np.array_equal(again.message.rows, X + 1) and machine.deadline() == due + 4 * RETRY
    machine.receive(Accepted(1), due)
    assert machine.deadline() == float("inf") and machine.tick(1e9) == []


def test_the_newest_membership_counts() -> None:
    machine = ClientMachine(SPEC, RETRY)
    state, numbers = np.full(2, ALIVE, np.uint8), np.zeros(2, np.int32)
    for number in (2, 5, 3):
        machine.receive(Epoch(number, 0, None, state, numbers, np.zeros((5, 0), np.uint16)), 0.0)
    assert machine.epoch is not None and machine.epoch.epoch == 5


def test_notices_wait_for_the_reader_and_totals_are_the_last() -> None:
    machine = ClientMachine(SPEC, RETRY)
    notices = [Notice("dead", 1.0, {"module": 1}), Notice("joined", 2.0, {"module": 1})]
    for notice in notices:
        machine.receive(notice, 0.0)
    for live in (3, 4):
        machine.receive(Totals(live, 0, 0, np.zeros(0, np.int32), np.zeros((0, 7))), 0.0)
    assert machine.take_notices() == notices and machine.totals is not None and machine.totals.live == 4


def test_a_submission_says_what_is_over() -> None:
    """So that the coordinator forgets also batches of which it never heard."""
    machine = client(0)
    oldest = []
    for _ in range(4):
        _, (send,) = machine.submit(X, 1.0)
        assert isinstance(send.message, Submit)
        oldest.append(send.message.oldest)
        machine.abandon([1])
    assert oldest == [0, 0, 0, 0]
    machine.abandon([0])
    (send,) = machine.submit(X, 1.0)[1]
    assert isinstance(send.message, Submit) and send.message.oldest == 2
    assert {send.message.oldest for send in machine.tick(9.0)} == {2}  # type: ignore[union-attr]


# -- moves --------------------------------------------------------------------------------------------
PLACED = placed_on([0, 1, 2], [0, 0, 0])


def moved(number: int, done: bool, loaded: int = 0) -> Moved:
    return Moved(number, done, loaded, 0, 0, 0, 0.5)


def test_a_move_is_asked_for_again_until_it_is_done_and_told_of_once() -> None:
    machine = ClientMachine(SPEC, RETRY)
    number, (sent,) = machine.move(PLACED, 1.0)
    assert isinstance(sent.message, Move) and machine.moved(number) is None
    assert machine.deadline() == 1.0 + 4 * RETRY and machine.tick(1.5) == []
    assert machine.tick(2.0) == [sent] and machine.tick(2.5) == [] and machine.tick(3.0) == [sent]
    machine.receive(moved(0, False, 1), 3.1)
    assert machine.moved(0) == moved(0, False, 1) and machine.take_notices() == []
    for _ in range(2):
        machine.receive(moved(0, True, 2), 3.2)
    (notice,) = machine.take_notices()
    assert (notice.kind, notice.wall_s, notice.facts["loaded"]) == ("moved", 3.2, 2)
    assert machine.deadline() == float("inf") and machine.tick(99.0) == []


def test_late_news_of_a_move_that_is_done_does_not_bring_it_back() -> None:
    machine = ClientMachine(SPEC, RETRY)
    machine.move(PLACED, 1.0)
    machine.receive(moved(0, True, 2), 2.0)
    machine.receive(moved(0, False, 1), 2.1)
    assert machine.moved(0) == moved(0, True, 2)


def test_a_move_whose_place_another_takes_is_over_and_says_so() -> None:
    machine = ClientMachine(SPEC, RETRY)
    machine.move(PLACED, 1.0)
    machine.receive(moved(0, False, 1), 1.1)
    machine.move(PLACED, 1.2)
    machine.move(PLACED, 1.3)
    machine.receive(moved(0, False, 1), 1.4)
    first, second = machine.moved(0), machine.moved(1)
    assert first is not None and first.done and first.superseded and first.loaded == 1
    assert second is not None and second.done and second.superseded
    assert [n.facts["number"] for n in machine.take_notices()] == [0, 1]
    machine.receive(moved(2, True), 2.0)
    last = machine.moved(2)
    assert last is not None and not last.superseded


def test_a_move_that_nobody_asked_for_is_a_lookup_error() -> None:
    machine = ClientMachine(SPEC, RETRY)
    machine.receive(moved(0, True), 1.0)
    with pytest.raises(LookupError, match="there is no move 0; 0 were asked for"):
        machine.moved(0)
