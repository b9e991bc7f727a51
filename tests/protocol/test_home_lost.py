"""The home by hand: experts that are lost, come back, or are refused by whom our view says has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rayemu.alltoall import ALIVE, DEAD
from rayemu.model.expert import expert_forward
from rayemu.model.reference import prepare, reference_forward, route
from rayemu.protocol.messages import (
    COORDINATOR,
    DROPPED,
    Dispatch,
    Failure,
    Refusal,
    Result,
    Send,
)
from tests.protocol.home_table import ME, Table, X, dispatches, pairs_of, result_of
from tests.views import placed_on


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
    assert pairs_of(dispatches(again)) == pairs_of([request])
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
    assert first.lots[:, :2].tolist() == [[1, 0], [1, 1]] and second.lots[0][0] == 2
    return table, first, second


def test_what_a_module_lacks_waits_for_a_newer_view_and_the_rest_goes_out_anew() -> None:
    table, first, second = two_by_two()
    table.home.on_refusal(Refusal(ME, first.request, 0, 1, [0]), 0.1)
    again, *others = dispatches(sent := table.sent())
    assert [s.message for s in sent if isinstance(s.message, Failure)] == [Failure(0, 0, 0, 0, ME)]
    assert not others and again.lots.tolist() == first.lots[1:].tolist() and again.request != first.request
    table.home.on_refusal(Refusal(ME, first.request, 0, 1, [0]), 0.1)
    assert table.sent() == [], "it comes twice"
    assert table.answer_all([Send(1, again), Send(2, second)]) == []
    table.placed = placed_on([0, 1, 2, 3], [3, 1, 2, 2])
    table.home.on_view(table.view([ALIVE] * 4), 0.2)
    (moved,) = dispatches(sends := table.sent())
    assert moved.lots[:, :2].tolist() == [[3, 0]] and moved.lots[0][2] == first.lots[0][2]
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
    assert pairs_of(dispatches(sends)) == pairs_of([first])
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
    (both,) = [d for d in dispatches(sends) if {*d.lots[:, 0].tolist()} == {2, 3}]
    table.home.on_refusal(Refusal(ME, both.request, 0, 3, [3]), 0.1)
    assert [type(s.message) for s in table.sent()] == [Failure]
    (parked,) = table.home.parking.parked
    assert parked.expert == 3 and len(parked.pairs) == both.lots[both.lots[:, 1] == 3, 2].item()
    assert table.home.requests.by_number[both.request].open().sum() == both.lots[0][2]


def test_an_answer_that_comes_after_all_is_taken() -> None:
    table, first, second = two_by_two()
    table.home.on_refusal(Refusal(ME, first.request, 0, 1, [0, 1]), 0.1)
    assert [type(s.message) for s in table.sent()] == [Failure, Failure]
    assert table.home.requests.load(4).tolist() == [0, 0, pairs_of([second]), 0]
    assert [type(s.message) for s in table.answer_all([Send(1, first), Send(2, second)])] == [Result]
    table.home.tick(99.0)
    assert table.sent() == []
