"""Frames of messages: every kind survives the trip, and nothing malformed gets through as a message."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest

from rayemu.compression import CodecError, WireError, make_codec
from rayemu.compression.wire import pack, unpack
from rayemu.drivers.record import totals_report
from rayemu.protocol import messages
from rayemu.protocol.config import TOTALS, ProtocolConfig
from rayemu.protocol.epochs import endpoints_of, text_of
from rayemu.protocol.messages import DROPPED, Dispatch, Epoch, Heartbeat, Reply, Result, Totals
from rayemu.protocol.wire import Wire
from rayemu.scenario import Scenario
from tests.views import lots_of

WIRE = Wire((make_codec("raw"), make_codec("fp16"), make_codec("int8+zstd")))
RNG = np.random.default_rng(4)
ROWS = RNG.standard_normal((5, 16), dtype=np.float32)
LOTS = lots_of([0, 3, 2], [1, 4, 4])
DISPATCH = Dispatch(
    2, 1 << 41, -1, 0, 7, 1, 0, 1, 9, 8, 0, ROWS, np.array([0, 1, 2, 3, 4, 0], np.int32), LOTS
)
REPLY = Reply(2, 1 << 41, 7, 0, 1, 5, ROWS, [[0, 2, 0, 0], [4, 3, 1, 2]])

SAMPLES: dict[str, Any] = {"bool": True, "str": "x", "float": 0.5, "list[str]": ["a"], "Rows": [], "int": 3}


def sample(kind: type) -> Any:
    """Make a message of a kind, with something in every field."""
    if kind is Dispatch:
        return dataclasses.replace(DISPATCH)
    if kind is Reply:
        return dataclasses.replace(REPLY)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in kind.ARRAYS:  # type: ignore[attr-defined]
            dtype = np.float32 if field.name in ("rows", "weights") else np.int32
            values[field.name] = RNG.integers(0, 9, (4, 3)).astype(dtype)
        else:
            values[field.name] = SAMPLES.get(str(field.type), {"k": 1.5})
    return kind(**values)


@pytest.mark.parametrize("kind", get_args(messages.Message), ids=lambda k: k.__name__)
def test_round_trip(kind: type) -> None:
    message = sample(kind)
    back = WIRE.decode(WIRE.encode(message))
    assert type(back) is kind
    for field in dataclasses.fields(kind):
        sent, got = getattr(message, field.name), getattr(back, field.name)
        if isinstance(sent, np.ndarray):
            assert got.dtype == sent.dtype and np.array_equal(got, sent)
        else:
            assert got == sent


def test_optional_arrays_may_be_missing() -> None:
    result = Result(1, 2, 3, 4, 5, ROWS, np.zeros((1, 4), np.int32))
    back = WIRE.decode(WIRE.encode(result))
    assert isinstance(back, Result) and back.dispatch_paths is None


def test_the_tables_of_4096_modules_fit_into_frames() -> None:
    modules = 4096
    places = [
        f"host-{n}|ipc:///tmp/rayemu-12345678/module-{n}.0#{n}|tcp://10.0.0.1:{n}" for n in range(modules)
    ]
    numbers = np.arange(modules, dtype=np.int32)
    table = np.zeros((5, 48 * 256), np.uint16)
    table[3] = 4095
    epoch = Epoch(1, 0, text_of(places), np.full(modules, 2, np.uint8), numbers, table)
    back = WIRE.decode(WIRE.encode(epoch))
    assert isinstance(back, Epoch) and endpoints_of(back) == places
    assert endpoints_of(dataclasses.replace(epoch, endpoints=None)) == []
    counts = RNG.random((modules, len(TOTALS)))
    totals = WIRE.decode(WIRE.encode(Totals(modules, 1, 2, numbers, counts)))
    assert isinstance(totals, Totals)
    report = totals_report(totals)
    assert report["live"] == modules and list(report["modules"]) == [str(n) for n in range(modules)]
    assert report["modules"]["4095"] == dict(zip(TOTALS, counts[4095].tolist(), strict=True))


@pytest.mark.parametrize(
    "header", [[[0] * 4097], [{n: 0 for n in range(4097)}], [0] * 4097, [[[1], [0] * 4097]]]
)
def test_a_header_that_no_one_would_read_is_not_written(header: Any) -> None:
    with pytest.raises(CodecError, match="4096 items, not 4097"):
        pack(header)
    assert unpack(pack([[0] * 4095, [0] * 4096]))[0] == [[0] * 4095, [0] * 4096]


@pytest.mark.parametrize(("number", "codec"), [(1, "fp16"), (2, "int8+zstd")])
def test_rows_go_through_the_codec_of_the_frame(number: int, codec: str) -> None:
    back = WIRE.decode(WIRE.encode(DISPATCH, number))
    assert isinstance(back, Dispatch)
    assert np.array_equal(back.rows, make_codec(codec).roundtrip(ROWS))
    assert not np.array_equal(back.rows, ROWS)


def test_only_timed_frames_tell_when_they_were_sent_also_if_the_message_was_sent_before() -> None:
    wire, message = Wire(WIRE.codecs, wall_s=lambda: 17.5), sample(Dispatch)
    times = []
    for timed in (False, True, False):
        back = wire.decode(wire.encode_pieces(message, timed=timed))
        assert isinstance(back, Dispatch)
        times.append(back.sent_at)
    assert times == [0.0, 17.5, 0.0]


def test_coders_are_timed_by_the_given_clock_and_raw_takes_none() -> None:
    readings = iter([1.0, 1.25, 4.0, 7.5])  # before and after encoding, before and after decoding
    wire = Wire(WIRE.codecs, processor_s=lambda: next(readings))
    seconds = []
    for codec in (0, 1):
        frame = wire.encode_pieces(REPLY, codec)
        seconds.append(wire.coder_s)
        wire.decode(frame)
        seconds.append(wire.coder_s)
    assert seconds == [0.0, 0.0, 0.25, 3.5]


@pytest.mark.parametrize(
    "message", [DISPATCH, REPLY, Heartbeat(1, 0, 3, {"rows": 2.0})], ids=lambda m: type(m).__name__
)
def test_altered_frames_are_refused(message: Any) -> None:
    frame = WIRE.encode(message)
    for _ in range(300):
        bad = frame.copy()
        bad[RNG.integers(len(bad))] ^= np.uint8(1 << RNG.integers(8))
        with pytest.raises(WireError):
            WIRE.decode(bad.tobytes())
    for cut in range(0, len(frame), 7):
        with pytest.raises(WireError):
            WIRE.decode(frame[:cut].tobytes())


def forge(message: Any, change: Any, level: int = 0) -> Any:
    """Alter the header of a frame and seal it again: what a careless or hostile sender could do."""
    header, segments = unpack(WIRE.encode(message, level))
    return pack(change(list(header)) or header, segments)


def put(where: Any, key: int, value: Any) -> Any:
    """A change of one entry: of the header, or of its list number `where`."""

    def change(header: list[Any]) -> Any:
        (header if where is None else header[where]).__setitem__(key, value)
        return header

    return change


def field(name: str, value: Any) -> Any:
    """A change of one field of the message."""
    names = [f.name for f in dataclasses.fields(Dispatch) if f.name not in Dispatch.ARRAYS]
    return put(2, names.index(name), value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put(None, 0, 99), "number 99 out of range"),
        (put(None, 0, -1), "number -1 out of range"),
        (put(None, 0, "x"), "number 'x' out of range"),
        (put(None, 0, True), "number True out of range"),
        (put(None, 1, 3), "number 3 out of range 0..2"),
        (put(None, 2, []), "fields of other types"),
        (field("home", "home"), "fields of other types"),
        (field("home", True), "fields of other types"),
        (field("sent_at", float("nan")), "bad time"),
        (field("sent_at", 3), "fields of other types"),
        (field("path", 256), "path 256"),
        (field("path", -1), "path -1"),
        (field("path", 0x03), "path 3 of 3 codecs"),
        (field("path", 0x30), "path 48 of 3 codecs"),
        (field("distinct", -2), "-2 distinct of 5 rows"),
        (field("distinct", 6), "6 distinct of 5 rows"),
        (field("distinct", 1 << 40), "distinct of 5 rows"),
        (put(None, 3, []), "fields of other types"),
        (put(None, 3, [None, None, None]), "more segments than arrays"),
        (put(None, 3, [None, [1, 6], None]), "does not fit"),
        (put(3, 0, [-1, 5, 1 << 50, 1, []]), "out of range"),
        (put(3, 0, [-1, 1 << 39, 1 << 39, 1, []]), "more than 2147483648 bytes"),
        (put(3, 0, [-1, 5, 16, 3, []]), "expected 1 segments"),
        (put(3, 0, [-1, 5, 16, 10, []]), "number 10 out of range 0..8"),
        (put(3, 0, [-1]), "malformed"),
        (put(3, 2, None), "more segments"),
        (put(3, 2, [1, 6]), r"lots int32\[6\], each"),
        (put(3, 2, [1, 3, 2]), r"lots int32\[3, 2\], each"),
        (put(3, 2, [1, 1, 2, 3]), r"lots int32\[1, 2, 3\], each"),
        (put(3, 2, [2, 1, 3]), r"lots int64\[1, 3\], each"),
        (put(3, 2, [0, 2, 3]), r"lots float32\[2, 3\], each"),
        (put(3, 2, [1, 2, 2]), "does not fit"),
        (put(3, 2, [1, 0, 3]), "does not fit"),
        (put(3, 1, [77, 6]), "number 77 out of range"),
        (put(3, 1, [1, 3]), "does not fit"),
        (put(3, 1, [1, 1 << 62, 1 << 62]), "out of range"),
        (put(3, 1, [1, -6, -1]), "out of range"),
        (lambda h: [1], "malformed"),
        (lambda h: {"a": 1}, "malformed"),
    ],
)
def test_forged_headers_are_refused(change: Any, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        message = WIRE.decode(forge(DISPATCH, change).tobytes())
        raise AssertionError(f"accepted as {message}")


def test_row_indices_of_one_pair_and_a_reply_about_none() -> None:
    one = dataclasses.replace(
        DISPATCH, rows=ROWS[:1], row_of_pair=np.zeros(1, np.int32), lots=lots_of([0, 3, 1])
    )
    back = WIRE.decode(WIRE.encode(one))
    assert isinstance(back, Dispatch) and back.lots.tolist() == [[0, 3, 1]] and len(back.rows) == 1
    for index in (None, np.zeros(0, np.int32)):  # what a relay sends that was refused everything
        none = dataclasses.replace(REPLY, rows=ROWS[:0], spans=[], row_of_pair=index)
        nothing = WIRE.decode(WIRE.encode(none))
        assert isinstance(nothing, Reply) and nothing.rows.shape == (0, 16) and nothing.spans == []


def test_a_dispatch_without_indices_has_a_row_for_each_pair() -> None:
    pairs = lots_of([0, 3, 2], [1, 4, 3])
    fits = dataclasses.replace(DISPATCH, row_of_pair=None, lots=pairs)
    assert WIRE.decode(WIRE.encode(fits)) is not None
    with pytest.raises(WireError, match="5 rows for 6 pairs"):
        WIRE.decode(WIRE.encode(dataclasses.replace(fits, lots=LOTS)))


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        ([[0, 2, 0, 0]], "5 rows for 2 pairs"),
        ([[0, 2, 0, 0], [4, 4, 0, 0]], "5 rows for 6 pairs"),
        ([[0, 5, 0]], "spans: bad entry"),
        ([[-1, 5, 0, 0]], "spans: bad entry"),
        ([[0, 7, 0, 0], [0, -2, 0, 0]], "spans: bad entry"),
        ([[0, 5, 256, 0]], "path 256"),
        ([[0, 5, 0, 3]], "path 3 of 3 codecs"),
        ([[0, 5, DROPPED, 0]], "path 255"),
    ],
)
def test_spans_are_those_of_the_rows_and_name_codecs_of_the_run(spans: list[list[int]], reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        WIRE.decode(WIRE.encode(dataclasses.replace(REPLY, spans=spans)))
    with pytest.raises(WireError, match="bad time"):
        WIRE.decode(forge(REPLY, lambda h: h[2].__setitem__(-1, float("inf"))))


MOST = (1 << 31) - 1  # what a lot can claim


@pytest.mark.parametrize(
    ("lots", "reason"),
    [
        (lots_of([0, 3, 2]), "for 2 pairs"),
        (lots_of([0, 3, 2], [1, 4, 5]), "for 7 pairs"),
        (lots_of([0, 3, 2], [1, 4, 4], [1, 5, 0]), "a lot of nothing"),
        (lots_of([0, 3, 8], [1, 4, -2]), "a lot of nothing, or of less"),
        (lots_of([0, -3, 6]), "a lot of nothing, or of less"),
        (lots_of([-1, 3, 6]), "a lot of nothing, or of less"),
        (lots_of([0, 3, MOST], [1, 4, MOST], [1, 5, 8]), f"for {2 * MOST + 8} pairs"),  # 6, if it wrapped
        (None, "malformed"),
        (np.zeros((0, 3), np.int32), r"lots int32\[0, 3\], each"),
        (LOTS[:, :2], r"lots int32\[2, 2\], each"),
        (np.pad(LOTS, [(0, 0), (0, 1)]), r"lots int32\[2, 4\], each"),
        (LOTS.astype(np.int64), r"lots int64\[2, 3\], each"),
        (LOTS.astype(bool), r"lots bool\[2, 3\], each"),
    ],
)
@pytest.mark.parametrize("lent", [False, True])
def test_lots_are_a_table_of_what_the_pairs_are_for(lots: Any, reason: str, lent: bool) -> None:
    """With an index and without: the rows are as many as the pairs, so that the lots alone are wrong."""
    index = np.arange(6, dtype=np.int32) if lent else None
    good = dataclasses.replace(DISPATCH, rows=np.ones((6, 16), np.float32), row_of_pair=index)
    assert WIRE.decode(WIRE.encode(good)) is not None
    with pytest.raises(WireError, match=reason):
        WIRE.decode(WIRE.encode(dataclasses.replace(good, lots=lots)))


@pytest.mark.parametrize("message", [DISPATCH, REPLY], ids=["dispatch", "reply"])
@pytest.mark.parametrize(
    ("index", "reason"),
    [
        (np.array([0, 1, 2, 3, 5], np.int32), "row indices out of range"),
        (np.array([0, 1, 2, 3, -1], np.int32), "row indices out of range"),
        (np.array([0, 1, 2, 3, MOST], np.int32), "row indices out of range"),
        (np.array([0, 1], np.int32), r"row_of_pair int32\[2\] for 5 pairs"),
        (np.array([], np.int32), r"row_of_pair int32\[0\] for 5 pairs"),
        (np.array([0, 1, 2, 3, 4, 4], np.int32), r"row_of_pair int32\[6\] for 5 pairs"),
        (np.array([[0], [1], [2], [3], [4]], np.int32), r"row_of_pair int32\[5, 1\] for 5 pairs"),
        (np.array([0, 1, 2, 3, 4], np.int64), r"row_of_pair int64\[5\] for 5 pairs"),
        (np.array([0, 1, 2, 3, 4], np.float32), r"row_of_pair float32\[5\] for 5 pairs"),
        (np.array([0, 1, 1, 1, 0], bool), r"row_of_pair bool\[5\] for 5 pairs"),
    ],
)
def test_row_indices_are_one_for_each_pair_and_in_range(message: Any, index: np.ndarray, reason: str) -> None:
    if isinstance(message, Dispatch):
        message = dataclasses.replace(message, lots=lots_of([0, 3, 2], [1, 4, 3]))
    for good in ([0, 1, 2, 3, 4], [4, 4, 4, 4, 0]):  # five pairs; not all rows need be anyone's
        fits = dataclasses.replace(message, row_of_pair=np.array(good, np.int32))
        assert WIRE.decode(WIRE.encode(fits)).row_of_pair.tolist() == good  # type: ignore[union-attr]
    with pytest.raises(WireError, match=reason):
        WIRE.decode(WIRE.encode(dataclasses.replace(message, row_of_pair=index)))
    with pytest.raises(WireError, match="row indices out of range"):  # where there are no rows at all
        none = np.zeros(5, np.int32)
        WIRE.decode(WIRE.encode(dataclasses.replace(message, rows=ROWS[:0], row_of_pair=none)))


def test_more_codecs_than_a_path_can_name_are_refused() -> None:
    def config(count: int) -> ProtocolConfig:
        steps: list[object] = [[n + 1, f"int8(group={16 + n})"] for n in range(count - 1)]
        many = {"by_size": [*steps, "bf16"]}
        model = {"d_model": 16, "d_ff": 16, "experts": 2, "top_k": 1}
        return ProtocolConfig.from_scenario(
            Scenario.from_dict({"model": model, "exchange": {"codec": {"node": many}}})
        )

    assert len(config(14).codecs) == 15
    with pytest.raises(CodecError, match=r"exchange\.codec: 16 codecs"):
        config(15)
