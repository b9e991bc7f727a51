"""A home that asks modules for the best of their experts: lost, doubled, late and wrong answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rayemu.alltoall import ALIVE, DEAD, SUSPECTED
from rayemu.compression import WireError
from rayemu.model.reference import gate_of, prepare, reference_forward, route
from rayemu.protocol.messages import COORDINATOR, GroupsReply, OfferReply, OfferRequest, Send, Suspect
from rayemu.protocol.offers import score, scorers
from tests.protocol.home_table import ME, Table, X, dispatches, result_of


def table(copies: int = 1, layers: int = 1) -> Table:
    return Table(copies, layers, place="distributed")


def requests(sends: list[Send]) -> dict[int, OfferRequest]:
    """By the module that is asked."""
    return {s.to: s.message for s in sends if isinstance(s.message, OfferRequest)}


def answer(at: Table, m: OfferRequest) -> OfferReply:
    """By the gate's own columns and a sort of each row, not by what a module does."""
    layer = at.model.layers[m.layer]
    logits = gate_of(layer).logits(m.rows)[:, m.experts]
    order = np.argsort(-logits, axis=1, kind="stable")[:, : min(2, len(m.experts))]
    experts, scores = m.experts[order].astype(np.int32), np.take_along_axis(logits, order, axis=1)
    return OfferReply(m.home, m.request, m.batch, m.slice, m.micro, m.layer, experts, scores)


def choices(at: Table) -> np.ndarray:
    (held,) = at.home.slices.values()
    assert held.units[0].experts is not None
    return held.units[0].experts


def test_each_module_is_asked_for_its_own_experts_and_the_best_of_all_are_taken() -> None:
    at = table(layers=2)
    sends = at.begin()
    asked = requests(sends)
    assert {to: m.experts.tolist() for to, m in asked.items()} == {1: [1], 2: [2], 3: [3]}
    assert len(sends) == 3, "nothing is dispatched before all offers are in"
    for to in (3, 1):
        at.home.on_choices(answer(at, asked[to]), 0.0)
        assert at.sent() == []
    at.home.on_choices(answer(at, asked[2]), 0.0)
    layer = at.model.layers[0]
    assert np.array_equal(choices(at), route(layer, prepare(layer, X)).experts)
    second = at.answer_all(at.sent())
    for m in requests(second).values():
        assert m.layer == 1
        at.home.on_choices(answer(at, m), 0.0)
    assert np.array_equal(result_of(at.answer_all(at.sent())).rows, reference_forward(at.model, X))


def test_offers_that_come_twice_or_late_change_nothing() -> None:
    at = table()
    asked = requests(at.begin())
    twisted = {}
    for to, m in asked.items():
        offer = answer(at, m)
        at.home.on_choices(offer, 0.0)
        twisted[to] = replace(offer, scores=offer.scores + 9)
        at.home.on_choices(twisted[to], 0.0)
    layer = at.model.layers[0]
    assert np.array_equal(choices(at), route(layer, prepare(layer, X)).experts)
    sends = at.sent()
    at.home.on_choices(twisted[1], 0.0)
    assert at.sent() == [] and np.array_equal(
        result_of(at.answer_all(sends)).rows, reference_forward(at.model, X)
    )


def test_an_offer_of_other_rows_or_experts_is_a_bad_frame() -> None:
    at = table()
    m = requests(at.begin())[2]
    good = answer(at, m)
    for experts in (good.experts[:-1], good.experts + 1):
        with pytest.raises(WireError, match="offer"):
            at.home.on_choices(replace(good, experts=experts, scores=good.scores[: len(experts)]), 0.0)
    at.home.on_choices(good, 0.0)
    assert m.request not in at.home.chooser.offers.parts


def test_what_is_late_is_asked_again_and_what_nobody_answers_is_scored_at_home() -> None:
    at = table()
    asked = requests(at.begin())
    for to in (1, 3):
        at.home.on_choices(answer(at, asked[to]), 0.0)
    for _ in range(3):
        due = at.home.wake
        at.home.tick(due - 1e-3)
        assert at.sent() == []
        at.home.tick(due)
        again = at.sent()
        assert [s.to for s in again] == [2] and requests(again)[2].request == asked[2].request
    at.home.tick(at.home.wake)
    sends = at.sent()
    assert [s.message for s in sends if s.to == COORDINATOR] == [Suspect(2, 0, ME)]
    layer = at.model.layers[0]
    assert np.array_equal(choices(at), route(layer, prepare(layer, X)).experts)
    at.home.on_choices(answer(at, asked[2]), 0.0)  # late
    assert dispatches(sends) and at.sent() == []


@pytest.mark.parametrize("state", [DEAD, SUSPECTED])
def test_experts_of_a_module_that_is_gone_are_scored_by_others(state: int) -> None:
    at = table(copies=2)  # expert e on e and, second, on e + 2 (mod 4)
    asked = requests(at.begin())
    assert {to: m.experts.tolist() for to, m in asked.items()} == {1: [1], 2: [2], 3: [3]}
    at.home.on_view(at.view([ALIVE, state, ALIVE, ALIVE], 3), 0.0)
    again = requests(at.sent())
    assert {to: m.experts.tolist() for to, m in again.items()} == {3: [1]}
    assert again[3].request != asked[3].request
    at.home.on_choices(answer(at, asked[1]), 0.0)  # of the one that is gone: its experts are others' now
    assert at.sent() == []
    # That one is replaced while the others are being asked: nothing changes for what is open.
    at.home.on_view(at.view([ALIVE] * 4, 4, (0, 1, 0, 0)), 0.0)
    assert not requests(at.sent())
    for m in (again[3], asked[2], asked[3]):
        at.home.on_choices(answer(at, m), 0.0)
    layer = at.model.layers[0]
    assert np.array_equal(choices(at), route(layer, prepare(layer, X)).experts)


def test_experts_that_nobody_has_are_scored_at_home() -> None:
    at = table()
    asked = requests(at.begin())
    at.home.on_view(at.view([ALIVE, DEAD, ALIVE, ALIVE], 3), 0.0)
    assert not requests(at.sent())
    for to in (2, 3):
        at.home.on_choices(answer(at, asked[to]), 0.0)
    layer = at.model.layers[0]
    assert np.array_equal(choices(at), route(layer, prepare(layer, X)).experts)


def test_each_expert_has_one_scorer_that_lives() -> None:
    at = table(copies=2)
    for states in ([ALIVE] * 4, [ALIVE, SUSPECTED, ALIVE, DEAD], [ALIVE, DEAD, ALIVE, DEAD]):
        for home in (0, 2):
            found = scorers(at.view(states), 0, home)
            assert all(states[m] == ALIVE for m in found), found
            copies = [(e, (e + 2) % 4) for e in range(4)]
            alive = [[m for m in of if states[m] == ALIVE] for of in copies]
            assert found.tolist() == [of[0] if of else home for of in alive]


def test_a_layer_whose_choices_cannot_be_made_in_parts_is_refused() -> None:
    experts = np.arange(2, dtype=np.int32)
    dense = Table(model={"dense_layers": 1, "dense_d_ff": 16}).model
    with pytest.raises(WireError, match="layer 0"):
        score(dense, 0, X, experts)
    at = Table()
    at.home.on_choices(GroupsReply(0, 0, 0, 0, np.zeros((12, 1), np.uint8)), 0.0)  # nobody asked
    hybrid = Table(place="hybrid")
    hybrid.begin()
    with pytest.raises(WireError, match="groups"):
        hybrid.home.on_choices(GroupsReply(0, 0, 0, 0, np.zeros((12, 1), np.uint8)), 0.0)
