"""The home by hand: the rows of a slice on their way through one or two layers, reply by reply.

Four modules on two nodes, expert e on module e alone or with a copy two modules further on. The tests play
all other modules: what the home sends is answered with what the experts give.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayemu.alltoall import ALIVE, DEAD, SUSPECTED, View
from rayemu.compression import WireError
from rayemu.model.expert import expert_forward
from rayemu.model.model import Model
from rayemu.model.reference import prepare, reference_forward, route
from rayemu.placement import PLACEMENTS, problem_of
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.home import PROBES, Home
from rayemu.protocol.messages import (
    CLIENT,
    COORDINATOR,
    DROPPED,
    Dispatch,
    Failure,
    Probe,
    Refusal,
    Reply,
    Result,
    RouteReply,
    RouteRequest,
    Send,
    Slice,
    SliceProbe,
    SliceStatus,
    Status,
    Suspect,
)
from rayemu.protocol.replay import PathReplay
from rayemu.protocol.server import ExpertServer, run_job
from rayemu.scenario import Scenario
from tests.views import a_view, holding_all, placed_on

ME = 0
NODES = np.array([0, 0, 1, 1], np.int32)
X = np.random.default_rng(3).standard_normal((12, 16), dtype=np.float32)


class Table:
    """A home whose messages and neighbours are in the test's hands."""

    def __init__(self, copies: int = 1, layers: int = 1, model: dict[str, Any] | None = None, **config: Any):
        dimensions = {"d_model": 16, "d_ff": 16, "experts": 4, "top_k": 2, "layers": layers, **(model or {})}
        scenario = Scenario.from_dict({"model": dimensions})
        defaults = {"exchange": _flat(), "micro_batches": 1, "route_at_coordinator": False}
        self.config = replace(ProtocolConfig.from_scenario(scenario), **{**defaults, **config})
        self.model = Model(scenario.spec)
        self.placed = PLACEMENTS["linear"]().place(problem_of(np.full((layers, 4), copies), 4))
        self.server = ExpertServer(ME, self.config, self.model, holding_all(self.model))
        self.home = Home(ME, 0, self.config, self.model, self.server, self.view([ALIVE] * 4, 1))

    def view(self, states: list[int], epoch: int = 2, incarnations: tuple[int, ...] = (0, 0, 0, 0)) -> View:
        state, turns = np.array(states, np.uint8), np.array(incarnations, np.int32)
        return a_view(self.placed, NODES, 4, state, turns, epoch)

    def begin(
        self, x: np.ndarray = X, batch: int = 0, complete_below: int = 0, now: float = 0.0
    ) -> list[Send]:
        self.home.on_slice(Slice(batch, 0, 0, 1, complete_below, x), now)
        return self.sent()

    def sent(self) -> list[Send]:
        return self.home.take_sends()

    def answer(self, request: Dispatch, path: int = 0) -> Reply:
        """What the module of a request's only lots says to all of it."""
        expanded = request.rows if request.row_of_pair is None else request.rows[request.row_of_pair]
        low, parts = 0, []
        for _, expert, count in request.lots:
            experts = self.model.layers[request.layer].experts
            parts.append(expert_forward(experts[expert], expanded[low : low + count]))
            low += count
        return Reply(
            ME, request.request, request.batch, request.micro, request.layer, 1, np.concatenate(parts),
            [[0, low, path, 0]],
        )  # fmt: skip

    def answer_all(self, sends: list[Send]) -> list[Send]:
        """Answer all requests; return what else was sent."""
        for request in dispatches(sends):
            self.home.on_reply(self.answer(request), 0.01)
        return self.sent()

    def reference(self, x: np.ndarray, result: Result) -> np.ndarray:
        replay = None
        if result.dispatch_paths is not None and result.combine_paths is not None:
            replay = PathReplay(result.dispatch_paths, result.combine_paths, self.config.codecs)
        return reference_forward(self.model, x, replay)


def _flat() -> Any:
    from rayemu.alltoall import EXCHANGES

    return EXCHANGES["flat"]()


def dispatches(sends: list[Send]) -> list[Dispatch]:
    return [s.message for s in sends if isinstance(s.message, Dispatch)]


def pairs_of(requests: list[Dispatch]) -> int:
    return sum(lot[2] for request in requests for lot in request.lots)


def result_of(sends: list[Send]) -> Result:
    (result,) = [s.message for s in sends if s.to == CLIENT and isinstance(s.message, Result)]
    return result


