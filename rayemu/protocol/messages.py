"""Everything that the actors say to each other. Plain data; `wire.py` turns it into frames.

Addresses are small integers: modules are 0..M-1. Array fields are listed in `ARRAYS` of each message;
of these, `rows` is what codecs may compress on dispatch and reply.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

COORDINATOR = -1
CLIENT = -2

# A path is a byte: the lossy codec (by its number in the run, 0: none) of the module link in the lower half,
# of the node link in the upper.
MODULE_SHIFT, NODE_SHIFT = 0, 4
MOST_CODECS = 15  # of a run, raw included: 15 in both halves means DROPPED
Rows = list[list[int]]  # a small table of numbers: it travels in the header
DROPPED = 255  # in place of a path: the choice was dropped because every copy of its expert was lost


@dataclass(slots=True)
class Submit:
    """Client to coordinator: run this batch, and forget those below `oldest`: they are over."""

    ARRAYS: ClassVar = ("rows",)
    batch: int
    oldest: int
    rows: np.ndarray  # [T, D] float32


@dataclass(slots=True)
class Accepted:
    """Coordinator to client: the batch is in the ledger."""

    ARRAYS: ClassVar = ()
    batch: int


@dataclass(slots=True)
class Slice:
    """Coordinator to home: these rows are yours; perhaps with the choices of the first layer."""

    ARRAYS: ClassVar = ("rows", "experts", "weights")
    batch: int
    slice: int
    start: int  # of the slice's rows in the batch
    slices: int  # that the batch was cut into
    complete_below: int  # all batches below are done: what is kept for them can go
    rows: np.ndarray  # [t, D]
    experts: np.ndarray | None = None  # [t, K] int32
    weights: np.ndarray | None = None  # [t, K] float32


@dataclass(slots=True)
class SliceProbe:
    """Coordinator to home: are you still working on it? A finished slice is sent again."""

    ARRAYS: ClassVar = ()
    batch: int
    slice: int


@dataclass(slots=True)
class SliceStatus:
    """Home to coordinator: whether it knows the slice."""

    ARRAYS: ClassVar = ()
    batch: int
    slice: int
    home: int
    known: bool


@dataclass(slots=True)
class RouteRequest:
    """Home to coordinator: choose experts for these rows."""

    ARRAYS: ClassVar = ("rows",)
    home: int
    batch: int
    slice: int
    micro: int
    layer: int
    rows: np.ndarray  # [t, D], after the layer's norm


@dataclass(slots=True)
class RouteReply:
    """Coordinator to home: the choices."""

    ARRAYS: ClassVar = ("experts", "weights")
    batch: int
    slice: int
    micro: int
    layer: int
    experts: np.ndarray  # [t, K] int32; -1 is no choice, with weight 0
    weights: np.ndarray  # [t, K] float32
    order: int = -1  # of a decision for the whole batch: its number among those of the layer, ...
    asked_by: int = -1  # ... the module whose scores it was made from ...
    epoch: int = -1  # ... in which membership ...
    own: bool = True  # ... and whether the scores of these rows were what this home tells


@dataclass(slots=True)
class Scores:
    """Home to coordinator: what these rows tell the layer's router, which chooses for the whole batch."""

    ARRAYS: ClassVar = ("scores",)
    home: int
    batch: int
    slice: int
    micro: int
    layer: int
    start: int  # of the rows in the batch
    scores: np.ndarray  # [t, S] float32


@dataclass(slots=True)
class GroupsReply:
    """Coordinator to home: the groups that the rows' experts are to be of."""

    ARRAYS: ClassVar = ("groups",)
    batch: int
    slice: int
    micro: int
    layer: int
    groups: np.ndarray  # [t, g] uint8, or uint16 where there are more groups


@dataclass(slots=True)
class OfferRequest:
    """Home to module: score these experts for these rows, and offer the best."""

    ARRAYS: ClassVar = ("rows", "experts")
    home: int
    request: int  # unique per home and incarnation
    batch: int
    slice: int
    micro: int
    layer: int
    rows: np.ndarray  # [t, D], after the layer's norm
    experts: np.ndarray  # [n] int32, ascending


@dataclass(slots=True)
class OfferReply:
    """Module to home: the best of the experts that it was asked to score, for each row."""

    ARRAYS: ClassVar = ("experts", "scores")
    home: int
    request: int
    batch: int
    slice: int
    micro: int
    layer: int
    experts: np.ndarray  # [t, k] int32
    scores: np.ndarray  # [t, k] float32


