"""The mover by hand: which slots come, wait, leave and go, step by step, whoever dies meanwhile.

One layer of experts 0 and 1 on modules 0 to 3 where nothing else is said; slots are (expert, module).
"""

from __future__ import annotations

import numpy as np
import pytest

from rayemu.alltoall import ALIVE, DEAD, LEAVING, LOADING, READY, SUSPECTED, View
from rayemu.placement import Placement, from_columns
from rayemu.protocol.mover import Mover
from tests.views import a_view, placed_on

NODES = [0, 0, 1, 1]
OLD, FAR = 0, 99  # epochs that modules know: none of those in the tests, and all
Slots = dict[tuple[int, int], int]  # (expert, module) -> state


def view(slots: Slots, states: dict[int, int] | None = None, epoch: int = 1) -> View:
    experts, modules = zip(*sorted(slots), strict=True)
    alive = [ALIVE] * 4
    for module, state in (states or {}).items():
        alive[module] = state
    placed = placed_on(experts, modules)
    return a_view(placed, NODES, 2, alive, epoch=epoch, slot_states=[slots[row] for row in rows(placed)])


def rows(placed: Placement) -> list[tuple[int, int]]:
    return list(zip(placed.expert.tolist(), placed.module.tolist(), strict=True))


def move(wanted: list[tuple[int, int]], now: View, number: int = 0) -> Mover:
    experts, modules = zip(*wanted, strict=True)
    return Mover(number, placed_on(experts, modules), now, 0.0)


def step(mover: Mover, now: View, known: int | list[int] = FAR) -> Slots | None:
    table = mover.step(now, np.broadcast_to(np.asarray(known, np.int64), 4), 1.0)
    return None if table is None else dict(zip(rows(table[0]), table[1].tolist(), strict=True))


def test_a_slot_comes_then_the_old_one_leaves_then_it_goes() -> None:
    mover = move([(0, 2), (1, 1)], view({(0, 0): READY, (1, 1): READY}))
    first = step(mover, view({(0, 0): READY, (1, 1): READY}))
    assert first == {(0, 0): READY, (0, 2): LOADING, (1, 1): READY}
    assert step(mover, view(first, epoch=2)) is None, "it waits until the new slot is ready"
    ready = {**first, (0, 2): READY}
    second = step(mover, view(ready, epoch=3))
    assert second == {(0, 0): LEAVING, (0, 2): READY, (1, 1): READY}
    assert step(mover, view(second, epoch=4), [4, 4, 3, 4]) is None, "module 2 does not know yet"
    assert not mover.done
    third = step(mover, view(second, epoch=4), 4)
    assert third == {(0, 2): READY, (1, 1): READY}
    status = mover.status(9.0)
    assert (status.loaded, status.dropped, status.cancelled, status.seconds) == (1, 1, 0, 1.0)
    assert mover.done and mover.idle and step(mover, view(third, epoch=5)) is None


def test_who_is_dead_or_hangs_need_not_know_before_a_slot_goes() -> None:
    start: Slots = {(0, 0): READY, (0, 2): READY, (1, 1): READY}
    mover = move([(0, 2), (1, 1)], view(start))
    leaving = step(mover, view(start))
    assert leaving == {(0, 0): LEAVING, (0, 2): READY, (1, 1): READY}
    gone = step(mover, view(leaving, {3: SUSPECTED, 0: DEAD}, 2), [OLD, 2, 2, OLD])
    assert gone == {(0, 2): READY, (1, 1): READY} and mover.status(2.0).dropped == 1


def test_what_leaves_stays_when_it_has_become_the_last_copy_and_leaves_later() -> None:
    start: Slots = {(0, 0): READY, (0, 2): READY, (1, 1): READY}
    mover = move([(0, 2), (1, 1)], view(start))
    leaving = step(mover, view(start))
    dead = {**leaving, (0, 2): LOADING}  # as membership has it
    kept = step(mover, view(dead, {2: DEAD}, 2))
    assert kept == {(0, 0): READY, (0, 2): LOADING, (1, 1): READY}
    assert mover.done and not mover.idle, "the move is over, but the slot is to leave later"
    assert mover.status(2.0).dropped == 0
    assert step(mover, view(kept, {2: DEAD}, 3)) is None
    again = step(mover, view({**kept, (0, 2): READY}, epoch=4))
    assert again == {(0, 0): LEAVING, (0, 2): READY, (1, 1): READY}
    assert step(mover, view(again, epoch=5), 4) is None
    assert step(mover, view(again, epoch=5), 5) == {(0, 2): READY, (1, 1): READY}
    assert mover.idle and mover.status(2.0).dropped == 1


