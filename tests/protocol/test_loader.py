"""The loader by hand: what it asks whom for and when, what it takes, what it tells, what it lets go.

Module 0 of four; an expert has 2 x 8 + 4 x 2 floats, 96 bytes, and comes in chunks of 40: 40, 40 and 16.
"""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from rayemu.alltoall import ALIVE, DEAD, LEAVING, LOADING, READY, SUSPECTED, View
from rayemu.model.expert import Expert
from rayemu.model.holdings import Holdings
from rayemu.model.model import Model
from rayemu.model.spec import ModelSpec
from rayemu.protocol.loader import MAKE_OPERATIONS, MOST_WAIT, SILENT, Loader
from rayemu.protocol.messages import COORDINATOR, Fetch, Loaded, Send, Weights
from rayemu.protocol.server import run_job
from tests.views import a_view, placed_on

NODES = [0, 0, 1, 1]
RETRY, RATE, CHUNK = 0.25, 400.0, 40  # a chunk takes a tenth of a second
SPEC = ModelSpec("tiny", d_model=2, d_ff=4, experts=3, top_k=2)
MODEL = Model(SPEC)
BYTES = 96
Slots = dict[tuple[int, int], int]  # (expert, module) -> state


def view(slots: Slots, states: dict[int, int] | None = None, epoch: int = 1) -> View:
    table = sorted(slots)
    alive = [ALIVE] * 4
    for module, state in (states or {}).items():
        alive[module] = state
    placed = placed_on([e for e, _ in table], [m for _, m in table])
    return a_view(placed, NODES, 3, alive, epoch=epoch, slot_states=[slots[row] for row in table])


class Module:
    """A loader, with what its module holds and has rows waiting for."""

    def __init__(self, held: list[int], slots: Slots, me: int = 0) -> None:
        self.holdings = Holdings(MODEL.make_expert)
        for expert in held:
            self.holdings.load(0, expert)
        self.in_use: set[tuple[int, int]] = set()
        self.view = view(slots)
        self.loader = Loader(
            me, 5, SPEC, self.holdings, self.in_use.__contains__, self.view, RETRY, RATE, CHUNK
        )

    def sees(self, slots: Slots, now: float, states: dict[int, int] | None = None) -> list[Send]:
        self.view = view(slots, states, self.view.epoch + 1)
        return self.loader.on_view(self.view, now)

    @property
    def held(self) -> set[int]:
        return {expert for _, expert in self.holdings}


def fetch(start: int, size: int = CHUNK, expert: int = 1) -> Fetch:
    return Fetch(0, 0, expert, start, size)


def piece(start: int, source: int = 1, expert: int = 1, size: int = CHUNK) -> Weights:
    data = whole(expert)
    return Weights(source, 0, expert, start, xxhash.xxh3_64_hexdigest(data), data[start : start + size])


def whole(expert: int) -> np.ndarray:
    made = MODEL.make_expert(0, expert)
    return np.frombuffer(made.up.tobytes() + made.down.tobytes(), np.uint8)


def same(one: Expert, other: Expert) -> bool:
    return np.array_equal(one.up, other.up) and np.array_equal(one.down, other.down)


START: Slots = {(0, 0): READY, (1, 1): READY}
MORE: Slots = {**START, (1, 0): LOADING}


def test_an_expert_comes_chunk_after_chunk_at_the_set_rate_and_is_told_of() -> None:
    m = Module([0], START)
    assert m.sees(MORE, 10.0) == [Send(1, fetch(0))] and m.loader.busy
    assert m.loader.on_weights(piece(0), 10.01) == [], "40 bytes at 400 a second: the next at 10.1"
    assert m.loader.deadline() == pytest.approx(10.1)
    assert m.loader.tick(10.09) == [] and m.loader.tick(10.1) == [Send(1, fetch(40))]
    assert m.loader.on_weights(piece(40), 10.25) == [Send(1, fetch(80, 16))], "it is late: at once"
    (told,) = m.loader.on_weights(piece(80), 10.3)
    assert told.to == COORDINATOR and isinstance(told.message, Loaded)
    assert (told.message.module, told.message.incarnation, told.message.epoch) == (0, 5, 2)
    assert told.message.slots.tolist() == [[0], [1]] and told.message.fetched.tolist() == [BYTES]
    assert same(m.holdings[0, 1], MODEL.make_expert(0, 1)) and not m.loader.busy


def test_the_rate_holds_from_one_expert_to_the_next() -> None:
    """16 bytes that were asked for at 10.2 take until 10.24, whoever they were for."""
    m = Module([0], START)
    m.sees({**MORE, (2, 0): LOADING, (2, 1): READY}, 10.0)
    for start, now in [(0, 10.0), (40, 10.1), (80, 10.2)]:
        m.loader.tick(now)
        sends = m.loader.on_weights(piece(start), now)
    assert [type(s.message) for s in sends] == [Loaded] and m.loader.deadline() == pytest.approx(10.24)
    assert m.loader.tick(10.23) == [] and m.loader.tick(10.24) == [Send(1, fetch(0, expert=2))]


