"""Redundant routing: an odd number of routers vote on each token's experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing
from rayemu.routing.nested import NESTED, inner, score_columns
from rayemu.routing.router import Context, Router
from rayemu.routing.row_bits import U64, draw_experts, keys, row_hash

Lie = Literal["random", "constant", "flip"]
Ids = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Voting(Router):
    """Majority vote of an odd number of routers, so that one of three may lie.

    `routers` are those that vote, each {kind: ..., parameters}; without them softmax_topk three times. Each
    makes its own scores from the gate. How the votes are counted is said in `vote`. How many rows a member
    was outvoted in is counted as `outvoted_<member>`: of a liar these are nearly all.

    For experiments member `liar` tells lies in its choices, with the weights as they were: `lie` "random",
    experts by the seed and the row's bits; "constant", experts 0 to K-1; "flip", E-1-e in the place of e.

    The majority of modules that fail independently: von Neumann 1956, Probabilistic logics and the synthesis
    of reliable organisms from unreliable components. Of three that lie with probability p two do with 3 p^2:
    3e-10 for the texts' 1e-5, not their 3e-15. It helps against lies of the places that route, not
    against a wrong gate that all of them have, and costs as many routers as vote: 3.0 to 3.5 times
    softmax_topk for three of these (T = 4096, D = 1024, E = 64, K = 8), 7 with a liar, as then every row is
    counted.
    """

    varies: ClassVar[bool] = True  # as what is inside may
    top_k: int
    routers: Sequence[Mapping[str, Any]] = field(
        default_factory=lambda: [{"kind": "softmax_topk"} for _ in range(3)], hash=False, metadata=NESTED
    )
    liar: int | None = None
    lie: Lie = "random"
    seed: int = 0

    def check(self, experts: int) -> None:
        """Raise ValueError when a member cannot serve `experts` experts, or for an even number of members."""
        if len(self.routers) % 2 == 0:
            raise ValueError(f"routing.routers is a list of {len(self.routers)}; allowed: an odd number")
        if self.liar is not None and not 0 <= self.liar < len(self.routers):
            last = len(self.routers) - 1
            raise ValueError(f"routing.liar is {self.liar}; allowed: 0 to {last}, a member, or none")
        if self.lie not in get_args(Lie):
            raise ValueError(f"routing.lie is {self.lie!r}; allowed: one of {', '.join(get_args(Lie))}")
        self._members(experts)

    def most(self, experts: int) -> int:
        """The most that a member gives."""
        return max(member.most(experts) for member in self._members(experts))

    def scores(self, x: F32, gate: Gate) -> F32:
        """x [T, D] -> the members' scores side by side."""
        return np.concatenate([member.scores(x, gate) for member in self._members()], axis=1)

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Scores of the members -> what most of them choose, [T, K]."""
        experts, members = gate.weight.shape[1], self._members()
        bits = None if self.liar is None else keys(row_hash(scores, self.seed), context.layer + 1)
        ends = np.cumsum([score_columns(member, gate) for member in members])
        parts = np.split(scores, ends[:-1], axis=1)
        routings = [
            member.choose(np.ascontiguousarray(part), gate, context)
            for member, part in zip(members, parts, strict=True)
        ]
        if self.liar is not None and bits is not None:
            told = routings[self.liar]
            routings[self.liar] = Routing(lied(told.experts, self.lie, bits, experts), told.weights)
        routing, outvoted = vote(routings, experts)
        for member, rows in enumerate(outvoted.tolist()):
            context.count(f"outvoted_{member}", rows)
        return routing

    def _members(self, experts: int | None = None) -> list[Router]:
        return [inner(g, f"routers.{n}", self.top_k, experts) for n, g in enumerate(self.routers)]


def vote(routings: Sequence[Routing], experts: int, tolerance: float = 0.05) -> tuple[Routing, Counts]:
    """What most of `routings` choose, and in how many rows each of them was outvoted, [n].

    A row gets as many experts as the median member gives it: those with the most votes, ties by the mean
    weight that their voters give, then by the lower expert. A member has one vote for an expert, however
    often it names it; what is no expert gets none. Weight and place in the row are the (lower) median of an
    expert's voters, and weights are scaled so that their sum is the members' median. So where most members
    say the same, this is what comes out, to the bit, whatever the others say.
    A member was outvoted in a row where its experts are not those chosen, or a weight is off by more than
    `tolerance` times the weights' sum.
    """
    width = max(each.experts.shape[1] for each in routings)
    padded = [_padded(each, width) for each in routings]
    outcome = Routing(padded[0].experts.copy(), padded[0].weights.copy())
    agreed = np.ones(len(outcome.experts), bool)
    for each in padded[1:]:
        agreed &= (each.experts == outcome.experts).all(axis=1)
        agreed &= (each.weights.view(np.uint32) == outcome.weights.view(np.uint32)).all(axis=1)
    rows = np.flatnonzero(~agreed)
    outvoted = np.zeros(len(padded), np.int64)
    if rows.size:
        ballots = [Routing(each.experts[rows], each.weights[rows]) for each in padded]
        outcome.experts[rows], outcome.weights[rows], outvoted = _counted(ballots, experts, tolerance)
    return outcome, outvoted


def _padded(routing: Routing, width: int) -> Routing:
    more = ((0, 0), (0, width - routing.experts.shape[1]))
    return Routing(
        np.pad(routing.experts, more, constant_values=-1).astype(np.int32, copy=False),
        np.ascontiguousarray(np.pad(routing.weights, more), np.float32),
    )


def _counted(ballots: list[Routing], experts: int, tolerance: float) -> tuple[Ids, F32, Counts]:
    """Choices and weights [R, K] by the vote of members' [R, K], and rows that each was outvoted in [n]."""
    members, (rows, width) = len(ballots), ballots[0].experts.shape
    place = np.full((members, rows, experts), width)  # where a member names an expert, [n, R, E]
    weight = np.full((members, rows, experts), np.nan, np.float32)
    for member, ballot in enumerate(ballots):
        for column in reversed(range(width)):  # of several the first counts
            named = ballot.experts[:, column]
            row = np.flatnonzero((named >= 0) & (named < experts))
            place[member, row, named[row]] = column
            weight[member, row, named[row]] = ballot.weights[row, column]
    voted = place < width
    votes = voted.sum(axis=0)  # [R, E]
    with np.errstate(invalid="ignore"):  # inf - inf
        mean = np.where(voted, weight, 0).sum(axis=0, dtype=np.float64) / np.maximum(votes, 1)
    mean[~np.isfinite(mean)] = -np.inf
    # [R, K']: a stable sort, so that ties go to the lower expert; K' is K, or E where that is less
    chosen = np.lexsort((-mean, -votes), axis=1)[:, :width]
    voters = np.take_along_axis(votes, chosen, axis=1)
    count = _lower_median(voted.sum(axis=2), np.full(rows, members))  # of experts, [R]
    there = (np.arange(chosen.shape[1]) < count[:, None]) & (voters > 0)
    order = np.where(there, _lower_median(_at(place, chosen), voters), width).argsort(axis=1, kind="stable")
    chosen, voters, there = (np.take_along_axis(each, order, axis=1) for each in (chosen, voters, there))
    given = _at(weight, chosen)  # [n, R, K']
    decided = _padded(
        Routing(np.where(there, chosen, -1), np.where(there, _lower_median(given, voters), 0)), width
    )
    own = np.add.reduce(decided.weights, axis=1)  # [R]
    sums = np.stack([np.add.reduce(ballot.weights, axis=1) for ballot in ballots])
    target = _lower_median(sums, np.full(rows, members))
    fits = (own > 0) & np.isfinite(own) & np.isfinite(target)
    decided.weights[fits] *= (target[fits] / own[fits])[:, None]
    final = decided.weights[:, : chosen.shape[1]]
    both_nan = np.isnan(given) & np.isnan(final)
    with np.errstate(invalid="ignore"):
        off = ~(np.abs(given - final) <= tolerance * np.abs(target)[:, None]) & ~both_nan & there
    right = np.zeros((rows, experts), bool)
    np.put_along_axis(right, chosen, there, axis=1)
    outvoted = (voted != right).any(axis=2) | off.any(axis=2)  # [n, R]
    return decided.experts, decided.weights, outvoted.sum(axis=1)


def _at(values: npt.NDArray[Any], chosen: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """values [n, R, E] at chosen [R, K'] -> [n, R, K']."""
    return np.take_along_axis(values, chosen[None], axis=2)


def _lower_median(values: npt.NDArray[Any], voters: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The middle of the lowest `voters` [...] of values [n, ...], the lower of two; NaN is the highest."""
    middle = np.maximum(voters - 1, 0) // 2
    return np.take_along_axis(np.sort(values, axis=0), middle[None], axis=0)[0]


def lied(experts: Ids, lie: str, bits: U64, count: int) -> Ids:
    """Other experts [T, K] than `experts`, in the same places, of `count` that there are."""
    if lie == "flip":
        others = count - 1 - experts
    elif lie == "constant":
        others = np.broadcast_to(np.arange(experts.shape[1], dtype=np.int32), experts.shape)
    else:
        others = draw_experts(bits, count, experts.shape[1])
    return np.where(experts >= 0, others, -1).astype(np.int32)
