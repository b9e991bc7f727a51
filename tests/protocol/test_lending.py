"""Rows that travel as they lie: what a message is about, and its size had they been picked out."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from rayemu.compression import make_codec
from rayemu.protocol.lending import carried, carried_bytes, distinct, frame_bytes, gather
from rayemu.protocol.memory import fresh_rows
from rayemu.protocol.messages import Dispatch, Reply
from rayemu.protocol.wire import Wire
from tests.views import lots_of

WIRE = Wire((make_codec("raw"), make_codec("fp16")))
D = 20
Index = list[int] | np.ndarray | None


def dispatch(rows: int, index: Index, lots: int = 1) -> Dispatch:
    x = np.random.default_rng(rows).standard_normal((rows, D), dtype=np.float32)
    given = None if index is None else np.asarray(index, np.int32)
    pairs = rows if given is None else len(given)
    table = lots_of(*([1, 2, 1] for _ in range(lots - 1)), [1, 3, pairs - lots + 1])
    meant = -1 if given is None else distinct(given)
    return Dispatch(2, 1 << 41, -1, 0, 300, 1, 0, 1, 9, 8, 0, x, given, table, meant)


def reply(rows: int, index: Index) -> Reply:
    d = dispatch(rows, index)
    pairs = rows if d.row_of_pair is None else len(d.row_of_pair)
    return Reply(2, 1 << 41, 300, 0, 1, 5, d.rows, [[0, pairs, 0, 0]], row_of_pair=d.row_of_pair)


def some_index(seed: int) -> tuple[int, np.ndarray]:
    """Rows, and an index into them with and without repetitions, of all and of few, up to long numbers."""
    rng = np.random.default_rng(seed)
    rows = int(rng.choice([1, 2, 17, 127, 128, 255, 256, 300, 70_000], p=[*[0.12] * 8, 0.04]))
    pairs = int(rng.choice([1, 2, 5, 127, 128, 255, 256, 600]))
    if rng.random() < 0.4 and pairs <= rows:
        return rows, rng.permutation(rows)[:pairs]
    return rows, rng.integers(0, max(1, int(rows * rng.random())), pairs)


CASES = [
    *(some_index(seed) for seed in range(40)),
    (4, np.arange(4)),
    (4, np.array([3, 2, 1, 0])),  # each once, in another order
    (4, np.array([0, 1, 2, 3, 3])),  # all are used, one twice
    (4, np.array([0, 2, 2])),
    (4, np.array([3])),
    (70_000, np.full(70_000, 69_999)),
    (70_000, np.arange(70_000)),
]


@pytest.mark.parametrize(("rows", "index"), CASES, ids=range(len(CASES)))
def test_a_dispatch_is_about_its_distinct_rows(rows: int, index: np.ndarray) -> None:
    lots = 1 + len(index) // 3
    m = dispatch(rows, index, lots)
    distinct, wanted, lent = np.unique(index), m.rows[index], m.rows.copy()
    assert carried(m) == len(distinct) and carried_bytes(m) == len(distinct) * D * 4
    told = frame_bytes(m, WIRE.encode_pieces(m))
    assert told == frame_bytes(m, WIRE.encode_pieces(m, shared=True)), "it is so large in any version"
    before = m.rows
    gather(m, fresh_rows)
    assert np.array_equal(before, lent), "rows that are lent stay as they are"
    assert len(m.rows) == len(distinct) == carried(m) and m.rows.dtype == np.float32
    if len(distinct) == len(index):  # in the order of the pairs
        assert m.row_of_pair is None and np.array_equal(m.rows, wanted)
    else:
        assert m.row_of_pair is not None and m.row_of_pair.dtype == np.int32
        assert np.array_equal(m.rows, lent[distinct]) and np.array_equal(m.rows[m.row_of_pair], wanted)
    frame = WIRE.encode_pieces(m)
    assert told == sum(map(len, frame)) == frame_bytes(m, frame)
    assert WIRE.decode(frame) is not None


@pytest.mark.parametrize(("rows", "index"), CASES, ids=range(len(CASES)))
def test_a_reply_is_about_a_row_for_each_pair(rows: int, index: np.ndarray) -> None:
    m = reply(rows, index)
    wanted = m.rows[index]
    assert carried(m) == len(index) and carried_bytes(m) == wanted.nbytes
    told = frame_bytes(m, WIRE.encode_pieces(m))
    gather(m, fresh_rows)
    assert m.row_of_pair is None and np.array_equal(m.rows, wanted)
    assert told == len(WIRE.encode(m)) == frame_bytes(m, WIRE.encode_pieces(m))


def lengthen(m: Dispatch | Reply, extra: int) -> None:
    """Give a message a header that is so many bytes longer (0..63) than it can be."""
    if isinstance(m, Reply):
        m.spans = [[0] * 7] * (extra // 8) + [[0] * (extra % 8 - 1)] * (extra % 8 > 0)
        return
    numbers = {8: 1 << 32, 4: 1 << 16, 2: 1 << 8, 1: 1 << 7, 0: 0}  # by how many bytes more than 0 they take
    for name in ("request", "via", "start", "batch", "slice", "micro", "layer", "epoch", "slices", "home"):
        more = next(n for n in numbers if n <= extra)
        setattr(m, name, numbers[more])
        extra -= more


@pytest.mark.parametrize("make", [dispatch, reply])
@pytest.mark.parametrize("rows", [127, 128, 255, 256, 65_535, 65_536])
def test_sizes_are_right_wherever_the_header_ends(make: type, rows: int) -> None:
    """With headers of all lengths, a byte more or less moves the segments in one of them."""
    m = make(rows, [0])
    lent = m.rows
    for pairs in (127, 128, 255, 256):
        for different in {2, min(pairs, rows)}:
            for extra in range(64):
                m.rows, m.row_of_pair = lent, np.arange(pairs, dtype=np.int32) % different
                if isinstance(m, Dispatch):
                    m.distinct = distinct(m.row_of_pair)
                lengthen(m, extra)
                told = frame_bytes(m, WIRE.encode_pieces(m))
                gather(m, fresh_rows)
                assert told == sum(map(len, WIRE.encode_pieces(m)))


@pytest.mark.parametrize("make", [dispatch, reply])
def test_what_has_no_index_is_about_all_its_rows(make: type) -> None:
    m = make(6, None)
    rows = m.rows
    assert carried(m) == 6 and carried_bytes(m) == rows.nbytes
    assert frame_bytes(m, WIRE.encode_pieces(m)) == len(WIRE.encode(m))
    gather(m, fresh_rows)
    assert m.rows is rows and m.row_of_pair is None, "there is nothing to pick"


def test_what_is_gathered_already_is_not_copied_again() -> None:
    m = dispatch(4, [0, 1, 2, 3, 3])
    rows, index = m.rows, m.row_of_pair
    gather(m, fresh_rows)
    assert m.rows is rows and m.row_of_pair is index


@pytest.mark.parametrize("make", [dispatch, reply])
def test_rows_are_gathered_into_the_memory_that_is_given(make: type) -> None:
    made: list[np.ndarray] = []

    def new_rows(rows: int, width: int) -> np.ndarray:
        made.append(np.full((rows, width), np.nan, np.float32))
        return made[-1]

    m = make(9, [4, 4, 8])
    wanted = copy.copy(m.rows)[[4, 4, 8]]
    gather(m, new_rows)
    assert m.rows is made[0] and len(made) == 1
    assert np.array_equal(m.rows if m.row_of_pair is None else m.rows[m.row_of_pair], wanted)