def test_rows_go_to_their_experts_and_the_answers_become_the_result() -> None:
    table = Table(layers=2)
    sends = table.begin()
    layer = table.model.layers[0]
    experts = route(layer, prepare(layer, X)).experts
    for request, to in zip(dispatches(sends), [s.to for s in sends], strict=True):
        ((module, expert, count),) = request.lots
        tokens = np.flatnonzero((experts == expert).any(axis=1))
        assert module == expert == to and count == len(tokens)
        assert np.array_equal(request.rows, prepare(layer, X)[tokens])
    second = table.answer_all(sends)
    assert {d.layer for d in dispatches(second)} == {1}
    result = result_of(table.answer_all(second))
    assert np.array_equal(result.rows, reference_forward(table.model, X))
    assert result.dispatch_paths is None and result.expert_tokens.sum() == 2 * X.shape[0] * 2


def test_rows_travel_once_per_frame_however_many_experts_want_them() -> None:
    from rayemu.alltoall import EXCHANGES

    table = Table(exchange=EXCHANGES["hierarchical"](relay="first"))
    for request in dispatches(table.begin()):
        pairs = sum(lot[2] for lot in request.lots)
        rows = request.rows if request.row_of_pair is None else request.rows[request.row_of_pair]
        assert len(rows) == pairs and len(np.unique(request.rows, axis=0)) == len(request.rows)
    table = Table(exchange=EXCHANGES["hierarchical"](relay="first"), model={"top_k": 4})
    (far,) = [r for r in dispatches(table.begin()) if len(r.lots) == 2]  # experts 2 and 3 want every row
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
    table = Table(layers=2, route_at_coordinator=True)
    (ask,) = [s.message for s in table.begin()]
    assert isinstance(ask, RouteRequest) and ask.layer == 0
    layer = table.model.layers[0]
    routing = route(layer, prepare(layer, X))
    for number, wrong in [(1, routing.experts), (0, routing.experts[:-1])]:
        table.home.on_route_reply(RouteReply(0, 0, 0, number, wrong, routing.weights), 0.0)
        assert table.sent() == []
    for _ in range(2):  # the second changes nothing
        table.home.on_route_reply(RouteReply(0, 0, 0, 0, routing.experts, routing.weights), 0.0)
    sends = table.sent()
    assert sum(len(d.rows) for d in dispatches(sends)) == routing.experts.size
    (ask,) = [s.message for s in table.answer_all(sends)]
    assert isinstance(ask, RouteRequest) and ask.layer == 1
    table.home.on_route_reply(RouteReply(0, 0, 0, 0, routing.experts, routing.weights), 0.0)  # of before
    assert table.sent() == []


def test_unanswered_questions_for_choices_are_asked_again() -> None:
    table = Table(route_at_coordinator=True)
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
    (request,) = [d for d in dispatches(table.begin()) if {lot[0] for lot in d.lots} == {2, 3}]
    table.home.on_status(Status(request.request, 3, True), 0.1)
    assert table.sent() == [], "it has it: wait on"
    of_three = sum(lot[2] for lot in request.lots if lot[0] == 3)
    table.home.on_status(Status(request.request, 3, False), 0.1)  # the relay's neighbour
    (again,) = table.sent()
    assert again.to == 3 and isinstance(again.message, Dispatch)
    assert again.message.lots == [[3, 3, of_three]], "directly, and only what that one has to do"
    table.home.on_status(Status(request.request, 2, False), 0.1)  # the relay itself: all that is open
    rest = dispatches(table.sent())
    assert [d.lots for d in rest] == [[[2, 2, sum(lot[2] for lot in request.lots) - of_three]]]
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
            table.home.on_shared(job.parts[0].tag, job.result, 1.0)  # type: ignore[arg-type]
        done += table.answer_all(table.sent())
    assert np.array_equal(result_of(done + table.sent()).rows, reference_forward(table.model, X))


# -- lost experts -------------------------------------------------------------------------------------------
def lost(table: Table) -> tuple[list[Send], list[Dispatch], list[Send]]:
    """Begin, then lose module 1, the only one with expert 1: requests to others, to it, and what is said."""
    sends = table.begin()
    table.home.on_view(table.view([ALIVE, DEAD, ALIVE, ALIVE]), 0.01)
    return [s for s in sends if s.to != 1], dispatches([s for s in sends if s.to == 1]), table.sent()


def test_a_lost_expert_is_asked_about_until_the_coordinator_speaks() -> None:
    table = Table(drop_lost_experts=True)
    _, _, said = lost(table)
    assert said == [Send(COORDINATOR, Failure(0, 0, 0, 1, ME))]
    due = 0.01 + table.config.retry_after
    table.home.tick(due - 1e-3)
    assert not [s for s in table.sent() if s.to == COORDINATOR]
    table.home.tick(due)
    assert [s for s in table.sent() if s.to == COORDINATOR] == said and table.home.wake > due


