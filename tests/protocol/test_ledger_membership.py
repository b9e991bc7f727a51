"""The ledger and the membership by hand: small stories with the expected course written out."""

from __future__ import annotations

import numpy as np

from rayemu.alltoall import ALIVE, DEAD, LEAVING, LOADING, READY, SUSPECTED, View
from rayemu.placement import PLACEMENTS, problem_of
from rayemu.protocol.ledger import Ledger
from rayemu.protocol.membership import Membership
from rayemu.protocol.messages import Slice, SliceProbe
from tests.views import a_view, everything, placed_on

PLACED = PLACEMENTS["linear"]().place(problem_of(np.full(4, 2), 4))
NODES = np.array([0, 0, 1, 1], np.int32)


def view(states: list[int], incarnations: tuple[int, ...] = (0, 0, 0, 0)) -> View:
    return a_view(PLACED, NODES, 4, states, incarnations)


ALL = view([ALIVE] * 4)


def test_slices_cover_the_batch_on_distinct_homes() -> None:
    ledger = Ledger(min_slice_rows=10, retry_after=0.25)
    x = np.arange(80, dtype=np.float32).reshape(40, 2)
    sends = ledger.submit(0, x, ALL, now=0.0)
    slices = [s.message for s in sends if isinstance(s.message, Slice)]
    assert [s.slices for s in slices] == [4] * 4
    assert sorted(s.to for s in sends) == [0, 1, 2, 3]
    assert np.array_equal(np.concatenate([s.rows for s in slices]), x)
    assert ledger.submit(0, x, ALL, now=0.0) == [], "a repeated submit starts nothing"


def test_small_batches_rotate_their_single_home() -> None:
    ledger = Ledger(min_slice_rows=64, retry_after=0.25)
    homes = [ledger.submit(n, np.zeros((5, 2), np.float32), ALL, 0.0)[0].to for n in range(8)]
    assert homes == [0, 1, 2, 3, 0, 1, 2, 3]


def test_dead_homes_lose_their_slices_once() -> None:
    ledger = Ledger(10, 0.25)
    ledger.submit(0, np.zeros((40, 2), np.float32), ALL, 0.0)
    ledger.acknowledge(0, 1)
    later = ledger.on_view(view([ALIVE, DEAD, DEAD, ALIVE]), 1.0)
    moved = [(s.to, s.message.slice) for s in later if isinstance(s.message, Slice)]
    assert [slice for _, slice in moved] == [2] and moved[0][0] in (0, 3)
    assert ledger.on_view(view([ALIVE, DEAD, DEAD, ALIVE]), 1.0) == []
    assert ledger.reissued == 1


def test_slices_wait_for_someone_to_live() -> None:
    ledger = Ledger(10, 0.25)
    assert ledger.submit(0, np.zeros((40, 2), np.float32), view([DEAD] * 4), 0.0) == []
    sends = ledger.on_view(view([DEAD, ALIVE, DEAD, DEAD]), 1.0)
    assert {s.to for s in sends} == {1}


def test_nobody_is_woken_for_slices_that_have_no_home() -> None:
    ledger = Ledger(10, 0.25)
    ledger.submit(0, np.zeros((40, 2), np.float32), ALL, 0.0)
    none = view([DEAD] * 4)
    for _ in range(3):
        due = ledger.deadline()
        assert ledger.tick(ALL, due - 1e-3) == [] and len(ledger.tick(ALL, due)) == 4
        assert ledger.deadline() > due
    ledger.on_view(none, due)
    assert ledger.deadline() == float("inf") and ledger.tick(none, 1e9) == []
    ledger.submit(1, np.zeros((5, 2), np.float32), none, 2.0)
    assert ledger.deadline() == float("inf"), "nor for those that never had one"
    sends = ledger.on_view(ALL, 9.0)
    assert len(sends) == 5 and ledger.deadline() == 9.0 + ledger.nudge_after


