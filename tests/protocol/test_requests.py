"""Outstanding requests by hand: the window, the load, deadlines, and who is not waited for any longer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayemu.alltoall import ALIVE, DEAD, SUSPECTED, Parcel, View
from rayemu.placement import PLACEMENTS, problem_of
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.messages import Dispatch
from rayemu.protocol.requests import MOST_PATIENT, ReplyTime, Request, Requests
from rayemu.protocol.slices import HeldSlice, Unit
from rayemu.scenario import Scenario
from tests.views import a_view, lots_of

MODEL = {"d_model": 4, "d_ff": 4, "experts": 4, "top_k": 1}
CONFIG = replace(ProtocolConfig.from_scenario(Scenario.from_dict({"model": MODEL})), window_bytes=100)
PLACED = PLACEMENTS["linear"]().place(problem_of(np.full(4, 2), 4))  # e on e and e + 2
NODES = np.array([0, 0, 1, 1], np.int32)
Lots = list[list[int]]


def view(
    states: list[int] | None = None, incarnations: tuple[int, ...] = (0, 0, 0, 0), copies: Any = PLACED
) -> View:
    state = np.array(states or [ALIVE] * 4, np.uint8)
    return a_view(copies, NODES, 4, state, incarnations)


def unit(pairs: int = 20) -> Unit:
    slice = HeldSlice(0, 0, 0, 1, np.zeros((pairs, 4), np.float32), np.zeros((1, 4), np.int32))
    return Unit(slice, 0, 0, pairs, np.zeros((pairs, 4), np.float32), have=np.zeros(pairs, bool), left=pairs)


class Table:
    """Requests, and what they send."""

    def __init__(self, incarnation: int = 0) -> None:
        self.requests = Requests(incarnation, CONFIG)
        self.out = self.requests.out

    def add(self, of: Unit, lots: Lots, size: int, hop: int | None = None, now: float = 0.0) -> int:
        """Ask for the first pairs of a unit; return the request's number."""
        count = sum(lot[2] for lot in lots)
        number = self.requests.number()
        parcel = Parcel(lots[0][0] if hop is None else hop, np.arange(count), lots_of(*lots))
        rows = np.zeros((count, 4), np.float32)
        message = Dispatch(0, number, -1, 0, 0, 0, 0, 0, 1, 1, 0, rows, None, lots_of(*lots))
        request = Request(of, parcel, view(), size, np.ones(count, bool), message)
        self.requests.add(number, request, now)
        return number

    def come(self, number: int, now: float = 0.0) -> None:
        """All that a request asked for has come."""
        request = self.requests.by_number[number]
        assert request.unit.have is not None
        request.unit.have[request.parcel.pairs] = True
        self.requests.answered(number, now)

    def sent(self) -> list[int]:
        numbers = [s.message.request for s in self.out if isinstance(s.message, Dispatch)]
        assert all(s.to == s.message.lots[0, 0] for s in self.out if isinstance(s.message, Dispatch))
        self.out.clear()
        return numbers


def test_numbers_are_unique_over_all_incarnations() -> None:
    numbers = [Table(incarnation).requests.number() for incarnation in range(3)]
    assert numbers == [0, 1 << 40, 2 << 40]
    requests = Table(1).requests
    assert [requests.number() for _ in range(3)] == [(1 << 40) + n for n in range(3)]


def test_the_window_of_a_hop_holds_back_what_does_not_fit_in_the_order_of_asking() -> None:
    table = Table()
    a, b, c = (table.add(unit(), [[1, 1, 2]], size) for size in (60, 50, 40))
    other = table.add(unit(), [[2, 2, 2]], 90)
    assert table.sent() == [a, c, other], "60 + 50 is too much, 60 + 40 is not; each hop has its own window"
    table.come(c)
    assert table.sent() == []  # 60 are under way
    table.come(a)
    assert table.sent() == [b]


def test_what_is_larger_than_the_window_goes_alone() -> None:
    table = Table()
    large = table.add(unit(), [[1, 1, 2]], 1000)
    small = table.add(unit(), [[1, 1, 2]], 1)
    assert table.sent() == [large]
    table.come(large)
    assert table.sent() == [small]