def test_a_dropped_expert_s_choices_count_nothing_and_the_others_more() -> None:
    table = Table(drop_lost_experts=True)
    others, _, _ = lost(table)
    table.home.on_failure(Failure(0, 0, 0, 1, ME), 0.02)
    result = result_of(table.answer_all(others))
    layer = table.model.layers[0]
    x = prepare(layer, X)
    experts, weights = route(layer, x)
    assert result.dispatch_paths is not None and 0 < (experts == 1).sum()
    assert np.array_equal(result.dispatch_paths[0] == DROPPED, experts == 1)
    expected = X.astype(np.float64)
    for token in range(len(X)):
        kept = [(e, float(w)) for e, w in zip(experts[token], weights[token], strict=True) if e != 1]
        for e, w in kept:
            share = w / sum(v for _, v in kept) * float(weights[token].sum())
            expected[token] += share * expert_forward(layer.experts[int(e)], x[token : token + 1])[0]
    assert np.allclose(result.rows, expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(table.reference(X, result), result.rows)


@pytest.mark.parametrize("order", ["reply, drop", "drop, reply"])
@pytest.mark.parametrize("part", [1.0, 0.5])
def test_a_pair_is_settled_once_by_a_late_reply_or_by_the_drop(order: str, part: float) -> None:
    table = Table(drop_lost_experts=True)
    others, (request,), _ = lost(table)
    whole = table.answer(request)
    some = max(1, int(part * len(whole.rows)))
    late = replace(whole, rows=whole.rows[:some], spans=[[0, some, 0, 0]])
    for what in order.split(", "):
        if what == "reply":
            table.home.on_reply(late, 0.02)
        else:
            table.home.on_failure(Failure(0, 0, 0, 1, ME), 0.02)
    result = result_of(table.answer_all(others))
    dropped = 0 if result.dispatch_paths is None else int((result.dispatch_paths == DROPPED).sum())
    assert dropped == len(whole.rows) - (some if order == "reply, drop" else 0)
    assert np.array_equal(table.reference(X, result), result.rows)


def test_pairs_that_came_late_are_asked_about_no_longer_nor_dropped_from_a_later_layer() -> None:
    table = Table(drop_lost_experts=True, layers=2)
    others, (request,), _ = lost(table)
    table.home.on_reply(table.answer(request), 0.02)
    assert not table.home.parking.parked
    second = table.answer_all(others)  # the next layer begins, and parks its own
    parked = sum(len(p.pairs) for p in table.home.parking.parked)
    assert {d.layer for d in dispatches(second)} == {1}
    table.home.on_failure(Failure(0, 0, 1, 1, ME), 0.03)
    result = result_of(table.answer_all(second))
    assert result.dispatch_paths is not None
    assert (result.dispatch_paths == DROPPED).sum(axis=(1, 2)).tolist() == [0, parked]
    assert np.array_equal(table.reference(X, result), result.rows)


def test_a_lost_expert_that_comes_back_is_used() -> None:
    table = Table(drop_lost_experts=True)
    others, (request,), _ = lost(table)
    table.home.on_view(table.view([ALIVE] * 4, 3, (0, 1, 0, 0)), 0.02)
    again = table.sent()
    assert [s.to for s in again] == [1] and not table.home.parking.parked
    assert pairs_of(dispatches(again)) == len(request.rows)
    result = result_of(table.answer_all(others + again))
    assert result.dispatch_paths is None
    assert np.array_equal(result.rows, reference_forward(table.model, X))


def test_what_lossy_codecs_did_is_noted_for_the_pairs_they_did_it_to() -> None:
    table = Table(layers=2)
    second: list[Send] = []
    requests = dispatches(table.begin())
    for request in requests:
        table.home.on_reply(table.answer(request, path=3 if request is requests[0] else 0), 0.0)
    second = table.sent()
    result = result_of(table.answer_all(second))
    layer = table.model.layers[0]
    hit = route(layer, prepare(layer, X)).experts == requests[0].lots[0][1]
    assert result.dispatch_paths is not None and result.combine_paths is not None
    assert np.array_equal(result.dispatch_paths[0], np.where(hit, 3, 0))
    assert not result.dispatch_paths[1].any() and not result.combine_paths.any()


# -- what a module refuses ----------------------------------------------------------------------------
def two_by_two() -> tuple[Table, Dispatch, Dispatch]:
    """Experts 0 and 1 on module 1, 2 and 3 on module 2; the requests for each."""
    table = Table()
    table.placed = placed_on([0, 1, 2, 3], [1, 1, 2, 2])
    table.home.view = table.view([ALIVE] * 4, 1)
    first, second = dispatches(table.begin())
    assert [lot[:2] for lot in first.lots] == [[1, 0], [1, 1]] and second.lots[0][0] == 2
    return table, first, second


def test_what_a_module_lacks_waits_for_a_newer_view_and_the_rest_goes_out_anew() -> None:
    table, first, second = two_by_two()
    table.home.on_refusal(Refusal(ME, first.request, 0, 1, [0]), 0.1)
    again, *others = dispatches(sent := table.sent())
    assert [s.message for s in sent if isinstance(s.message, Failure)] == [Failure(0, 0, 0, 0, ME)]
    assert not others and again.lots == [first.lots[1]] and again.request != first.request
    table.home.on_refusal(Refusal(ME, first.request, 0, 1, [0]), 0.1)
    assert table.sent() == [], "it comes twice"
    assert table.answer_all([Send(1, again), Send(2, second)]) == []
    table.placed = placed_on([0, 1, 2, 3], [3, 1, 2, 2])
    table.home.on_view(table.view([ALIVE] * 4), 0.2)
    (moved,) = dispatches(sends := table.sent())
    assert [lot[:2] for lot in moved.lots] == [[3, 0]] and moved.lots[0][2] == first.lots[0][2]
    (result,) = [s.message for s in table.answer_all(sends) if isinstance(s.message, Result)]
    assert np.array_equal(result.rows, table.reference(X, result))


def test_without_a_newer_view_what_was_refused_is_asked_for_again_a_little_later() -> None:
    table, first, second = two_by_two()
    table.answer_all([Send(2, second)])
    table.home.on_refusal(Refusal(ME, first.request, 0, 1, [0, 1]), 1.0)
    assert dispatches(table.sent()) == []
    retry = table.config.retry_after
    table.home.tick(1.0 + 0.9 * retry)
    assert table.sent() == [] and table.home.wake <= 1.0 + retry
    table.home.tick(1.0 + retry)
    sends = table.sent()
    assert sum(lot[2] for d in dispatches(sends) for lot in d.lots) == sum(lot[2] for lot in first.lots)
    assert [type(s.message) for s in table.answer_all(sends)] == [Result]


def test_old_news_of_a_lost_expert_drops_nothing_that_has_a_copy() -> None:
    """It was lost once, is back, and was refused by a module that does not hold it yet."""
    table = Table(drop_lost_experts=True)
    sends = table.begin()
    first = next(d for d in dispatches(sends) if d.lots[0][0] == 1)
    table.home.on_refusal(Refusal(ME, first.request, 0, 1, [1]), 0.1)
    assert [p.expert for p in table.home.parking.parked] == [1]
    table.home.on_failure(Failure(0, 0, 0, 1, ME), 0.2)
    assert [p.expert for p in table.home.parking.parked] == [1], "it has a copy in this view"
    gone = [ALIVE, DEAD, ALIVE, ALIVE]
    table.home.on_view(table.view(gone), 0.3)
    table.home.on_failure(Failure(0, 0, 0, 1, ME), 0.4)
    assert not table.home.parking.parked, "now it has none"


def test_a_refusal_by_one_module_leaves_what_others_were_asked_for() -> None:
    """One request by way of a relay: module 3 lacks its expert, module 2 does not."""
    from rayemu.alltoall import EXCHANGES

    table = Table(exchange=EXCHANGES["hierarchical"]())
    sends = table.begin()
    (both,) = [d for d in dispatches(sends) if {lot[0] for lot in d.lots} == {2, 3}]
    table.home.on_refusal(Refusal(ME, both.request, 0, 3, [3]), 0.1)
    assert [type(s.message) for s in table.sent()] == [Failure]
    (parked,) = table.home.parking.parked
    assert parked.expert == 3 and len(parked.pairs) == next(lot[2] for lot in both.lots if lot[1] == 3)
    assert table.home.requests.by_number[both.request].open().sum() == both.lots[0][2]


def test_an_answer_that_comes_after_all_is_taken() -> None:
    table, first, second = two_by_two()
    table.home.on_refusal(Refusal(ME, first.request, 0, 1, [0, 1]), 0.1)
    assert [type(s.message) for s in table.sent()] == [Failure, Failure]
    assert table.home.requests.load(4).tolist() == [0, 0, sum(lot[2] for lot in second.lots), 0]
    assert [type(s.message) for s in table.answer_all([Send(1, first), Send(2, second)])] == [Result]
    table.home.tick(99.0)
    assert table.sent() == []