def test_a_new_incarnation_is_another_home() -> None:
    ledger = Ledger(64, 0.25)
    assert ledger.submit(0, np.zeros((5, 2), np.float32), ALL, 0.0)[0].to == 0
    assert len(ledger.on_view(view([ALIVE] * 4, (1, 0, 0, 0)), 1.0)) == 1


def test_complete_below_is_contiguous() -> None:
    ledger = Ledger(64, 0.25)
    for n in (1, 0, 2):  # submits may overtake each other
        assert ledger.submit(n, np.zeros((5, 2), np.float32), ALL, 0.0)
    ledger.acknowledge(1, 0)
    assert ledger.complete_below == 0
    ledger.acknowledge(0, 0)
    assert ledger.complete_below == 2
    ledger.acknowledge(2, -1)
    assert ledger.complete_below == 3
    assert ledger.submit(1, np.zeros((5, 2), np.float32), ALL, 9.0) == [], "a finished batch is not run again"


def test_what_the_client_is_done_with_is_complete_whatever_came_here() -> None:
    """Batch 1 never came, as its frame was lost, and the word that batch 2 was given up was lost, too."""
    ledger = Ledger(10, 0.25)
    x = np.zeros((5, 2), np.float32)
    for number in (0, 2, 3):
        ledger.submit(number, x, ALL, 0.0)
    ledger.acknowledge(0, 0)
    ledger.acknowledge(3, 0)
    assert ledger.complete_below == 1 and list(ledger.batches) == [2]
    ledger.forget_below(3)
    assert ledger.complete_below == 4 and not ledger.batches and not ledger.completed
    ledger.forget_below(2)
    assert ledger.complete_below == 4
    assert ledger.submit(1, x, ALL, 1.0) == [], "a frame that was late starts nothing"


def test_overdue_slices_are_probed_and_resent_if_unknown() -> None:
    ledger = Ledger(64, 0.25)
    (first,) = ledger.submit(0, x := np.ones((5, 2), np.float32), ALL, 0.0)
    home = first.to
    assert ledger.tick(ALL, 0.5) == []
    (probe,) = ledger.tick(ALL, 1.1)
    assert probe.to == home and isinstance(probe.message, SliceProbe)
    assert ledger.on_status(0, 0, home, True, ALL, 1.2) == []
    (again,) = ledger.on_status(0, 0, home, False, ALL, 1.3)
    assert isinstance(again.message, Slice) and isinstance(first.message, Slice)
    assert np.array_equal(again.message.rows, x)
    assert np.shares_memory(first.message.rows, x), "the batch is not copied"
    assert not np.shares_memory(again.message.rows, x), "but for a home that may not reach its memory"


def membership(**changes: float | bool) -> Membership:
    args: dict = {"suspect_after": 0.06, "evict_after": 1.0, "replace_after": 0.3, "replace": True, **changes}
    m = Membership(NODES, PLACED, (1, 4), **args)
    for module in range(4):
        m.join(module, 0, f"e{module}", everything(), 0.0)
    m.tick(0.0)
    return m


def beat(m: Membership, now: float, silent: tuple[int, ...] = ()) -> list[str]:
    """Let all but the silent modules be heard, then judge; return what changed."""
    changes = []
    for module in range(4):
        if module not in silent:
            changes += m.heard(module, int(m.view.incarnations[module]), now)
    return [f"{c.kind} {c.module}" for c in changes + m.tick(now)]


def run(m: Membership, until: float, start: float, silent: tuple[int, ...]) -> list[tuple[float, str]]:
    found = []
    for step in range(round(start * 100), round(until * 100)):
        found += [(step / 100, text) for text in beat(m, step / 100, silent)]
    return found


