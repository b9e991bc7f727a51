"""The coordinator by hand: who is told what of the membership and when, and what becomes of batches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rayemu.alltoall import ALIVE, DEAD, LEAVING, LOADING, READY, SUSPECTED
from rayemu.model.model import Model
from rayemu.model.reference import prepare, route
from rayemu.placement import PLACEMENTS, problem_of
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.coordinator import ANNOUNCE_AGAIN, CoordinatorMachine
from rayemu.protocol.epochs import endpoints_of, slots_of
from rayemu.protocol.messages import (
    CLIENT,
    Accepted,
    Ack,
    Epoch,
    Failure,
    Heartbeat,
    Join,
    Loaded,
    Message,
    Move,
    Moved,
    Notice,
    RouteReply,
    RouteRequest,
    Send,
    Slice,
    SliceProbe,
    SliceStatus,
    Submit,
    Suspect,
)
from rayemu.scenario import Scenario
from tests.views import everything, placed_on

SCENARIO = Scenario.from_dict({"model": {"d_model": 16, "d_ff": 16, "experts": 4, "top_k": 2, "layers": 2}})
MODEL = Model(SCENARIO.spec)
CONFIG = replace(ProtocolConfig.from_scenario(SCENARIO), min_slice_rows=5)
PLACED = PLACEMENTS["linear"]().place(problem_of(np.ones(4, int), 4))  # expert e on module e
NODES = np.array([0, 0, 1, 1], np.int32)
X = np.random.default_rng(1).standard_normal((20, 16), dtype=np.float32)
EVERYONE = [CLIENT, 0, 1, 2, 3]


def machine(**changes: object) -> CoordinatorMachine:
    return CoordinatorMachine(replace(CONFIG, **changes), MODEL, PLACED, NODES)  # type: ignore[arg-type]


def joined(**changes: object) -> CoordinatorMachine:
    m = machine(**changes)
    for module in range(4):
        m.receive(Join(module, 0, f"e{module}", everything()), 0.0)
    m.tick(0.0)
    return m


def of(kind: type, sends: list[Send]) -> list[Send]:
    return [s for s in sends if isinstance(s.message, kind)]


def told(sends: list[Send]) -> list[int]:
    """Who is told of a membership, all of the same."""
    assert len({s.message.epoch for s in of(Epoch, sends)}) <= 1  # type: ignore[union-attr]
    return sorted(s.to for s in of(Epoch, sends))


def test_before_all_have_joined_only_the_one_who_joins_is_told_and_not_of_places() -> None:
    m = machine()
    for module in (2, 0, 3):
        sends = m.receive(Join(module, 0, f"e{module}", everything(), 7, 8, "h"), 1.0)
        assert told(sends) == [module] and m.tick(1.0) == []
        answer = of(Epoch, sends)[0].message
        assert isinstance(answer, Epoch) and answer.state[module] == ALIVE and endpoints_of(answer) == []
        (notice,) = of(Notice, sends)
        assert notice.to == CLIENT
        assert notice.message.facts["pid"] == 7 and notice.message.facts["host"] == "h"  # type: ignore[union-attr]
        assert m.receive(Heartbeat(module, 0, 1), 1.0) == [], "nobody lags behind yet"
    last = m.receive(Join(1, 0, "e1", everything()), 1.0)
    assert told(last) == EVERYONE
    epoch = last[0].message
    assert isinstance(epoch, Epoch) and endpoints_of(epoch) == ["e0", "e1", "e2", "e3"]
    assert epoch.state.tolist() == [ALIVE] * 4 and isinstance(last[-1].message, Notice)


def test_a_module_that_missed_the_answer_to_its_join_is_answered_again() -> None:
    for m in (machine(), joined()):
        m.receive(Join(1, 0, "e1", everything()), 1.0)
        m.announced_at[1] = 1.0
        late = 1.0 + ANNOUNCE_AGAIN * CONFIG.retry_after
        assert m.receive(Join(1, 0, "e1", everything()), late - 0.01) == []
        again = m.receive(Join(1, 0, "e1", everything()), late + 0.01)
        assert told(again) == [CLIENT, 1] and not of(Notice, again)
        assert m.membership.members[1].heard == late + 0.01, "who asks to join is alive"


def test_who_lags_behind_what_was_announced_is_told_again() -> None:
    m = joined()
    epoch, late = m.announced, 0.01 + ANNOUNCE_AGAIN * CONFIG.retry_after
    assert told(m.receive(Heartbeat(2, 0, epoch - 1), late)) == [CLIENT, 2]
    assert m.receive(Heartbeat(2, 0, epoch - 1), late + 0.01) == []
    assert m.receive(Heartbeat(3, 0, epoch), late) == []


def test_bad_news_is_told_at_once_and_good_news_once_for_all() -> None:
    m = joined()
    for module in (1, 2):
        assert told(m.receive(Suspect(module, 0, 3), 0.05)) == EVERYONE
    for module in (1, 2):
        sends = m.receive(Heartbeat(module, 0, 0), 0.06)
        assert told(sends) == [] and of(Notice, sends)[0].message.kind == "recovered"  # type: ignore[union-attr]
    sends = m.tick(0.06)
    assert told(sends) == EVERYONE
    assert sends[0].message.state.tolist() == [ALIVE] * 4  # type: ignore[union-attr]
    assert told(m.tick(0.07)) == []
    dead = m.down(1, 0, "process", 0.08)
    assert told(dead) == [CLIENT, 0, 2, 3]
    assert dead[0].message.state.tolist() == [ALIVE, DEAD, ALIVE, ALIVE]  # type: ignore[union-attr]
    assert told(m.receive(Join(1, 1, "new", everything()), 0.09)) == []
    again = m.tick(0.09)
    assert told(again) == EVERYONE and endpoints_of(again[0].message)[1] == "new"  # type: ignore[arg-type]
    assert m.down(1, 0, "late news", 0.09) == []
    assert m.receive(Join(1, 0, "old", everything(), 9, 9, "h"), 9.0) == [] and m.processes[1] == (0, "")
    kinds = ["suspected"] * 2 + ["recovered"] * 2 + ["dead", "joined"]
    assert [c.kind for c in m.changes[4:]] == kinds, "for whoever starts and ends processes"


def test_a_batch_is_accepted_once_cut_and_routed() -> None:
    m = joined()
    sends = m.receive(Submit(0, 0, X), 0.0)
    slices = [s.message for s in of(Slice, sends)]
    assert sorted(s.to for s in of(Slice, sends)) == [0, 1, 2, 3]
    assert [type(s.message) for s in sends if s.to == CLIENT] == [Accepted]
    expected = route(MODEL.layers[0], prepare(MODEL.layers[0], X))
    for name, wanted in (("rows", X), ("experts", expected.experts), ("weights", expected.weights)):
        assert np.array_equal(np.concatenate([getattr(s, name) for s in slices]), wanted)
    assert [type(s.message) for s in m.receive(Submit(0, 0, X), 0.0)] == [Accepted]
    dense = joined()
    dense.model = Model(replace(SCENARIO.spec, dense_layers=1, dense_d_ff=16))
    for other in (joined(place="modules"), dense):
        unrouted = other.receive(Submit(0, 0, X), 0.0)
        assert all(s.message.experts is None for s in of(Slice, unrouted))  # type: ignore[union-attr]


def test_the_slices_of_a_dead_home_go_to_others_with_the_news_and_finished_ones_do_not() -> None:
    m = joined()
    homes = {s.to: s.message.slice for s in of(Slice, m.receive(Submit(0, 0, X), 0.0))}  # type: ignore[union-attr]
    m.receive(Ack(0, homes[0]), 0.0)
    for lost in (0, 1):
        sends = m.down(lost, 0, "process", 0.01)
        moved = of(Slice, sends)
        assert [s.message.slice for s in moved] == ([] if lost == 0 else [homes[1]])  # type: ignore[union-attr]
        assert all(s.to in (2, 3) for s in moved)
    for slice in homes.values():
        m.receive(Ack(0, slice), 0.02)
    assert m.epoch().complete_below == 1 and m.report().open_batches == 0
    m.down(2, 0, "process", 0.02)
    assert m.report().reissued == 1 and m.report().live == 1


def test_slices_wait_for_the_first_module_that_can_take_them() -> None:
    m = joined()
    for module in range(4):
        m.down(module, 0, "process", 0.0)
    assert [type(s.message) for s in m.receive(Submit(0, 0, X), 0.1)] == [Accepted]
    m.receive(Join(2, 1, "new", everything()), 0.2)
    assert {s.to for s in of(Slice, m.tick(0.2))} == {2}


def test_overdue_slices_are_probed_and_resent_to_who_does_not_know_them() -> None:
    m = joined(suspect_after=1e9)
    homes = {s.to: s.message.slice for s in of(Slice, m.receive(Submit(0, 0, X), 0.0))}  # type: ignore[union-attr]
    probes = of(SliceProbe, m.tick(10.0))
    assert {s.to: s.message.slice for s in probes} == homes  # type: ignore[union-attr]
    assert m.receive(SliceStatus(0, homes[2], 2, True), 10.0) == []
    (again,) = m.receive(SliceStatus(0, homes[2], 2, False), 10.0)
    assert again.to == 2 and isinstance(again.message, Slice) and again.message.experts is not None


def test_an_expert_is_lost_only_if_the_coordinator_knows_no_copy_either() -> None:
    for drop in (False, True):
        m = joined(drop_lost_experts=drop)
        m.receive(Suspect(1, 0, 0), 0.0)
        failure = Failure(0, 0, 0, 1, 3)  # expert 1 lives on module 1 only, which may come back
        assert m.membership.view.state[1] == SUSPECTED and told(m.receive(failure, 0.0)) == [CLIENT, 3]
        m.down(1, 0, "process", 0.0)
        assert m.receive(failure, 0.0) == [Send(3 if drop else CLIENT, failure)]


def test_rows_are_routed_for_the_living() -> None:
    m = joined()
    request: Message = RouteRequest(2, 5, 6, 7, 1, X)
    (answer,) = m.receive(request, 0.0)
    expected = route(MODEL.layers[1], X)
    reply = answer.message
    assert answer.to == 2 and isinstance(reply, RouteReply)
    assert (reply.batch, reply.slice, reply.micro, reply.layer) == (5, 6, 7, 1)
    assert np.array_equal(reply.experts, expected.experts) and np.array_equal(reply.weights, expected.weights)
    m.down(2, 0, "process", 0.0)
    assert m.receive(request, 0.0) == []


def test_totals_are_those_of_the_last_heartbeat_that_brought_some() -> None:
    m = joined()
    m.receive(Heartbeat(3, 0, m.announced, {"rows": 5.0}), 0.01)
    m.receive(Heartbeat(3, 0, m.announced), 0.02)
    report = m.report()
    assert report.modules.tolist() == [3] and report.counts[0, 0] == 5.0 and report.counts[0, 1:].sum() == 0


# -- experts that move --------------------------------------------------------------------------------
WANTED = placed_on([0, 1, 2, 3], [1, 1, 2, 3])  # expert 0 goes from module 0 to module 1


def slots(m: CoordinatorMachine) -> dict[tuple[int, int], int]:
    """The state of each (expert, module)."""
    view = m.membership.view
    placed = view.placement.expert.tolist(), view.placement.module.tolist(), view.slot_state.tolist()
    return {(e, module): state for e, module, state in zip(*placed, strict=True)}


def moving(**changes: object) -> CoordinatorMachine:
    """Expert 0 is ready at module 1 and leaves module 0."""
    m = joined(**changes)
    m.receive(Move(0, slots_of(WANTED)), 0.1)
    assert slots(m)[0, 1] == LOADING
    loaded = Loaded(1, 0, m.membership.view.epoch, np.array([[0], [0]], np.uint16), np.array([7]))
    m.receive(loaded, 0.1)
    assert slots(m)[0, 1] == READY and slots(m)[0, 0] == LEAVING
    return m


def test_the_last_copy_is_taken_back_with_the_same_epoch_that_tells_of_a_death() -> None:
    m = moving(replace=False)
    epochs = of(Epoch, m.down(1, 0, "process", 0.1))
    assert slots(m)[0, 0] == READY and {e.message.epoch for e in epochs} == {m.membership.view.epoch}
    assert of(Failure, m.receive(Failure(0, 0, 0, 0, 2), 0.1)) == []


def test_an_expert_that_is_still_held_where_it_was_to_leave_is_not_lost() -> None:
    """Whatever the order of events: the table comes right with the next tick, a batch never."""
    m = moving(replace=False)
    m.membership.down(1, 0, "process", 0.1)  # nobody has looked at the table yet
    assert slots(m)[0, 0] == LEAVING
    assert m.receive(Failure(0, 0, 0, 0, 2), 0.1) == []
    m.tick(0.15)
    assert slots(m)[0, 0] == READY


def test_a_move_is_told_of_once_it_is_done_and_whenever_asked() -> None:
    m = moving()
    epoch = m.membership.view.epoch
    assert [s.message.done for s in m.receive(Move(0, slots_of(WANTED)), 0.1)] == [False]
    for module in range(4):
        m.receive(Heartbeat(module, 0, epoch), 0.2)
    (status,) = of(Moved, m.tick(0.3))
    assert status.to == CLIENT
    assert replace(status.message, seconds=0.0) == Moved(0, True, 1, 1, 0, 7, 0.0)
    assert abs(status.message.seconds - 0.2) < 1e-9
    assert (0, 0) not in slots(m)
    assert of(Moved, m.receive(Move(0, slots_of(WANTED)), 9.0)) == [status]
    assert m.receive(Move(-1, slots_of(PLACED)), 9.0) == [], "an older move than this is over"


def test_bytes_that_were_fetched_count_once() -> None:
    m = moving()
    again = Loaded(1, 0, m.membership.view.epoch, np.array([[0], [0]], np.uint16), np.array([7]))
    answer = m.receive(again, 0.2)
    assert {s.to for s in of(Epoch, answer)} == {CLIENT, 1}, "it has not heard that this is known"
    assert m.mover is not None and m.mover.fetched == 7


def test_a_slot_stays_until_the_replacement_of_a_module_knows_that_it_leaves() -> None:
    """What the module before it knew counts for nothing."""
    m = moving(replace_after=0.01)
    m.receive(Heartbeat(3, 0, 99), 0.1)
    m.down(3, 0, "process", 0.1)
    m.tick(0.12)
    m.receive(Join(3, 1, "e3", everything()), 0.12)
    for module in range(3):
        m.receive(Heartbeat(module, 0, m.membership.view.epoch), 0.13)
    m.tick(0.13)
    assert slots(m)[0, 0] == LEAVING
    m.receive(Heartbeat(3, 1, m.membership.view.epoch), 0.14)
    m.tick(0.14)
    assert (0, 0) not in slots(m)


def test_a_move_that_is_over_still_lets_go_of_what_had_to_stay() -> None:
    m = moving(replace=False)
    m.receive(Suspect(1, 0, 2), 0.1)
    for module in (0, 2, 3):
        m.receive(Heartbeat(module, 0, m.membership.view.epoch), 0.11)
    m.tick(0.12)
    assert slots(m)[0, 0] == READY and m.mover is not None and m.mover.done
    m.receive(Heartbeat(1, 0, m.membership.view.epoch), 0.15)
    m.tick(0.15)
    assert slots(m)[0, 0] == LEAVING


def test_a_move_waits_until_all_have_joined() -> None:
    m = machine()
    m.receive(Join(0, 0, "e0", everything()), 0.0)
    m.receive(Move(0, slots_of(WANTED)), 0.0)
    m.tick(0.0)
    assert (0, 1) not in slots(m)
    for module in range(1, 4):
        m.receive(Join(module, 0, f"e{module}", everything()), 0.1)
    m.tick(0.1)
    assert slots(m)[0, 1] == LOADING