def test_time_that_was_lost_is_not_made_up_for_by_a_burst() -> None:
    m = Module([0], START)
    m.sees(MORE, 10.0)
    assert m.loader.on_weights(piece(0), 10.2) == [Send(1, fetch(40))]
    assert m.loader.on_weights(piece(40), 10.21) == [] and m.loader.deadline() == pytest.approx(10.3)


def test_what_is_loaded_is_told_of_until_the_epoch_shows_it() -> None:
    m = Module([0], START)
    m.sees(MORE, 10.0)
    for start in (0, 40, 80):
        told = m.loader.on_weights(piece(start), 20.0 + start)
    assert isinstance(told[0].message, Loaded)
    assert m.loader.tick(100.1) == []
    (repeated,) = m.loader.tick(100.25)
    assert isinstance(repeated.message, Loaded) and repeated.message.fetched.tolist() == [BYTES]
    (again,) = m.sees(MORE, 100.3)
    assert again.message.epoch == 3 and again.message.fetched.tolist() == [BYTES]
    assert m.sees({**MORE, (1, 0): READY}, 100.4) == []
    assert m.loader.deadline() == float("inf")


def test_what_is_called_ready_and_is_not_there_is_loaded_without_a_word() -> None:
    """The coordinator knows nothing new by it, and its epochs would say nothing new either."""
    m = Module([0], START)
    m.sees({**START, (1, 0): READY}, 10.0)
    for start in (0, 40, 80):
        sends = m.loader.on_weights(piece(start), 20.0 + start)
    assert sends == [] and m.held == {0, 1} and m.loader.deadline() == float("inf")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (piece(0, source=2), "not asked"),
        (piece(0, expert=2), "another expert"),
        (piece(40), "not the next bytes"),
        (Weights(1, 0, 1, 0, "x", np.zeros(0, np.uint8)), "no bytes"),
        (Weights(1, 0, 1, 0, "x", np.zeros(BYTES + 1, np.uint8)), "too many"),
    ],
)
def test_what_was_not_asked_for_is_not_taken(other: Weights, why: str) -> None:
    m = Module([0], START)
    m.sees(MORE, 10.0)
    assert m.loader.on_weights(other, 10.0) == [], why
    assert m.loader.tick(10.24) == [] and m.loader.tick(10.25) == [Send(1, fetch(0))]


def test_a_chunk_that_comes_twice_counts_once() -> None:
    m = Module([0], START)
    m.sees(MORE, 10.0)
    m.loader.on_weights(piece(0), 10.2)
    assert m.loader.on_weights(piece(0), 10.2) == []
    for start in (40, 80):
        m.loader.on_weights(piece(start), 11.0 + start)
    assert same(m.holdings[0, 1], MODEL.make_expert(0, 1))


def test_a_silent_module_is_asked_again_ever_more_patiently_and_then_another() -> None:
    """0.25, 0.5 and 1 s: a link that needs a second for a chunk is not swamped with more of the same."""
    m = Module([0], START)
    assert m.sees({**MORE, (1, 2): READY}, 10.0) == [Send(1, fetch(0))]
    asked = [(now, m.loader.tick(now)) for now in np.arange(10.05, 11.9, 0.05).round(2).tolist()]
    sent = [(now, send.to, send.message) for now, sends in asked for send in sends]
    assert SILENT == 3
    assert sent == [(10.25, 1, fetch(0)), (10.75, 1, fetch(0)), (11.75, 2, fetch(0))]
    assert m.loader.on_weights(piece(0, source=1), 11.8) == [], "too late"
    assert m.loader.on_weights(piece(0, source=2), 11.85) == [Send(2, fetch(40))]


def test_after_a_chunk_patience_begins_anew() -> None:
    m = Module([0], START)
    m.sees(MORE, 10.0)
    m.loader.tick(10.25)
    assert m.loader.on_weights(piece(0), 10.4) == [Send(1, fetch(40))]
    assert m.loader.tick(10.64) == [] and m.loader.tick(10.65) == [Send(1, fetch(40))]


def test_near_modules_are_asked_first_and_not_the_same_by_all() -> None:
    slots: Slots = {(0, 0): READY, (1, 1): READY, (1, 2): READY, (1, 3): READY}
    assert Module([0], slots).loader._sources((0, 1)) == [1, 2, 3]
    others: Slots = {(1, 0): READY, (1, 1): READY, (1, 3): READY}
    assert Module([0], others, me=2).loader._sources((0, 1)) == [3, 0, 1]
    assert Module([0], {**others, (1, 2): READY}, me=3).loader._sources((0, 1)) == [2, 0, 1]
    m = Module([0], {(1, 0): READY, (1, 1): READY, (1, 3): READY}, me=2)
    m.loader.view = a_view(m.view.placement, [0, 0, 0, 0], 3)
    assert m.loader._sources((0, 1)) == [3, 0, 1]