def test_silence_is_suspected_then_fatal_then_replaced() -> None:
    m = membership()
    assert run(m, 0.5, 0.01, ()) == []
    story = run(m, 3.0, 0.5, (2,))
    assert [text for _, text in story] == ["suspected 2", "dead 2", "replace 2"]
    suspected, dead, replaced = (t for t, _ in story)
    assert (
        0.05 <= suspected - 0.49 <= 0.08
        and 1.0 <= dead - suspected <= 1.03
        and 0.3 <= replaced - dead <= 0.33
    )
    assert m.view.state.tolist() == [ALIVE, ALIVE, DEAD, ALIVE]
    assert m.join(2, 1, "new", everything(), 3.0)[0].kind == "joined"
    assert m.view.state[2] == ALIVE and m.view.incarnations[2] == 1 and m.endpoints[2] == "new"


def test_a_suspect_that_is_heard_is_forgiven() -> None:
    m = membership()
    before = m.view.epoch
    run(m, 0.3, 0.01, ())
    assert [t for _, t in run(m, 0.45, 0.3, (1,))] == ["suspected 1"]
    assert m.view.state[1] == SUSPECTED
    assert [t for _, t in run(m, 0.5, 0.45, ())] == ["recovered 1"]
    assert m.view.epoch == before + 2 and m.view.state[1] == ALIVE


def test_false_suspicions_make_patient_but_not_blind() -> None:
    m = membership()
    m.heard(1, 0, 0.0)
    now = 0.0
    for _ in range(20):
        now += 0.01
        run_until = now + 0.2
        while now < run_until:
            beat(m, now, (1,) if now > run_until - 0.11 else ())
            now += 0.01
    assert 0.06 < m.suspect_after <= 0.15 + 1e-9


def test_our_own_absence_is_no_evidence() -> None:
    m = membership()
    run(m, 0.2, 0.01, ())
    assert m.tick(5.0) == [], "nobody is suspected because we slept"
    assert beat(m, 5.01) == [], "they were heard again"


def test_a_busy_coordinator_still_sees_silence() -> None:
    m = membership()
    run(m, 0.2, 0.01, ())
    now, found = 0.2, []
    while now < 0.6:  # every look comes late
        now += 0.04
        found += beat(m, now, (2,))
    assert found == ["suspected 2"]


def test_a_module_that_keeps_dying_is_replaced_more_slowly() -> None:
    waits = []
    m = membership()
    now = 1.0
    for incarnation in range(6):
        m.down(0, incarnation, "process", now)
        died = now
        while not any(text == "replace 0" for text in beat(m, now)):
            now += 0.01
        waits.append(now - died)
        m.join(0, incarnation + 1, "again", everything(), now)
    assert [round(w, 1) for w in waits] == [0.3, 0.6, 1.2, 2.4, 2.4, 2.4]


def failed(m: Membership, incarnation: int, now: float) -> list[str]:
    return [f"{c.kind} {c.incarnation} {c.reason}" for c in m.down(0, incarnation, "start", now, "why")]


def replacement(m: Membership, now: float) -> tuple[float, int]:
    """When module 0 is replaced next, and by which incarnation."""
    while True:
        now += 0.01
        for module in (1, 2, 3):
            m.heard(module, 0, now)
        for change in m.tick(now):
            assert change.kind == "replace"
            return now, change.incarnation


def test_a_replacement_that_dies_before_it_joins_is_tried_again_ever_more_slowly() -> None:
    m = membership()
    now, waits = 1.0, []
    m.down(0, 0, "process", now)
    for incarnation in range(1, 7):
        died = now
        now, started = replacement(m, now)
        assert started == incarnation
        waits.append(round(now - died, 1))
        assert failed(m, incarnation - 1, now) == [], "the one before is long gone"
        assert failed(m, incarnation, now) == [f"replacement_failed {incarnation} why"]
        assert failed(m, incarnation, now) == [], "it is gone only once"
        assert m.join(0, incarnation, "late", everything(), now) == [], "what was given up does not come back"
        assert m.view.state[0] == DEAD
    assert waits == [0.3, 0.6, 1.2, 2.4, 2.4, 2.4]
    now, started = replacement(m, now)
    assert (
        m.join(0, started, "e", everything(), now)[0].kind == "joined" and m.view.incarnations[0] == started
    )


