"""Frames that name what a run does not have are refused as bad frames: one change at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rayemu.alltoall import ALIVE
from rayemu.compression import WireError, make_codec
from rayemu.protocol.bounds import Bounds
from rayemu.protocol.config import TOTALS
from rayemu.protocol.epochs import text_of
from rayemu.protocol.messages import (
    Dispatch,
    Epoch,
    Failure,
    GroupsReply,
    Heartbeat,
    Join,
    Message,
    OfferReply,
    OfferRequest,
    Reply,
    Result,
    RouteReply,
    RouteRequest,
    Scores,
    Slice,
    SliceStatus,
    Status,
    Submit,
    Suspect,
    Totals,
)
from rayemu.protocol.wire import Wire
from tests.views import everything, lots_of

BOUNDS = Bounds(modules=4, experts=8, layers=2, top_k=2, d_model=16, most=3)
WIRE = Wire((make_codec("raw"),), BOUNDS)
ROWS = np.ones((3, 16), np.float32)
NARROW = np.ones((3, 15), np.float32)
EXPERTS, WEIGHTS = np.array([[0, 7], [1, 2], [3, 4]], np.int32), np.full((3, 2), 0.5, np.float32)
PATHS = np.zeros((2, 3, 2), np.uint8)
FOUR = np.arange(4, dtype=np.int32)
TABLE = np.array([[0] * 8, range(8), [0] * 8, [0, 1, 2, 3] * 2, [1] * 8], np.uint16)


def changed(column: int, value: int) -> np.ndarray:
    """The table of slots with one number in it that is too large."""
    table = TABLE.copy()
    table[column, 5] = value
    return table


# What was decided for rows 0 to 3 of layer 1: three choices each.
PARTS = np.array([[1, 0, 3, 3, 0, 2, 1, 1]])
CHOSEN, CHOSEN_WEIGHTS = np.array([0, 7, -1] * 3, np.int32), np.array([0.5, 0.5, 0] * 3, np.float32)


def changed_part(column: int, value: int) -> np.ndarray:
    parts = PARTS.copy()
    parts[0, column] = value
    return parts


GOOD: list[Message] = [
    Submit(0, 0, ROWS),
    Slice(0, 0, 0, 1, 0, ROWS, EXPERTS, WEIGHTS),
    RouteRequest(3, 0, 0, 0, 1, ROWS),
    RouteReply(0, 0, 0, 1, EXPERTS, WEIGHTS),
    Scores(3, 0, 0, 0, 1, 0, np.zeros((3, 8), np.float32)),
    GroupsReply(0, 0, 0, 1, np.array([[0, 1]] * 3, np.uint8)),
    OfferRequest(3, 1, 0, 0, 0, 1, ROWS, np.array([0, 3, 7], np.int32)),
    OfferReply(3, 1, 0, 0, 0, 1, EXPERTS, WEIGHTS),
    Dispatch(3, 1, 3, 0, 0, 0, 0, 1, 1, 1, 0, ROWS, None, lots_of([3, 7, 2], [0, 0, 1])),
    Reply(3, 1, 0, 0, 1, 3, ROWS, [[0, 3, 0, 0]]),
    Status(1, 3, True),
    SliceStatus(0, 0, 3, True),
    Result(0, 0, 0, 3, 1, ROWS, np.zeros((2, 8), np.int32), PATHS, PATHS),
    Failure(0, 0, 1, 7, 3),
    Epoch(1, 0, text_of(list("abcd")), np.full(4, ALIVE, np.uint8), FOUR, TABLE),
    Join(3, 0, "e", everything()),
    Heartbeat(3, 0, 1),
    Suspect(3, 0, 3),
    Totals(4, 0, 0, FOUR, np.zeros((4, len(TOTALS)))),
]


def good(kind: type) -> Any:
    (message,) = [m for m in GOOD if type(m) is kind]
    return message


@pytest.mark.parametrize("message", GOOD, ids=lambda m: type(m).__name__)
def test_what_fits_is_taken(message: Message) -> None:
    assert type(WIRE.decode(WIRE.encode(message))) is type(message)
    assert WIRE.decode(WIRE.encode(replace(good(Epoch), endpoints=None))) is not None
    decided = replace(good(Result), parts=PARTS, experts=CHOSEN, weights=CHOSEN_WEIGHTS)
    assert WIRE.decode(WIRE.encode(decided)) is not None
    wide = replace(good(RouteReply), experts=CHOSEN.reshape(3, 3), weights=CHOSEN_WEIGHTS.reshape(3, 3))
    assert WIRE.decode(WIRE.encode(replace(wide, order=4, asked_by=1, epoch=2))) is not None
    with pytest.raises(WireError):
        WIRE.decode(WIRE.encode(wide))  # a row's own choices are top_k
    assert WIRE.decode(WIRE.encode(replace(good(Dispatch), via=-1))) is not None
    assert WIRE.decode(WIRE.encode(replace(good(Suspect), module=0, by=0))) is not None
    nobody = Totals(0, 0, 0, np.zeros(0, np.int32), np.zeros((0, len(TOTALS))))
    assert WIRE.decode(WIRE.encode(nobody)) is not None


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Submit, {"rows": NARROW}),
        (Slice, {"rows": NARROW}),
        (Slice, {"rows": ROWS.astype(np.int32)}),
        (Slice, {"rows": np.ones(16, np.float32)}),
        (Slice, {"experts": EXPERTS + 1}),
        (Slice, {"experts": EXPERTS - 2}),
        (Slice, {"experts": EXPERTS[:2], "weights": WEIGHTS[:2]}),
        (Slice, {"experts": EXPERTS.astype(np.float32)}),
        (Slice, {"weights": WEIGHTS[:, :1]}),
        (Slice, {"weights": None}),
        (Slice, {"weights": np.ones((3, 2), np.int32)}),
        (Submit, {"rows": np.ones((3, 16, 1), np.float32)}),
        (RouteRequest, {"home": 4}),
        (RouteRequest, {"home": -1}),
        (RouteRequest, {"layer": 2}),
        (RouteRequest, {"rows": NARROW}),
        (RouteReply, {"experts": EXPERTS + 1}),
        (RouteReply, {"experts": EXPERTS[:, :1], "weights": WEIGHTS[:, :1]}),
        (RouteReply, {"weights": WEIGHTS[:2]}),
        (RouteReply, {"layer": -1}),
        (RouteReply, {"experts": EXPERTS - 2}),
        (
            RouteReply,
            {
                "experts": np.zeros((3, 4), np.int32),
                "weights": np.zeros((3, 4), np.float32),
                "order": 0,
                "asked_by": 0,
            },
        ),
        (RouteReply, {"order": 0, "asked_by": 4}),
        (RouteReply, {"order": 0, "asked_by": -1}),
        (Scores, {"home": 4}),
        (Scores, {"layer": 2}),
        (Scores, {"start": -1}),
        (Scores, {"scores": np.zeros(3, np.float32)}),
        (Scores, {"scores": np.zeros((3, 8), np.int32)}),
        (GroupsReply, {"layer": 2}),
        (GroupsReply, {"groups": np.full((3, 2), 8, np.uint8)}),
        (GroupsReply, {"groups": np.zeros(3, np.uint8)}),
        (GroupsReply, {"groups": np.zeros((3, 0), np.uint8)}),
        (GroupsReply, {"groups": np.zeros((3, 2), np.float32)}),
        (OfferRequest, {"home": 4}),
        (OfferRequest, {"layer": 2}),
        (OfferRequest, {"rows": NARROW}),
        (OfferRequest, {"experts": np.array([0, 8], np.int32)}),
        (OfferRequest, {"experts": np.array([-1, 3], np.int32)}),
        (OfferRequest, {"experts": np.array([3, 3], np.int32)}),
        (OfferRequest, {"experts": np.array([3, 0], np.int32)}),
        (OfferRequest, {"experts": np.zeros(0, np.int32)}),
        (OfferRequest, {"experts": np.arange(3)}),
        (OfferRequest, {"experts": EXPERTS}),
        (OfferReply, {"home": 4}),
        (OfferReply, {"layer": 2}),
        (OfferReply, {"experts": EXPERTS + 1}),
        (OfferReply, {"experts": EXPERTS - 1}),
        (OfferReply, {"experts": EXPERTS[:2]}),
        (OfferReply, {"experts": np.zeros((3, 3), np.int32), "scores": np.zeros((3, 3), np.float32)}),
        (OfferReply, {"scores": WEIGHTS.astype(np.float64)}),
        (Result, {"parts": PARTS}),
        (Result, {"parts": PARTS, "experts": CHOSEN}),
        (Result, {"parts": PARTS, "experts": CHOSEN, "weights": CHOSEN_WEIGHTS[:5]}),
        (Result, {"parts": PARTS, "experts": CHOSEN + 8, "weights": CHOSEN_WEIGHTS}),
        *(
            (Result, {"parts": changed_part(*change), "experts": CHOSEN, "weights": CHOSEN_WEIGHTS})
            for change in (
                (0, 2),
                (0, -1),
                (1, 1),
                (1, -1),
                (1, 2**63 - 1),
                (2, 4),
                (3, 0),
                (3, 4),
                (4, -1),
                (5, 4),
            )
        ),
        (Result, {"parts": PARTS.astype(np.float64), "experts": CHOSEN, "weights": CHOSEN_WEIGHTS}),
        (Result, {"parts": PARTS[:, :7], "experts": CHOSEN, "weights": CHOSEN_WEIGHTS}),
        (Dispatch, {"home": 4}),
        (Dispatch, {"via": 4}),
        (Dispatch, {"via": -2}),
        (Dispatch, {"batch": 1 << 31}),  # more than the record's columns hold
        (Dispatch, {"slice": -1}),
        (Dispatch, {"micro": 1 << 31}),
        (Dispatch, {"slices": 1 << 40}),
        (Dispatch, {"epoch": 1 << 31}),
        (Dispatch, {"request": 1 << 62}),
        (Dispatch, {"layer": 2}),
        (Dispatch, {"rows": NARROW}),
        (Dispatch, {"lots": lots_of([3, 8, 3])}),
        (Dispatch, {"lots": lots_of([3, 7, 2], [4, 0, 1])}),
        (Reply, {"home": 4}),
        (Reply, {"sender": 4}),
        (Reply, {"sender": -1}),
        (Reply, {"rows": NARROW}),
        (Status, {"module": 4}),
        (SliceStatus, {"home": -1}),
        (Result, {"home": 4}),
        (Result, {"rows": NARROW}),
        (Result, {"expert_tokens": np.zeros((2, 7), np.int32)}),
        (Result, {"dispatch_paths": PATHS[:, :2]}),
        (Result, {"combine_paths": PATHS.astype(np.int32)}),
        (Result, {"combine_paths": np.zeros((2, 3, 3), np.uint8)}),
        (Result, {"combine_paths": None}),
        (Result, dict.fromkeys(("dispatch_paths", "combine_paths"), np.zeros((2, 3, 4), np.uint8))),
        (Result, dict.fromkeys(("dispatch_paths", "combine_paths"), np.zeros((2, 3, 0), np.uint8))),
        (Failure, {"expert": 8}),
        (Failure, {"home": 4}),
        (Epoch, {"state": np.full(3, ALIVE, np.uint8)}),
        (Epoch, {"state": np.full(4, 3, np.uint8)}),
        (Epoch, {"incarnations": FOUR - 1}),
        (Epoch, {"slots": changed(0, 2)}),
        (Epoch, {"slots": changed(1, 8)}),
        (Epoch, {"slots": changed(2, 1)}),
        (Epoch, {"slots": changed(3, 4)}),
        (Epoch, {"slots": changed(4, 3)}),
        (Epoch, {"slots": TABLE[:4]}),
        (Epoch, {"slots": TABLE[0]}),
        (Epoch, {"slots": TABLE.astype(np.float32)}),
        (Epoch, {"endpoints": text_of(list("abc"))}),
        (Epoch, {"endpoints": np.full(7, 255, np.uint8)}),
        (Join, {"module": 4}),
        (Heartbeat, {"module": -1}),
        (Suspect, {"module": 4}),
        (Suspect, {"by": 4}),
        (Totals, {"modules": FOUR + 1}),
        (Totals, {"counts": np.zeros((3, len(TOTALS)))}),
    ],
)
def test_what_does_not_fit_is_a_bad_frame(kind: type, changes: dict[str, Any]) -> None:
    frame = WIRE.encode(replace(good(kind), **changes))
    with pytest.raises(WireError) as refusal:
        WIRE.decode(frame)
    if set(changes) != {"endpoints"} or len(changes["endpoints"]) != 7:  # those are no text at all
        assert any(key in str(refusal.value) for key in changes), "the field is named"
        assert kind.__name__ in str(refusal.value)