def test_a_copy_that_hangs_is_not_one_to_rely_on() -> None:
    start: Slots = {(0, 0): READY, (0, 2): READY, (1, 1): READY}
    mover = move([(0, 2), (1, 1)], view(start, {2: SUSPECTED}))
    assert step(mover, view(start, {2: SUSPECTED})) is None and mover.done and not mover.idle
    assert step(mover, view(start, epoch=2)) == {**start, (0, 0): LEAVING}


def test_a_dead_modules_slot_that_must_stay_is_not_called_ready() -> None:
    """Module 0 died while its slot left: then the last other copy died too."""
    start: Slots = {(0, 0): READY, (0, 2): READY, (1, 1): READY}
    mover = move([(0, 2), (1, 1)], view(start))
    leaving = step(mover, view(start))
    kept = step(mover, view({**leaving, (0, 2): LOADING}, {0: DEAD, 2: DEAD}, 2))
    assert kept == {(0, 0): LOADING, (0, 2): LOADING, (1, 1): READY}


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_a_dead_module_was_to_load_is_cancelled_and_what_it_was_to_replace_stays(when: str) -> None:
    start: Slots = {(0, 0): READY, (1, 1): READY}
    mover = move([(0, 2), (1, 3)], view(start))
    if when == "before":
        first = step(mover, view(start, {2: DEAD}))
        assert first == {**start, (1, 3): LOADING}
    else:
        first = step(mover, view(start))
        assert first == {**start, (0, 2): LOADING, (1, 3): LOADING}
        first = step(mover, view(first, {2: DEAD}, 2))
        assert first == {**start, (1, 3): LOADING}
    then = step(mover, view({**first, (1, 3): READY}, {2: DEAD}, 3))
    assert then == {(0, 0): READY, (1, 1): LEAVING, (1, 3): READY}
    assert step(mover, view(then, {2: DEAD}, 4)) == {(0, 0): READY, (1, 3): READY}
    status = mover.status(5.0)
    assert mover.idle and (status.loaded, status.dropped, status.cancelled) == (1, 1, 1)


def test_a_hanging_module_is_waited_for_until_it_is_dead() -> None:
    start: Slots = {(0, 0): READY, (1, 1): READY}
    mover = move([(0, 2), (1, 1)], view(start, {2: SUSPECTED}))
    first = step(mover, view(start, {2: SUSPECTED}))
    assert first == {**start, (0, 2): LOADING}
    assert step(mover, view(first, {2: SUSPECTED}, 2)) is None and not mover.done
    assert step(mover, view(first, {2: DEAD}, 3)) == start and mover.idle


def test_a_dead_module_that_never_comes_back_holds_up_no_move() -> None:
    """Its slots stay where they are, and the move is over: with `replace: false` nobody comes."""
    start: Slots = {(0, 0): LOADING, (1, 1): READY, (0, 2): READY}
    mover = move([(0, 0), (1, 3)], view(start, {0: DEAD}))
    first = step(mover, view(start, {0: DEAD}))
    assert first == {**start, (1, 3): LOADING}
    then = step(mover, view({**first, (1, 3): READY}, {0: DEAD}, 2))
    assert then is not None and then[1, 1] == LEAVING and then[0, 2] == READY, "the last copy of 0 stays"
    assert step(mover, view(then, {0: DEAD}, 3)) == {(0, 0): LOADING, (0, 2): READY, (1, 3): READY}
    assert mover.done and mover.status(4.0).cancelled == 0


def test_layers_go_one_after_the_other_and_those_alike_not_at_all() -> None:
    def table(modules: list[int]) -> Placement:
        return from_columns(np.arange(3), np.zeros(3, int), np.array(modules))

    mover = Mover(0, table([1, 0, 1]), a_view(table([0, 0, 0]), NODES, 1), 0.0)
    first = mover.step(a_view(table([0, 0, 0]), NODES, 1), np.full(4, FAR), 0.0)
    assert first is not None
    placed, states = first
    assert placed.layer.tolist() == [0, 0, 1, 2] and states.tolist() == [READY, LOADING, READY, READY]
    ready = a_view(placed, NODES, 1, epoch=3)
    second = mover.step(ready, np.full(4, 3), 0.0)
    assert second is not None  # layer 0's old slot leaves while layer 2 loads
    assert second[0].layer.tolist() == [0, 0, 1, 2, 2]
    assert second[1].tolist() == [LEAVING, READY, READY, READY, LOADING]