def test_a_replacement_that_never_joins_is_given_up() -> None:
    m = membership()
    m.down(0, 0, "process", 1.0)
    now, _ = replacement(m, 1.0)
    for late in (60.0, 119.0):
        assert beat(m, now + late, (0,)) == [] and beat(m, now + late + 0.02, (0,)) == []
    assert beat(m, now + 121.0, (0,)) + beat(m, now + 121.02, (0,)) == ["replacement_failed 0"]


def crowd(modules: int, **changes: float) -> Membership:
    nodes = np.zeros(modules, np.int32)
    args: dict = {"suspect_after": 0.06, "evict_after": 1.0, "replace_after": 0.3, "replace": True, **changes}
    m = Membership(nodes, PLACEMENTS["linear"]().place(problem_of(np.full(4, 1), modules)), (1, 4), **args)
    for module in range(modules):
        m.join(module, 0, "e", everything(), 0.0)
    m.tick(0.0)
    return m


def judged(m: Membership, silent: int, until: float, running: range = range(0)) -> list[tuple[float, str]]:
    """Let the first modules fall silent at 0; return what is said of whom until then, looking every 10 ms."""
    found = []
    for step in range(1, round(until * 100)):
        now = step / 100
        for module in range(silent, m.view.modules):
            m.heard(module, 0, now)
        found += [(now, f"{c.kind} {c.module}") for c in m.tick(now, running)]
    return found


def test_many_that_fall_silent_at_once_are_one_pause() -> None:
    """A third of the live modules and more, at least three: their machine paused, not each of them."""
    for modules, silent, pause in [
        (64, 64, True),
        (64, 22, True),
        (64, 21, False),
        (8, 3, True),
        (8, 2, False),
    ]:
        found = judged(crowd(modules), silent, 0.9)
        assert bool(found) != pause, (modules, silent)
        if not pause:
            assert {text for _, text in found} == {f"suspected {m}" for m in range(silent)}
            assert max(at for at, _ in found) < 0.16
    m = crowd(64)
    epoch = m.view.epoch
    assert judged(m, 64, 0.9) == []
    for module in range(64):
        m.heard(module, 0, 0.95)
    assert m.tick(0.95) == [] and m.view.epoch == epoch, "they are back, and nothing happened"


def test_a_pause_that_does_not_end_is_an_end() -> None:
    """The machine of half the modules lost its power: nothing else tells."""
    found = judged(crowd(64), 32, 2.5)
    first = [text for at, text in found if 1.0 <= at <= 1.1]
    assert first == [f"suspected {m}" for m in range(32)]
    dead = [text for at, text in found if 2.0 <= at <= 2.2]
    assert dead == [f"dead {m}" for m in range(32)]


def test_a_process_that_is_known_to_run_is_late_not_hanging() -> None:
    m = crowd(8)
    assert judged(m, 1, 0.9, running=range(1)) == []
    assert judged(crowd(8), 1, 0.2) == [(0.07, "suspected 0")]
    assert [text for _, text in judged(crowd(8), 1, 1.5, running=range(1))] == ["suspected 0"]


def test_death_is_final_for_an_incarnation() -> None:
    m = membership(replace=False)
    assert [c.kind for c in m.down(3, 0, "process", 1.0)] == ["dead"]
    assert m.down(3, 0, "process", 1.0) == []
    assert m.heard(3, 0, 1.1) == [] and m.view.state[3] == DEAD
    assert m.suspect(3, 0, "x", 1.2) == []
    assert m.join(3, 1, "e", everything(), 2.0) and m.down(3, 0, "late news", 2.1) == []
    assert m.heard(3, 0, 2.2) == [] and m.view.state[3] == ALIVE


