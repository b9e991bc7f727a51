"""The relay by hand: two neighbours, one request, and what happens when one of them is gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rayemu.alltoall import ALIVE, DEAD, SUSPECTED, View
from rayemu.compression import WireError
from rayemu.placement import PLACEMENTS, problem_of
from rayemu.protocol.messages import Dispatch, Probe, Refusal, Reply, Send
from rayemu.protocol.relay import Relay
from tests.views import a_view, lots_of

HOME, RELAY, NEIGHBOUR = 0, 2, 3
PLACED = PLACEMENTS["linear"]().place(problem_of(np.ones(4, int), 4))
ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def view(neighbour: int = ALIVE) -> View:
    states = np.array([ALIVE, ALIVE, ALIVE, neighbour], np.uint8)
    return a_view(PLACED, [0, 0, 1, 1], 4, states)


def request() -> Dispatch:
    """Token rows 0, 1, 2; the relay's expert 2 wants 0 and 1, the neighbour's expert 3 wants 0 and 2."""
    index = np.array([0, 1, 0, 2], np.int32)
    lots = lots_of([RELAY, 2, 2], [NEIGHBOUR, 3, 2])
    return Dispatch(HOME, 5, -1, 0, 0, 0, 0, 0, 1, 1, 0, ROWS, index, lots)


def reply(module: int, start: int, value: float) -> Reply:
    return Reply(HOME, 5, 0, 0, 0, module, np.full((2, 2), value, np.float32), [[start, 2, 0, 0]])


def test_each_module_gets_its_lots_and_rows() -> None:
    relay = Relay(RELAY)
    own, other = relay.accept(request(), view())
    assert (own.to, other.to) == (RELAY, NEIGHBOUR)
    for send, start, tokens in ((own, 0, [0, 1]), (other, 2, [0, 2])):
        part = send.message
        assert isinstance(part, Dispatch) and part.via == RELAY and part.start == start
        taken = part.rows if part.row_of_pair is None else part.rows[part.row_of_pair]
        assert np.array_equal(taken, ROWS[tokens])
    assert relay.accept(request(), view()) == [], "a repeated request is not handed out again"


def test_answers_go_home_together_once() -> None:
    relay = Relay(RELAY)
    relay.accept(request(), view())
    assert relay.gather(reply(NEIGHBOUR, 2, 8.0)) == []
    assert relay.gather(reply(NEIGHBOUR, 2, 9.0)) == [], "a second answer changes nothing"
    (send,) = relay.gather(reply(RELAY, 0, 1.0))
    assert send.to == HOME and isinstance(send.message, Reply)
    assert send.message.rows[:, 0].tolist() == [1, 1, 8, 8]
    assert send.message.spans == [[0, 2, 0, 0], [2, 2, 0, 0]]
    assert relay.gather(reply(RELAY, 0, 1.0)) == [] and not relay.gathers


@pytest.mark.parametrize(
    "spans", [[[1, 2, 0, 0]], [[0, 1, 0, 0], [2, 1, 0, 0]], [[2, 2, 0, 0], [4, 2, 0, 0]], [[0, 4, 0, 0]]]
)
def test_answers_in_other_parts_than_were_asked_for_are_refused(spans: list[list[int]]) -> None:
    relay = Relay(RELAY)
    relay.accept(request(), view())
    bad = replace(
        reply(NEIGHBOUR, 2, 9.0), spans=spans, rows=np.ones((sum(s[1] for s in spans), 2), np.float32)
    )
    with pytest.raises(WireError, match="spans"):
        relay.gather(bad)
    relay.gather(reply(RELAY, 0, 1.0))
    (send,) = relay.gather(reply(NEIGHBOUR, 2, 8.0))
    assert send.message.rows[:, 0].tolist() == [1, 1, 8, 8], "nothing was lost"  # type: ignore[union-attr]


def test_a_dead_or_hanging_neighbour_holds_nothing_up() -> None:
    for state in (DEAD, SUSPECTED):
        relay = Relay(RELAY)
        relay.accept(request(), view())
        relay.gather(reply(RELAY, 0, 1.0))
        (send,) = relay.on_view(view(state))
        assert isinstance(send.message, Reply) and send.message.spans == [[0, 2, 0, 0]]
        assert len(send.message.rows) == 2 and not relay.gathers


def test_a_probe_brings_what_is_there() -> None:
    relay = Relay(RELAY)
    assert relay.probe(Probe(HOME, 5)) is None
    relay.accept(request(), view())
    relay.gather(reply(RELAY, 0, 1.0))
    for _ in range(2):  # the first answer may have been lost on its way
        answers = relay.probe(Probe(HOME, 5)) or []
        assert [(a.to, type(a.message)) for a in answers] == [(HOME, Reply), (NEIGHBOUR, Probe)]
        (last,) = [a.message for a in answers if isinstance(a.message, Reply)]
        assert last.spans == [[0, 2, 0, 0]]
    (final,) = relay.gather(reply(NEIGHBOUR, 2, 8.0))
    assert isinstance(final.message, Reply) and len(final.message.rows) == 4


def test_gathers_of_finished_batches_and_dead_homes_go() -> None:
    relay = Relay(RELAY)
    relay.accept(request(), view())
    relay.forget_below(1)
    assert not relay.gathers
    relay.accept(request(), view())
    dead_home = view()
    dead_home.state[HOME] = DEAD
    assert relay.on_view(dead_home) == [] and not relay.gathers


def refusal(module: int, start: int) -> Refusal:
    return Refusal(HOME, 5, start, module, [3])


def test_what_a_module_refuses_is_passed_on_and_not_waited_for() -> None:
    relay = Relay(RELAY)
    relay.accept(request(), view())
    assert relay.refused(refusal(NEIGHBOUR, 2)) == [Send(HOME, refusal(NEIGHBOUR, 2))]
    (send,) = relay.gather(reply(RELAY, 0, 1.0))
    assert send.message.spans == [[0, 2, 0, 0]] and not relay.gathers  # type: ignore[union-attr]


def test_a_refusal_after_the_other_answer_sends_that_home_once() -> None:
    relay = Relay(RELAY)
    relay.accept(request(), view())
    relay.gather(reply(RELAY, 0, 1.0))
    said, flushed = relay.refused(refusal(NEIGHBOUR, 2))
    assert said.message == refusal(NEIGHBOUR, 2) and flushed.message.spans == [[0, 2, 0, 0]]  # type: ignore[union-attr]
    assert relay.refused(refusal(NEIGHBOUR, 2)) == [said] and not relay.gathers


def test_a_refusal_of_a_part_that_was_answered_ends_nothing() -> None:
    relay = Relay(RELAY)
    relay.accept(request(), view())
    relay.gather(reply(NEIGHBOUR, 2, 8.0))
    assert len(relay.refused(refusal(NEIGHBOUR, 2))) == 1
    (send,) = relay.gather(reply(RELAY, 0, 1.0))
    assert send.message.rows[:, 0].tolist() == [1, 1, 8, 8]  # type: ignore[union-attr]
