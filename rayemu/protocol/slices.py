"""What a home keeps of its slices while they are under way."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rayemu.alltoall import Parcel, cut_micro_batches
from rayemu.model.model import Model
from rayemu.protocol.answers import Answers
from rayemu.protocol.config import ProtocolConfig
from rayemu.protocol.decisions import Decisions, Part
from rayemu.protocol.lending import distinct
from rayemu.protocol.memory import NewRows
from rayemu.protocol.messages import Dispatch, Result, Slice
from rayemu.routing import Offer, Routing

# What was done with a unit's rows: choices made, merged from offers, or offered; outputs combined.
ROUTED, MERGED, OFFERED, COMBINED = "routed", "merged", "offered", "combined"


@dataclass(slots=True, eq=False)
class Unit:
    """One micro-batch of a slice on its way through the layers."""

    slice: HeldSlice
    micro: int
    low: int  # rows [low, high) of the slice
    high: int
    h: np.ndarray  # [t, D] residual stream
    layer: int = 0
    x: np.ndarray | None = None  # [t, D] normed input of the layer, then what its experts are given
    experts: np.ndarray | None = None  # [t, K]
    weights: np.ndarray | None = None  # [t, K]
    answers: Answers | None = None  # expert outputs, one per pair
    have: np.ndarray | None = None  # [t * K] bool
    left: int = 0  # pairs without an output
    awaits_shared: bool = False
    shared: np.ndarray | None = None  # [t, D]
    requests: list[int] = field(default_factory=list)
    route_deadline: float = float("inf")
    offers: list[Offer] = field(default_factory=list)  # of experts that other modules score, as they come


# (what, unit, layer, outputs combined or experts scored, from when, to when), for whoever records
Work = tuple[str, Unit, int, int, float, float]


@dataclass(slots=True, eq=False)
class HeldSlice:
    """A slice whose home this module is, and what its result will hold."""

    batch: int
    slice: int
    start: int
    slices: int
    y: np.ndarray  # [t, D]
    expert_tokens: np.ndarray  # [L, E] int32
    # [L, t, K] uint8, from the first pair on of which there is anything to note; K of the layer with most
    dispatch_paths: np.ndarray | None = None
    combine_paths: np.ndarray | None = None
    units: list[Unit] = field(default_factory=list)
    units_left: int = 0
    result: Result | None = None
    decided: list[tuple[Part, Routing]] = field(default_factory=list)  # choices that are to be recorded

    def note(self, unit: Unit, pairs: np.ndarray, dispatch_path: int, combine_path: int) -> None:
        """Note what lossy codecs, or a drop, did to the rows of a unit's pairs [n] in its present layer."""
        assert unit.experts is not None
        choices = unit.experts.shape[1]
        if self.dispatch_paths is None or self.combine_paths is None:
            shape = len(self.expert_tokens), len(self.y), choices
            self.dispatch_paths, self.combine_paths = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        self.dispatch_paths = widened(self.dispatch_paths, choices)
        self.combine_paths = widened(self.combine_paths, choices)
        rows, choice = np.divmod(pairs, choices)
        for paths, path in ((self.dispatch_paths, dispatch_path), (self.combine_paths, combine_path)):
            paths[unit.layer, unit.low + rows, choice] = path

    def finished(self, home: int, epoch: int) -> Result:
        """Return the slice's result, its units all being done."""
        recorded = Decisions.of(self.decided) if self.decided else None
        return Result(
            self.batch,
            self.slice,
            self.start,
            home,
            epoch,
            self.y,
            self.expert_tokens,
            self.dispatch_paths,
            self.combine_paths,
            *((recorded.parts, recorded.experts, recorded.weights) if recorded is not None else ()),
        )


def widened(paths: np.ndarray, choices: int) -> np.ndarray:
    """Paths [L, t, K] with room for so many choices."""
    lacking = choices - paths.shape[2]
    return paths if lacking <= 0 else np.pad(paths, ((0, 0), (0, 0), (0, lacking)))


def hold(m: Slice, model: Model, config: ProtocolConfig, new_rows: NewRows) -> HeldSlice:
    """Make what a home keeps of a slice that it was given, its units not begun."""
    held = HeldSlice(
        m.batch,
        m.slice,
        m.start,
        m.slices,
        new_rows(*m.rows.shape),
        np.zeros((len(model.layers), model.spec.experts), np.int32),
    )
    cuts = cut_micro_batches(len(m.rows), config.micro_batches)
    held.units = [Unit(held, n, low, high, m.rows[low:high]) for n, (low, high) in enumerate(cuts)]
    held.units_left = len(held.units)
    return held


def dispatch_of(unit: Unit, parcel: Parcel, home: int, request: int, epoch: int) -> Dispatch:
    """A request for the pairs of a parcel; its rows are the unit's."""
    assert unit.x is not None and unit.experts is not None
    held = unit.slice
    row_of_pair = (parcel.pairs // unit.experts.shape[1]).astype(np.int32)
    return Dispatch(
        home=home,
        request=request,
        via=-1,
        start=0,
        batch=held.batch,
        slice=held.slice,
        micro=unit.micro,
        layer=unit.layer,
        epoch=epoch,
        slices=held.slices * len(held.units),
        path=0,
        rows=unit.x,
        row_of_pair=row_of_pair,
        lots=parcel.lots,
        distinct=distinct(row_of_pair),
    )