@dataclass(slots=True)
class Dispatch:
    """Home or relay to module: rows for experts. A module that finds lots of others in it relays those.

    There may be rows that no pair uses, see `rayemu.protocol.lending`.
    """

    ARRAYS: ClassVar = ("rows", "row_of_pair", "lots")
    home: int
    request: int  # unique per home and incarnation
    via: int  # the relay that the reply goes to, or -1 for the home itself
    start: int  # of the first pair in the home's parcel
    batch: int
    slice: int
    micro: int
    layer: int
    epoch: int
    slices: int  # homes of this batch: how many requests an expert may expect
    path: int  # lossy codecs passed so far
    rows: np.ndarray  # [r, D]
    row_of_pair: np.ndarray | None  # [n] int32; None: pair i uses row i
    lots: np.ndarray  # [m, 3] int32: module, expert, pairs of each lot, in the order of the pairs
    distinct: int = -1  # rows that its pairs use; -1: all that there are
    sent_at: float = 0.0  # when it left this sender, by the wall's clock; 0 if nobody wants to know


@dataclass(slots=True)
class Reply:
    """Module to relay or home: expert outputs for spans of a request's pairs."""

    ARRAYS: ClassVar = ("rows", "row_of_pair")
    home: int
    request: int
    batch: int
    micro: int
    layer: int
    sender: int
    rows: np.ndarray  # [r, D]
    spans: Rows  # (start in the parcel, pairs, dispatch path, combine path) of each run of pairs
    sent_at: float = 0.0
    row_of_pair: np.ndarray | None = None  # [n] int32; None: pair i has row i


@dataclass(slots=True)
class Refusal:
    """Module to relay or home: I do not hold these experts, so I do nothing of this part of the request."""

    ARRAYS: ClassVar = ()
    home: int
    request: int
    start: int  # of the part in the home's parcel
    module: int
    experts: list[int]


@dataclass(slots=True)
class Probe:
    """Home to first hop: do you still have this request?"""

    ARRAYS: ClassVar = ()
    home: int
    request: int


@dataclass(slots=True)
class Status:
    """Answer to a probe: whether the module has the request, itself or as its relay."""

    ARRAYS: ClassVar = ()
    request: int
    module: int
    known: bool


@dataclass(slots=True)
class Result:
    """Home to client: finished rows, what was routed where, and what replay needs: paths, and choices that
    were made for the whole batch (see `rayemu.protocol.decisions`)."""

    ARRAYS: ClassVar = (
        "rows",
        "expert_tokens",
        "dispatch_paths",
        "combine_paths",
        "parts",
        "experts",
        "weights",
    )
    batch: int
    slice: int
    start: int
    home: int
    epoch: int
    rows: np.ndarray  # [t, D]
    expert_tokens: np.ndarray  # [L, E] int32
    dispatch_paths: np.ndarray | None = None  # [L, t, K] uint8; None: nothing lossy, nothing dropped
    combine_paths: np.ndarray | None = None  # [L, t, K] uint8
    parts: np.ndarray | None = None  # [n, 8] int64; None: every choice was a row's own
    experts: np.ndarray | None = None  # [...] int32
    weights: np.ndarray | None = None  # [...] float32


@dataclass(slots=True)
class Failure:
    """Home to coordinator: I see no copy of this expert. If that is so, the coordinator passes it on to the
    client, which fails the batch, or back to the home, which drops the expert."""

    ARRAYS: ClassVar = ()
    batch: int
    slice: int
    layer: int
    expert: int
    home: int


@dataclass(slots=True)
class Ack:
    """Client to coordinator: the slice arrived; with slice -1, forget the whole batch."""

    ARRAYS: ClassVar = ()
    batch: int
    slice: int


@dataclass(slots=True)
class Epoch:
    """Coordinator to all: the membership and placement from now on.

    `endpoints` is the text of all, see `endpoints_of`; None where the receiver need not know them yet.
    """

    ARRAYS: ClassVar = ("endpoints", "state", "incarnations", "slots")
    epoch: int
    complete_below: int
    endpoints: np.ndarray | None  # [bytes] uint8
    state: np.ndarray  # [M] uint8
    incarnations: np.ndarray  # [M] int32
    slots: np.ndarray  # [5, S] uint16: layer, expert, part, module and state of each, see `slots_of`