def test_slots_that_a_move_before_had_on_their_way_are_waited_for() -> None:
    """The table is the wanted one, but a slot of it is still loading: that is not done."""
    start: Slots = {(0, 0): READY, (0, 2): LOADING, (1, 1): READY}
    mover = move(list(start), view(start))
    assert step(mover, view(start)) is None and not mover.done
    assert step(mover, view({**start, (0, 2): READY}, epoch=2)) is None
    assert mover.idle and mover.status(3.0).loaded == 1


def test_slots_that_a_move_before_was_loading_and_nobody_wants_go_at_once() -> None:
    """They are held by nobody, so they must never be called leaving, from which a slot may come back."""
    start: Slots = {(0, 0): READY, (0, 3): LOADING, (1, 1): READY}
    mover = move([(0, 0), (1, 1)], view(start))
    assert step(mover, view(start), OLD) == {(0, 0): READY, (1, 1): READY}
    assert mover.idle and mover.status(3.0).dropped == 1


def test_slots_that_a_move_before_let_leave_are_kept_until_their_layer_has_its_turn() -> None:
    """Layer 0 has much to load; the old slot of layer 1 must be usable meanwhile, whoever dies."""
    placed = from_columns(np.array([0, 1, 1]), np.zeros(3, int), np.array([0, 0, 1]))
    now = a_view(placed, NODES, 1, slot_states=[READY, LEAVING, READY])
    wanted = from_columns(np.array([0, 1]), np.zeros(2, int), np.array([2, 1]))
    mover = Mover(1, wanted, now, 0.0)
    first = mover.step(now, np.full(4, OLD), 0.0)
    assert first is not None
    assert first[0].module.tolist() == [0, 2, 0, 1] and first[1].tolist() == [READY, LOADING, READY, READY]
    ready = a_view(first[0], NODES, 1, epoch=3)
    second = mover.step(ready, np.full(4, OLD), 0.0)
    assert second is not None and second[1].tolist() == [LEAVING, READY, LEAVING, READY]


def test_a_module_keeps_what_leaves_and_is_wanted_after_all() -> None:
    start: Slots = {(0, 0): LEAVING, (0, 2): READY, (1, 1): READY}
    mover = move([(0, 0), (1, 1)], view(start))
    assert step(mover, view(start)) == {(0, 0): READY, (0, 2): LEAVING, (1, 1): READY}
    assert mover.status(1.0).loaded == 0


def test_what_a_hanging_module_was_to_take_over_stays_too() -> None:
    start: Slots = {(0, 0): READY, (0, 2): READY, (1, 1): READY}
    mover = move([(0, 2), (1, 1)], view(start))
    leaving = step(mover, view(start))
    assert step(mover, view(leaving, {2: SUSPECTED}, 2)) == start and mover.status(1.0).dropped == 0


def test_a_replacement_that_is_not_whole_replaces_nothing() -> None:
    """Two copies were to come; of one the module died, so all that was there stays."""
    start: Slots = {(0, 0): READY, (1, 1): READY}
    mover = move([(0, 2), (0, 3), (1, 1)], view(start, {3: DEAD}))
    first = step(mover, view(start, {3: DEAD}))
    assert first == {**start, (0, 2): LOADING}
    assert step(mover, view({**first, (0, 2): READY}, {3: DEAD}, 2)) is None
    assert mover.idle and mover.status(3.0).cancelled == 1


def test_a_slot_that_must_stay_does_not_keep_another_of_its_layer_from_going() -> None:
    start: Slots = {(0, 0): READY, (0, 2): READY, (1, 1): READY, (1, 3): READY}
    mover = move([(0, 2), (1, 3)], view(start, {3: SUSPECTED}))
    first = step(mover, view(start, {3: SUSPECTED}))
    assert first == {**start, (0, 0): LEAVING}
    assert step(mover, view(first, {3: SUSPECTED}, 2), 1) is None
    assert step(mover, view(first, {3: SUSPECTED}, 3), 2) == {(0, 2): READY, (1, 1): READY, (1, 3): READY}