def test_credit_is_given_back_once_and_only_for_what_was_sent() -> None:
    table = Table()
    first, waiting = unit(), unit()
    a, b = table.add(first, [[1, 1, 2]], 80), table.add(waiting, [[1, 1, 2]], 80)
    table.requests.close(waiting, 0.0)  # never sent
    sent = unit()
    other = table.add(sent, [[2, 2, 2]], 80)
    table.requests.close(sent, 0.0)
    follower = table.add(unit(), [[2, 2, 2]], 80)
    assert table.sent() == [a, other, follower], "a closed request's credit is back"
    c = table.add(unit(), [[1, 1, 2]], 80)
    assert table.sent() == [] and b not in table.requests.by_number
    request = table.requests.by_number[a]
    table.requests.let_go(request, request.open(), 0.0)
    assert table.sent() == [c]
    table.requests.close(first, 0.0)  # its credit is back already
    d = table.add(unit(), [[1, 1, 2]], 80)
    assert table.sent() == [] and d in table.requests.by_number
    table.come(c)
    assert table.sent() == [d]


def test_what_was_let_go_while_it_waited_is_not_sent_any_more() -> None:
    table = Table()
    a, b, c = (table.add(unit(), [[1, 1, 2]], 80) for _ in range(3))
    request = table.requests.by_number[b]
    table.requests.let_go(request, request.open(), 0.0)
    table.come(a)
    assert table.sent() == [a, c]


def test_a_request_that_was_let_go_in_part_keeps_its_window_until_the_rest_is_in() -> None:
    table = Table()
    u = unit()
    a, b = table.add(u, [[1, 1, 4]], 80), table.add(unit(), [[1, 1, 2]], 80)
    request = table.requests.by_number[a]
    table.requests.let_go(request, np.array([True, True, False, False]), 0.0)
    assert table.sent() == [a] and request.open().tolist() == [False, False, True, True]
    table.come(a)
    assert table.sent() == [b] and a not in table.requests.by_number


def test_the_load_is_what_each_module_still_owes() -> None:
    table = Table()
    a = table.add(unit(), [[2, 2, 3], [3, 3, 4]], 10)  # through a relay
    table.add(unit(), [[2, 0, 5]], 10)
    table.add(unit(), [[1, 1, 6]], 1000)
    table.add(unit(), [[1, 1, 7]], 10)  # waits for the window, and will be owed as well
    assert table.requests.load(4).tolist() == [0, 13, 8, 4]
    table.come(a)
    assert table.requests.load(4).tolist() == [0, 13, 5, 0]


def test_patience_follows_rfc_6298_within_bounds() -> None:
    time = ReplyTime(0.1)
    assert time.patience() == 0.1
    time.saw(0.2)  # smoothed 0.2, deviation 0.1
    assert np.isclose(time.patience(), 0.6)
    time.saw(0.4)  # deviation 0.75 * 0.1 + 0.25 * |0.2 - 0.4|, then smoothed 0.875 * 0.2 + 0.125 * 0.4
    assert np.isclose(time.patience(), 0.225 + 4 * 0.125)
    for _ in range(200):
        time.saw(0.01)
    assert time.patience() == 0.1
    time.saw(1000.0)
    assert time.patience() == MOST_PATIENT * 0.1


def test_replies_teach_patience_and_deadlines_are_put_off() -> None:
    table = Table()
    a = table.add(unit(), [[1, 1, 2]], 10, now=5.0)
    least = CONFIG.retry_after
    assert table.requests.wake == table.requests.by_number[a].deadline == 5.0 + least
    assert table.requests.overdue(5.0 + least - 1e-3) == []
    table.requests.wake = 0.0
    ((number, request),) = table.requests.overdue(5.0 + least)
    assert number == a
    table.requests.wait_on(request, 6.0, doublings=2)
    assert request.deadline == table.requests.wake == 6.0 + 4 * least
    table.come(a, now=5.0 + 4 * least)
    assert np.isclose(table.requests.reply_time.patience(), 4 * least + 4 * 2 * least)
    assert table.requests.overdue(100.0) == [] and table.requests.wake == float("inf")


