"""The home by hand: the rows of a slice on their way through one or two layers, reply by reply.

Four modules on two nodes, expert e on module e alone or with a copy two modules further on. The tests play
all other modules: what the home sends is answered with what the experts give.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rayemu.alltoall import ALIVE, DEAD, SUSPECTED
from rayemu.compression import WireError
from rayemu.model.reference import prepare, reference_forward, route
from rayemu.protocol.home import PROBES
from rayemu.protocol.lending import gather
from rayemu.protocol.memory import fresh_rows
from rayemu.protocol.messages import (
    CLIENT,
    COORDINATOR,
    Dispatch,
    Probe,
    RouteReply,
    RouteRequest,
    Send,
    SliceProbe,
    SliceStatus,
    Status,
    Suspect,
)
from rayemu.protocol.server import run_job
from tests.protocol.home_table import ME, Table, X, dispatches, pairs_of, result_of


def test_rows_go_to_their_experts_and_the_answers_become_the_result() -> None:
    table = Table(layers=2)
    sends = table.begin()
    layer = table.model.layers[0]
    experts = route(layer, prepare(layer, X)).experts
    for request, to in zip(dispatches(sends), [s.to for s in sends], strict=True):
        ((module, expert, count),) = request.lots.tolist()
        tokens = np.flatnonzero((experts == expert).any(axis=1))
        assert module == expert == to and count == len(tokens)
        assert np.array_equal(request.rows[request.row_of_pair], prepare(layer, X)[tokens])
    second = table.answer_all(sends)
    assert {d.layer for d in dispatches(second)} == {1}
    result = result_of(table.answer_all(second))
    assert np.array_equal(result.rows, reference_forward(table.model, X))
    assert result.dispatch_paths is None and result.expert_tokens.sum() == 2 * X.shape[0] * 2


def test_rows_travel_once_per_frame_however_many_experts_want_them() -> None:
    from rayemu.alltoall import EXCHANGES

    table = Table(exchange=EXCHANGES["hierarchical"](relay="first"))
    for request in dispatches(table.begin()):
        wanted = request.rows[request.row_of_pair]
        gather(request, fresh_rows)
        rows = request.rows if request.row_of_pair is None else request.rows[request.row_of_pair]
        assert len(rows) == pairs_of([request]) and np.array_equal(rows, wanted)
        assert len(np.unique(request.rows, axis=0)) == len(request.rows)
    table = Table(exchange=EXCHANGES["hierarchical"](relay="first"), model={"top_k": 4})
    (far,) = [r for r in dispatches(table.begin()) if len(r.lots) == 2]  # experts 2 and 3 want every row
    gather(far, fresh_rows)
    assert far.rows.shape == X.shape and far.row_of_pair is not None and len(far.row_of_pair) == 24


def test_a_known_slice_is_not_started_again_nor_one_of_a_completed_batch() -> None:
    table = Table()
    assert dispatches(table.begin(batch=5))
    assert table.begin(batch=5) == []
    assert dispatches(table.begin(batch=9, complete_below=6)) and (5, 0) not in table.home.slices
    assert table.begin(batch=5) == [], "its batch is complete"
    assert table.begin(batch=8, complete_below=6) != []


def test_a_finished_slice_is_sent_again_when_asked_for() -> None:
    table = Table()
    table.home.on_slice_probe(SliceProbe(0, 0))
    assert table.sent() == [Send(COORDINATOR, SliceStatus(0, 0, ME, False))]
    sends = table.begin()
    table.home.on_slice_probe(SliceProbe(0, 0))
    assert table.sent() == [Send(COORDINATOR, SliceStatus(0, 0, ME, True))]
    result = result_of(table.answer_all(sends))
    table.home.on_slice_probe(SliceProbe(0, 0))
    assert [(s.to, s.message) for s in table.sent()] == [
        (CLIENT, result),
        (COORDINATOR, SliceStatus(0, 0, ME, True)),
    ]


def test_choices_of_another_layer_or_number_of_rows_are_not_taken() -> None:
    table = Table(layers=2, place="coordinator")
    (ask,) = [s.message for s in table.begin()]
    assert isinstance(ask, RouteRequest) and ask.layer == 0
    layer = table.model.layers[0]
    routing = route(layer, prepare(layer, X))
    for number, wrong in [(1, routing.experts), (0, routing.experts[:-1])]:
        table.home.on_choices(RouteReply(0, 0, 0, number, wrong, routing.weights), 0.0)
        assert table.sent() == []
    for _ in range(2):  # the second changes nothing
        table.home.on_choices(RouteReply(0, 0, 0, 0, routing.experts, routing.weights), 0.0)
    sends = table.sent()
    assert pairs_of(dispatches(sends)) == routing.experts.size
    (ask,) = [s.message for s in table.answer_all(sends)]
    assert isinstance(ask, RouteRequest) and ask.layer == 1
    table.home.on_choices(RouteReply(0, 0, 0, 0, routing.experts, routing.weights), 0.0)  # of before
    assert table.sent() == []


def test_unanswered_questions_for_choices_are_asked_again() -> None:
    table = Table(place="coordinator")
    (ask,) = table.begin()
    due = table.home.wake
    table.home.tick(due - 1e-3)
    assert table.sent() == []
    table.home.tick(due)
    (again,) = table.sent()
    assert again.to == COORDINATOR and again.message.layer == ask.message.layer  # type: ignore[union-attr]
    assert table.home.wake > due


def test_a_repeated_or_late_reply_changes_nothing() -> None:
    table = Table()
    requests = dispatches(table.begin())
    for request in requests[:-1]:
        reply = table.answer(request)
        table.home.on_reply(reply, 0.0)
        table.home.on_reply(replace(reply, rows=reply.rows + 1), 0.0)
    assert table.sent() == []
    table.home.on_reply(table.answer(requests[-1]), 0.0)
    assert np.array_equal(result_of(table.sent()).rows, reference_forward(table.model, X))
    table.home.on_reply(table.answer(requests[-1]), 0.0)
    assert table.sent() == []


def test_a_reply_in_parts_is_put_together() -> None:
    table = Table()
    for request in dispatches(table.begin()):
        whole = table.answer(request)
        cut = len(whole.rows) // 2
        for low, high in ((cut, len(whole.rows)), (0, cut)):
            spans = [[low, high - low, 0, 0]]
            table.home.on_reply(replace(whole, rows=whole.rows[low:high], spans=spans), 0.0)
    assert np.array_equal(result_of(table.sent()).rows, reference_forward(table.model, X))


@pytest.mark.parametrize("shift", [1, 1000])
def test_spans_beyond_the_request_are_refused_and_nothing_is_lost(shift: int) -> None:
    table = Table()
    sends = table.begin()
    request = dispatches(sends)[0]
    reply = table.answer(request)
    bad = replace(reply, spans=[[shift, len(reply.rows), 0, 0]], rows=reply.rows + 1)
    with pytest.raises(WireError, match="spans"):
        table.home.on_reply(bad, 0.0)
    assert np.array_equal(result_of(table.answer_all(sends)).rows, reference_forward(table.model, X))


def test_no_module_is_asked_about_a_request_before_it_is_late_and_then_it_is_probed() -> None:
    table = Table()
    sends = table.begin()
    due = table.home.wake
    table.home.tick(due - 1e-3)
    assert table.sent() == []
    table.home.tick(due)
    assert sorted((s.to, s.message.request) for s in table.sent()) == sorted(  # type: ignore[union-attr]
        (s.to, s.message.request)
        for s in sends  # type: ignore[union-attr]
    )
    assert table.home.wake > due


def test_who_answers_no_probe_is_reported_and_a_copy_is_asked() -> None:
    table = Table(copies=2)
    first = {d.request: s.to for s in table.begin() for d in dispatches([s])}
    probes, suspected, again = [], [], []
    for _ in range(PROBES + 1):
        table.home.tick(table.home.wake)
        sends = table.sent()
        probes += [s.to for s in sends if isinstance(s.message, Probe)]
        suspected += [s for s in sends if isinstance(s.message, Suspect)]
        again += dispatches(sends)
    assert {s.message.module for s in suspected} == {*first.values()}  # type: ignore[union-attr]
    assert all(probes.count(to) >= PROBES for to in first.values())
    assert pairs_of(again) == X.shape[0] * 2, "all of it is asked for again, once"


def test_what_a_module_does_not_know_is_sent_again_and_nothing_else() -> None:
    from rayemu.alltoall import EXCHANGES

    table = Table(exchange=EXCHANGES["hierarchical"](relay="first"))
    (request,) = [d for d in dispatches(table.begin()) if {*d.lots[:, 0].tolist()} == {2, 3}]
    table.home.on_status(Status(request.request, 3, True), 0.1)
    assert table.sent() == [], "it has it: wait on"
    of_two, of_three = (int(request.lots[request.lots[:, 0] == module, 2].sum()) for module in (2, 3))
    table.home.on_status(Status(request.request, 3, False), 0.1)  # the relay's neighbour
    (again,) = table.sent()
    assert again.to == 3 and isinstance(again.message, Dispatch)
    assert again.message.lots.tolist() == [[3, 3, of_three]], "directly, and only what that one has to do"
    table.home.on_status(Status(request.request, 2, False), 0.1)  # the relay itself: all that is open
    rest = dispatches(table.sent())
    assert [d.lots.tolist() for d in rest] == [[[2, 2, of_two]]]
    table.home.on_status(Status(request.request, 2, False), 0.1)
    assert table.sent() == []


def test_what_dead_and_hanging_modules_leave_goes_to_copies_at_once() -> None:
    for state in (DEAD, SUSPECTED):
        table = Table(copies=2)
        sends = table.begin()
        lost = dispatches([s for s in sends if s.to == 1])
        table.home.on_view(table.view([ALIVE, state, ALIVE, ALIVE]), 0.01)
        again = table.sent()
        assert {s.to for s in again} <= {3} and (not lost or again)
        assert pairs_of(dispatches(again)) == pairs_of(lost)
        rest = [s for s in sends if s.to != 1]
        assert np.array_equal(
            result_of(table.answer_all(rest + again)).rows, reference_forward(table.model, X)
        )


def test_shared_experts_and_dense_layers_are_the_home_s_own_work() -> None:
    table = Table(layers=2, model={"shared_d_ff": 16, "dense_layers": 1, "dense_d_ff": 16})
    sends = table.begin()
    assert sends == []
    done: list[Send] = []
    for _ in range(2):
        while (job := table.server.next_job(1.0)) is not None:
            run_job(table.model, job)
            table.home.on_shared(job.own.tag, job.result, 1.0)  # type: ignore[arg-type]
        done += table.answer_all(table.sent())
    assert np.array_equal(result_of(done + table.sent()).rows, reference_forward(table.model, X))