@dataclass(slots=True)
class Join:
    """Module to coordinator: ready to serve at this endpoint, with these experts."""

    ARRAYS: ClassVar = ("holds",)
    module: int
    incarnation: int
    endpoint: str
    holds: np.ndarray  # [2, n] uint16: layers and experts
    pid: int = 0
    thread: int = 0  # of the process, to be watched for its end
    host: str = ""


@dataclass(slots=True)
class Heartbeat:
    """Module to coordinator: alive, with running totals for the live view."""

    ARRAYS: ClassVar = ()
    module: int
    incarnation: int
    epoch: int
    totals: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Fetch:
    """Module to module: give me these bytes of an expert's weights."""

    ARRAYS: ClassVar = ()
    module: int  # that asks
    layer: int
    expert: int
    start: int
    size: int


@dataclass(slots=True)
class Weights:
    """Module to module: bytes of an expert's weights; none at all from a module that does not hold it."""

    ARRAYS: ClassVar = ("data",)
    module: int  # that answers
    layer: int
    expert: int
    start: int
    digest: str  # xxh3 of all the expert's bytes, hexadecimal
    data: np.ndarray  # [n] uint8


@dataclass(slots=True)
class Loaded:
    """Module to coordinator: these slots of mine, loading in that epoch, are held now."""

    ARRAYS: ClassVar = ("slots", "fetched")
    module: int
    incarnation: int
    epoch: int
    slots: np.ndarray  # [2, n] uint16: layers and experts
    fetched: np.ndarray  # [n] int64, bytes that came from another module; 0 where it was made anew


@dataclass(slots=True)
class Move:
    """Client to coordinator: bring the experts to these slots. A higher number takes the place of a lower."""

    ARRAYS: ClassVar = ("slots",)
    number: int
    slots: np.ndarray  # [4, S] uint16: layer, expert, part and module of each


@dataclass(slots=True)
class Moved:
    """Coordinator to client: how far that move is. `done` says that nothing more comes of it."""

    ARRAYS: ClassVar = ()
    number: int
    done: bool
    loaded: int  # slots
    dropped: int  # slots
    cancelled: int  # slots that were not loaded, since their module died
    fetched: int  # bytes that went from module to module
    seconds: float  # since it began
    superseded: bool = False  # by a later move, before it was done; the client's own word


@dataclass(slots=True)
class Suspect:
    """Home to coordinator: this module does not answer."""

    ARRAYS: ClassVar = ()
    module: int
    incarnation: int
    by: int


@dataclass(slots=True)
class Totals:
    """Coordinator to client: running totals of the run, for live views."""

    ARRAYS: ClassVar = ("modules", "counts")
    live: int  # modules
    reissued: int  # slices
    open_batches: int
    modules: np.ndarray  # [m] int32, those that have told of themselves
    counts: np.ndarray  # [m, len(TOTALS)] float64, see `record`
    waiting: Rows = field(default_factory=list)  # (batch, slice, home or -1) of some overdue
    routing: dict[str, float] = field(default_factory=dict)  # what happened when batches were routed
    copied_bytes: int = 0  # by the coordinator, to send them: of what comes in pieces of 64 KiB and more


@dataclass(slots=True)
class Notice:
    """Coordinator to client: something that a person wants to know (see `kind` and `facts`)."""

    ARRAYS: ClassVar = ()
    kind: str
    wall_s: float
    facts: dict[str, object]


@dataclass(slots=True)
class Inject:
    """Client to module: begin (or end) a fault."""

    ARRAYS: ClassVar = ()
    fault: dict[str, object]


Message = (
    Submit
    | Accepted
    | Slice
    | SliceProbe
    | SliceStatus
    | RouteRequest
    | RouteReply
    | Scores
    | GroupsReply
    | OfferRequest
    | OfferReply
    | Dispatch
    | Reply
    | Probe
    | Refusal
    | Status
    | Result
    | Failure
    | Ack
    | Epoch
    | Join
    | Heartbeat
    | Fetch
    | Weights
    | Loaded
    | Move
    | Moved
    | Suspect
    | Totals
    | Notice
    | Inject
)


@dataclass(slots=True)
class Send:
    """The one effect of the state machines: a message for an address, its rows through a codec of the run."""

    to: int
    message: Message
    codec: int = 0
    timed: bool = False  # whether the receiver is to learn when it was sent