def test_who_is_not_alive_or_loads_itself_is_no_source_but_one_that_lets_go_is() -> None:
    m = Module([0], START)
    slots: Slots = {(0, 0): READY, (1, 0): LOADING, (1, 1): LOADING, (1, 2): LEAVING, (1, 3): READY}
    assert m.sees(slots, 10.0, {3: SUSPECTED}) == [Send(2, fetch(0))]
    assert m.loader._sources((0, 1)) == [2]


def test_a_source_that_dies_or_has_it_no_more_is_replaced() -> None:
    m = Module([0], START)
    slots: Slots = {**MORE, (1, 2): READY, (1, 3): READY}
    m.sees(slots, 10.0)
    m.loader.on_weights(piece(0), 10.2)
    assert m.sees(slots, 10.3, {1: DEAD}) == []
    assert m.loader.tick(10.45) == [Send(2, fetch(40))], "the bytes that came stay"
    none = Weights(2, 0, 1, 40, "", np.zeros(0, np.uint8))
    assert m.loader.on_weights(none, 10.5) == [Send(3, fetch(0))], "from the beginning"
    for start in (0, 40, 80):
        m.loader.on_weights(piece(start, source=3), 11.0 + start)
    assert m.held == {0, 1}


def test_bytes_that_are_not_those_of_the_digest_are_thrown_away() -> None:
    m = Module([0], START)
    m.sees({**MORE, (1, 2): READY}, 10.0)
    bad = piece(40)
    bad.data = bad.data + np.uint8(1)
    for weights in (piece(0), bad):
        m.loader.on_weights(weights, 12.0)
    assert m.loader.on_weights(piece(80), 13.0) == [Send(2, fetch(0))] and m.held == {0}


def make(m: Module, now: float) -> list[Send]:
    job = m.loader.next_job()
    assert job is not None and (job.layer, job.expert) == (0, 1) and m.loader.next_job() is None
    assert job.flops == MAKE_OPERATIONS * BYTES / 4
    run_job(MODEL, job)
    return m.loader.on_made(job, now)


def test_what_nobody_has_is_made_and_counts_no_bytes() -> None:
    m = Module([0], START)
    assert m.sees({(0, 0): READY, (1, 0): LOADING, (1, 1): LOADING}, 10.0) == []
    (told,) = make(m, 11.0)
    assert told.message.slots.tolist() == [[0], [1]] and told.message.fetched.tolist() == [0]
    assert same(m.holdings[0, 1], MODEL.make_expert(0, 1))


def test_when_all_sources_have_failed_the_expert_is_made() -> None:
    m = Module([0], START)
    m.sees(MORE, 10.0)
    assert m.loader.on_weights(Weights(1, 0, 1, 0, "", np.zeros(0, np.uint8)), 10.1) == []
    make(m, 11.0)
    assert m.held == {0, 1}


def test_rows_go_before_the_making_of_an_expert_but_not_for_ever() -> None:
    m = Module([0], START)
    m.sees({(0, 0): READY, (1, 0): LOADING}, 10.0)
    assert not m.loader.makes_now(10.0 + MOST_WAIT * RETRY - 0.01)
    assert m.loader.makes_now(10.0 + MOST_WAIT * RETRY)
    make(m, 13.0)
    assert not m.loader.makes_now(99.0)


def test_what_is_made_and_no_more_wanted_is_thrown_away() -> None:
    m = Module([0], START)
    m.sees({(0, 0): READY, (1, 0): LOADING}, 10.0)
    job = m.loader.next_job()
    assert job is not None
    run_job(MODEL, job)
    m.sees(START, 10.5)
    assert m.loader.on_made(job, 11.0) == [] and m.held == {0} and not m.loader.busy


def test_while_one_expert_is_made_the_next_is_fetched() -> None:
    m = Module([0], START)
    m.sees({(0, 0): READY, (1, 0): LOADING, (2, 0): LOADING, (2, 1): READY}, 10.0)
    job = m.loader.next_job()
    assert job is not None and job.expert == 1
    assert m.loader.tick(10.1) == [Send(1, fetch(0, expert=2))]


def test_one_expert_comes_at_a_time() -> None:
    m = Module([0], START)
    slots: Slots = {**MORE, (2, 0): LOADING, (2, 1): READY}
    assert m.sees(slots, 10.0) == [Send(1, fetch(0))]
    for start in (0, 40):
        m.loader.on_weights(piece(start), 20.0 + start)
    sends = m.loader.on_weights(piece(80), 80.0)
    assert [type(s.message) for s in sends] == [Fetch, Loaded] and sends[0] == Send(1, fetch(0, expert=2))


