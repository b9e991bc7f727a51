"""The ledger and the membership by hand: small stories with the expected course written out."""

from __future__ import annotations

import numpy as np

from rayemu.alltoall import ALIVE, DEAD, SUSPECTED, View
from rayemu.placement import PLACEMENTS
from rayemu.protocol.ledger import Ledger
from rayemu.protocol.membership import Membership
from rayemu.protocol.messages import Shard, ShardProbe

PLACED = PLACEMENTS["linear"]().place(np.full(4, 2), 4, np.random.default_rng(0))
NODES = np.array([0, 0, 1, 1], np.int32)


def view(states: list[int], incarnations: tuple[int, ...] = (0, 0, 0, 0)) -> View:
    return View(1, NODES, np.array(states, np.uint8), np.array(incarnations, np.int32), PLACED, 4)


ALL = view([ALIVE] * 4)


def test_shards_cover_the_batch_on_distinct_homes() -> None:
    ledger = Ledger(min_shard_rows=10, retry_after=0.25)
    x = np.arange(80, dtype=np.float32).reshape(40, 2)
    sends = ledger.submit(0, x, ALL, now=0.0)
    shards = [s.message for s in sends if isinstance(s.message, Shard)]
    assert [s.shards for s in shards] == [4] * 4
    assert sorted(s.to for s in sends) == [0, 1, 2, 3]
    assert np.array_equal(np.concatenate([s.rows for s in shards]), x)
    assert ledger.submit(0, x, ALL, now=0.0) == [], "a repeated submit starts nothing"


def test_small_batches_rotate_their_single_home() -> None:
    ledger = Ledger(min_shard_rows=64, retry_after=0.25)
    homes = [ledger.submit(n, np.zeros((5, 2), np.float32), ALL, 0.0)[0].to for n in range(8)]
    assert homes == [0, 1, 2, 3, 0, 1, 2, 3]


def test_dead_homes_lose_their_shards_once() -> None:
    ledger = Ledger(10, 0.25)
    ledger.submit(0, np.zeros((40, 2), np.float32), ALL, 0.0)
    ledger.acknowledge(0, 1)
    later = ledger.on_view(view([ALIVE, DEAD, DEAD, ALIVE]), 1.0)
    moved = [(s.to, s.message.shard) for s in later if isinstance(s.message, Shard)]
    assert [shard for _, shard in moved] == [2] and moved[0][0] in (0, 3)
    assert ledger.on_view(view([ALIVE, DEAD, DEAD, ALIVE]), 1.0) == []
    assert ledger.reissued == 1


def test_shards_wait_for_someone_to_live() -> None:
    ledger = Ledger(10, 0.25)
    assert ledger.submit(0, np.zeros((40, 2), np.float32), view([DEAD] * 4), 0.0) == []
    sends = ledger.on_view(view([DEAD, ALIVE, DEAD, DEAD]), 1.0)
    assert {s.to for s in sends} == {1}


def test_nobody_is_woken_for_shards_that_have_no_home() -> None:
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


def test_overdue_shards_are_probed_and_resent_if_unknown() -> None:
    ledger = Ledger(64, 0.25)
    home = ledger.submit(0, np.zeros((5, 2), np.float32), ALL, 0.0)[0].to
    assert ledger.tick(ALL, 0.5) == []
    (probe,) = ledger.tick(ALL, 1.1)
    assert probe.to == home and isinstance(probe.message, ShardProbe)
    assert ledger.on_status(0, 0, home, True, ALL, 1.2) == []
    (again,) = ledger.on_status(0, 0, home, False, ALL, 1.3)
    assert isinstance(again.message, Shard)


def membership(**changes: float | bool) -> Membership:
    args: dict = {"suspect_after": 0.06, "evict_after": 1.0, "replace_after": 0.3, "replace": True, **changes}
    m = Membership(NODES, PLACED, 4, **args)
    for module in range(4):
        m.join(module, 0, f"e{module}", 0.0)
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
    assert m.join(2, 1, "new", 3.0)[0].kind == "joined"
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
        m.join(0, incarnation + 1, "again", now)
    assert [round(w, 1) for w in waits] == [0.3, 0.6, 1.2, 2.4, 2.4, 2.4]


def test_death_is_final_for_an_incarnation() -> None:
    m = membership(replace=False)
    assert [c.kind for c in m.down(3, 0, "process", 1.0)] == ["dead"]
    assert m.down(3, 0, "process", 1.0) == []
    assert m.heard(3, 0, 1.1) == [] and m.view.state[3] == DEAD
    assert m.suspect(3, 0, "x", 1.2) == []
    assert m.join(3, 1, "e", 2.0) and m.down(3, 0, "late news", 2.1) == []
    assert m.heard(3, 0, 2.2) == [] and m.view.state[3] == ALIVE