def test_nobody_is_late_who_has_not_been_asked() -> None:
    table = Table()
    a = table.add(unit(), [[1, 1, 2]], 1000)
    b = table.add(unit(), [[1, 1, 2]], 10)
    assert [n for n, _ in table.requests.overdue(1e6)] == [a]
    assert table.requests.by_number[b].deadline == float("inf")


def test_an_overdue_request_whose_pairs_another_brought_gives_its_window_back() -> None:
    table = Table()
    u = unit()
    first, again, waiting = table.add(u, [[1, 1, 4]], 20), table.add(u, [[1, 1, 4]], 80), unit()
    behind = table.add(waiting, [[1, 1, 2]], 30)
    assert table.sent() == [first, again]
    table.come(first)
    assert table.sent() == [], "80 of the 100 bytes are still out"
    assert table.requests.overdue(1e6) == [] and table.sent() == [behind]
    assert table.requests.wake > 1e6, "what was sent just now has its own deadline"


def test_answers_and_probes_reset_the_count_of_silent_probes() -> None:
    table = Table()
    u = unit()
    a = table.add(u, [[1, 1, 4]], 10)
    request = table.requests.by_number[a]
    request.silent_probes = 2
    assert u.have is not None
    u.have[:2] = True
    table.requests.answered(a, 0.1)
    assert request.silent_probes == 0 and a in table.requests.by_number, "half of it is open"


def orphans(lots: Lots, now: View, hop: int | None = None) -> list[bool]:
    table = Table()
    request = table.requests.by_number[table.add(unit(), lots, 10, hop)]
    return table.requests.orphans(request, now).tolist()


def test_the_rows_of_a_dead_or_hanging_module_are_orphans_where_someone_else_has_the_expert() -> None:
    lots = [[2, 2, 1], [3, 3, 2]]  # relayed by 2
    assert orphans(lots, view()) == [False] * 3
    assert orphans(lots, view([ALIVE, ALIVE, ALIVE, DEAD])) == [False, True, True]
    assert orphans(lots, view([ALIVE, ALIVE, ALIVE, SUSPECTED])) == [False, True, True]
    assert orphans(lots, view([ALIVE, ALIVE, DEAD, ALIVE])) == [True] * 3, "without the relay all of it"
    assert orphans(lots, view(incarnations=(0, 0, 0, 1))) == [False, True, True]
    assert orphans(lots, view(incarnations=(0, 1, 0, 0))) == [False] * 3


def test_a_hanging_module_keeps_what_nobody_else_can_answer() -> None:
    alone = PLACEMENTS["linear"]().place(problem_of(np.ones(4, int), 4))
    hanging = [ALIVE, ALIVE, ALIVE, SUSPECTED]
    assert orphans([[3, 3, 2]], view(hanging, copies=alone)) == [False] * 2
    again = view(hanging, (0, 0, 0, 1), alone)
    assert orphans([[3, 3, 2]], again) == [True] * 2, "one that was replaced since knows nothing of it"
    assert orphans([[3, 3, 2]], view(hanging, copies=alone), hop=2) == [True] * 2, "directly, not by a relay"
    assert orphans([[3, 3, 2]], view([ALIVE, ALIVE, ALIVE, DEAD], copies=alone)) == [True] * 2, "to be parked"


def test_what_is_there_already_is_no_orphan() -> None:
    table = Table()
    u = unit()
    request = table.requests.by_number[table.add(u, [[3, 3, 2]], 10)]
    assert u.have is not None
    u.have[0] = True
    dead = view([ALIVE, ALIVE, ALIVE, DEAD])
    assert table.requests.orphans(request, dead).tolist() == [False, True]
    table.requests.let_go(request, np.array([False, True]), 0.0)
    assert table.requests.orphans(request, dead).tolist() == [False, False]


@pytest.mark.parametrize(
    ("exchange", "chunk"),
    [({}, 16 << 20), ({"window": "8 MiB"}, 8 << 20), ({"window": "8 MiB", "chunk": "1 MiB"}, 1 << 20)],
)
def test_a_chunk_is_no_larger_than_the_window_unless_it_is_said(exchange: dict[str, str], chunk: int) -> None:
    scenario = Scenario.from_dict({"model": MODEL, "exchange": exchange})
    assert ProtocolConfig.from_scenario(scenario).chunk_bytes == chunk