def test_what_is_wanted_no_more_is_fetched_no_more() -> None:
    m = Module([0], START)
    m.sees(MORE, 10.0)
    m.loader.on_weights(piece(0), 10.1)
    assert m.sees(START, 10.2) == [] and not m.loader.busy and m.loader.deadline() == float("inf")
    assert m.loader.on_weights(piece(40), 10.3) == []
    assert m.sees(MORE, 10.4) == [Send(1, fetch(0))], "nothing is left of what came"


def test_what_has_left_the_table_is_dropped_once_no_rows_wait_for_it() -> None:
    m = Module([0, 1], {(0, 0): READY, (1, 0): READY, (1, 1): READY})
    m.in_use.add((0, 1))
    assert m.sees({(0, 0): READY, (1, 0): LEAVING, (1, 1): READY}, 10.0) == [] and m.held == {0, 1}
    m.sees(START, 10.1)
    assert m.held == {0, 1} and m.loader.busy and m.loader.deadline() == pytest.approx(10.1 + RETRY)
    m.in_use.clear()
    m.loader.tick(10.3)
    assert m.held == {0, 1}
    m.loader.tick(10.1 + RETRY)
    assert m.held == {0} and not m.loader.busy and m.loader.deadline() == float("inf")


def test_a_slot_that_comes_back_before_its_expert_is_dropped_is_ready_at_once() -> None:
    m = Module([0, 1], {(0, 0): READY, (1, 0): READY, (1, 1): READY})
    m.in_use.add((0, 1))
    m.sees(START, 10.0)
    (told,) = m.sees(MORE, 10.1)
    assert told.message.slots.tolist() == [[0], [1]] and told.message.fetched.tolist() == [0]
    m.in_use.clear()
    m.loader.tick(99.0)
    assert m.held == {0, 1}


def test_bytes_are_handed_on_in_chunks_with_the_digest_of_all() -> None:
    m = Module([0, 1], {(0, 0): READY, (1, 0): READY})
    for start, size in [(0, 40), (40, 40), (80, 16), (0, 99999), (96, 40)]:
        (sent,) = m.loader.on_fetch(Fetch(3, 0, 1, start, size))
        expected = whole(1)[start : start + min(size, CHUNK)]
        assert sent.to == 3 and sent.message.data.tobytes() == expected.tobytes()
        assert sent.message.digest == xxhash.xxh3_64_hexdigest(whole(1)) and sent.message.start == start
    (sent,) = m.loader.on_fetch(Fetch(3, 0, 2, 0, 40))
    assert (sent.message.digest, len(sent.message.data), sent.message.module) == ("", 0, 0)


def test_an_expert_goes_from_one_loader_to_another_with_its_biases_and_in_whatever_order_it_lies() -> None:
    spec = ModelSpec("biased", d_model=2, d_ff=4, experts=3, top_k=2, biases=True)
    made = Model(spec).make_expert(0, 1)
    turned = Expert(np.asfortranarray(made.up), made.down, made.activation, made.up_bias, made.down_bias)
    source, target = Module([], {(1, 1): READY}, me=1), Module([], {(1, 1): READY})
    source.holdings.put((0, 1), turned)
    target.loader.spec = spec
    sends, now = target.sees({(1, 0): LOADING, (1, 1): READY}, 10.0), 10.0
    while isinstance(sends[0].message, Fetch):
        now += 1.0
        sends = target.loader.on_weights(source.loader.on_fetch(sends[0].message)[0].message, now)  # type: ignore[arg-type]
    got = target.holdings[0, 1]
    assert same(got, made) and got.up.flags.c_contiguous and got.activation == made.activation
    assert np.array_equal(got.up_bias, made.up_bias) and np.array_equal(got.down_bias, made.down_bias)  # type: ignore[arg-type]


def test_a_slot_that_leaves_is_not_loaded() -> None:
    m = Module([0], START)
    assert m.sees({**START, (1, 0): LEAVING}, 10.0) == [] and not m.loader.busy


def test_who_hangs_is_asked_no_more() -> None:
    m = Module([0], START)
    slots: Slots = {**MORE, (1, 2): READY}
    m.sees(slots, 10.0)
    m.sees(slots, 10.1, {1: SUSPECTED})
    assert m.loader.tick(10.25) == [Send(2, fetch(0))]


def test_what_was_to_be_made_and_is_wanted_no_more_is_not_made() -> None:
    m = Module([0], START)
    m.sees({(0, 0): READY, (1, 0): LOADING}, 10.0)
    m.sees(START, 10.1)
    assert m.loader.next_job() is None