# -- the table of slots -------------------------------------------------------------------------------
def columns(*experts: int) -> np.ndarray:
    """Slots of layer 0 that hold these experts [2, n]."""
    return np.array([[0] * len(experts), experts], np.uint16)


def at(m: Membership) -> dict[tuple[int, int], int]:
    """The state of each (expert, module)."""
    placed = m.view.placement.expert.tolist(), m.view.placement.module.tolist(), m.view.slot_state.tolist()
    return {(e, module): state for e, module, state in zip(*placed, strict=True)}


def two_slots(*states: int) -> Membership:
    """Experts 0 and 1 on module 0, and 0 on module 1; module 0's slots in these states."""
    m = membership()
    for module in range(4):
        m.join(module, 0, "", everything(), 0.0)
    m.set_slots(placed_on([0, 0, 1], [0, 1, 0]), np.array([states[0], READY, states[1]], np.uint8))
    return m


def test_slots_are_ready_once_their_module_says_so_and_no_others() -> None:
    m = two_slots(LOADING, LOADING)
    m.set_slots(m.view.placement, np.zeros(3, np.uint8))
    news = m.loaded(0, 0, m.view.epoch, columns(2, 0))
    assert news.tolist() == [False, True], "there is no slot of expert 2"
    assert at(m) == {(0, 0): READY, (0, 1): LOADING, (1, 0): LOADING}
    epoch = m.view.epoch
    assert m.loaded(0, 0, epoch, columns(0)).tolist() == [False] and m.view.epoch == epoch
    assert m.loaded(0, 1, epoch, columns(1)).tolist() == [False], "another incarnation"
    m.down(0, 0, "process", 1.0)
    assert m.loaded(0, 0, m.view.epoch, columns(1)).tolist() == [False], "a dead one"


def test_late_news_of_a_slot_that_was_there_before_says_nothing_of_the_new_one() -> None:
    """It was loaded, taken from the table and dropped, and is in the table again."""
    m = two_slots(LOADING, READY)
    with_it, without = m.view.placement, placed_on([0, 1], [1, 0])
    old = m.view.epoch
    m.set_slots(without, np.full(2, READY, np.uint8))
    m.set_slots(with_it, np.array([LOADING, READY, READY], np.uint8))
    since = m.view.epoch
    assert m.loaded(0, 0, old, columns(0)).tolist() == [False] and at(m)[0, 0] == LOADING
    m.set_slots(placed_on([0, 0, 0, 1], [3, 0, 1, 0]), np.array([LOADING, LOADING, READY, READY], np.uint8))
    assert m.loaded(0, 0, since, columns(0)).tolist() == [True], "it stayed while others came"
    assert m.loaded(3, 0, since, columns(0)).tolist() == [False], "this one came later"


def test_what_leaves_is_not_made_ready_by_late_news() -> None:
    m = two_slots(LEAVING, READY)
    assert m.loaded(0, 0, m.view.epoch, columns(0)).tolist() == [False] and at(m)[0, 0] == LEAVING


def test_a_dead_module_has_nothing_ready_and_its_replacement_what_it_holds() -> None:
    m = two_slots(READY, READY)
    m.down(0, 0, "process", 1.0)
    assert at(m) == {(0, 0): LOADING, (0, 1): READY, (1, 0): LOADING}
    m.tick(100.0)
    m.join(0, 1, "", columns(1), 100.0)
    assert at(m) == {(0, 0): LOADING, (0, 1): READY, (1, 0): READY}


def test_what_leaves_still_leaves_after_its_module_was_replaced() -> None:
    m = two_slots(LEAVING, READY)
    m.down(0, 0, "process", 1.0)
    assert at(m)[0, 0] == LEAVING
    m.tick(100.0)
    m.join(0, 1, "", columns(0, 1), 100.0)
    assert at(m) == {(0, 0): LEAVING, (0, 1): READY, (1, 0): READY}
