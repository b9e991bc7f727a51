"""Choices that were made once for a whole batch of a layer, and are recorded with its result.

Shapes: T tokens of a batch, K choices per token of a decision, E experts, L layers.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from xxhash import xxh3_64_digest

from rayemu.alltoall import View
from rayemu.compression import WireError
from rayemu.model.model import Model
from rayemu.model.reference import scored
from rayemu.protocol.messages import RouteReply, Scores, Send
from rayemu.routing import Context, Routing

DECISIONS = "decisions"  # how many were made, among what is counted


class Part(NamedTuple):
    """What a decision of a layer gave to neighbouring rows of a batch."""

    layer: int
    start: int  # of the rows in the batch
    rows: int
    choices: int  # per row, K
    order: int  # the layer's decisions are numbered as they are made
    asked_by: int  # the module whose scores it was made from
    epoch: int  # of the membership that it was made in
    own: int  # 1 if these rows' scores in it are those of the home that took the rows through, to the bit


@dataclass(eq=False)
class Decisions:
    """Recorded choices: a row of `parts` [n, 8] for each `Part`, and theirs one after the other.

    `experts` int32 and `weights` float32 are flat, row by row, K of each.
    """

    parts: np.ndarray = field(default_factory=lambda: np.zeros((0, len(Part._fields)), np.int64))
    experts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def __iter__(self) -> Iterator[tuple[Part, Routing]]:
        low = 0
        for numbers in self.parts.tolist():
            part = Part(*numbers)
            high = low + part.rows * part.choices
            shape = part.rows, part.choices
            yield part, Routing(self.experts[low:high].reshape(shape), self.weights[low:high].reshape(shape))
            low = high

    def routing(self, layer: int, tokens: int) -> Routing | None:
        """Return a layer's choices [T, K], None where they were not recorded."""
        found: Routing | None = None
        for part, routing in self:
            if part.layer == layer:
                if found is None:
                    shape = tokens, part.choices
                    found = Routing(np.full(shape, -1, np.int32), np.zeros(shape, np.float32))
                rows = slice(part.start, part.start + part.rows)
                found.experts[rows], found.weights[rows] = routing
        return found

    @classmethod
    def of(cls, parts: list[tuple[Part, Routing]]) -> Decisions:
        """Put parts together."""
        if not parts:
            return cls()
        return cls(
            np.array([part for part, _ in parts], np.int64),
            np.concatenate([routing.experts.ravel() for _, routing in parts], dtype=np.int32),
            np.concatenate([routing.weights.ravel() for _, routing in parts], dtype=np.float32),
        )

    def joined(self, other: Decisions) -> Decisions:
        """Return these and the other's."""
        return Decisions(
            np.concatenate([self.parts, other.parts]),
            np.concatenate([self.experts, other.experts]),
            np.concatenate([self.weights, other.weights]),
        )


@dataclass(slots=True, eq=False)
class _Asked:
    have: np.ndarray  # [T] bool
    rows: int = 0
    parts: dict[int, Scores] = field(default_factory=dict)  # by first row


@dataclass(slots=True, eq=False)
class _Decided:
    routing: Routing  # [T, K]
    order: int
    asked_by: np.ndarray  # [T] int16
    epoch: int
    scores: dict[int, bytes]  # by first row: a digest of what came from there


class Decider:
    """Collects what the rows of a layer's batch tell its router, decides once, and tells all homes.

    A home that asks again, or another one that was given its slice, gets the same choices, be it that the
    latter's scores are others: lossy codecs may have changed its rows in another way on the way here.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.counts: dict[str, float] = {}  # what happened, see `Context`
        self._asked: dict[tuple[int, int], _Asked] = {}  # batch and layer
        self._decided: dict[tuple[int, int], _Decided] = {}
        self._made = [0] * len(model.layers)
        self._states: dict[int, Any] = {}
        self._widths: dict[int, int] = {}  # of scores, by layer

    def on_scores(self, m: Scores, tokens: int, view: View) -> list[Send]:
        """Take in scores for a batch of so many tokens; answer whoever can be answered now.

        Raises WireError for scores that are not of the layer's router, or of rows that the batch has not.
        """
        key, rows = (m.batch, m.layer), len(m.scores)
        if not rows or m.start + rows > tokens or m.scores.shape[1] != self._width(m.layer):
            raise WireError(f"scores {m.scores.shape} from row {m.start} on, of a batch of {tokens}")
        if key in self._decided:
            return [self._answer(m)]
        asked = self._asked.setdefault(key, _Asked(np.zeros(tokens, bool)))
        before, have = asked.parts.get(m.start), asked.have[m.start : m.start + rows]
        if before is None:
            if have.any():
                raise WireError(f"scores: {rows} from row {m.start} on, of which some are there")
            have[...] = True
            asked.rows += rows
        elif len(before.scores) != rows:
            raise WireError(f"scores: {rows} from row {m.start} on, of which {len(before.scores)} are there")
        asked.parts[m.start] = m
        if asked.rows < tokens:
            return []
        parts = [asked.parts[start] for start in sorted(asked.parts)]
        self._decided[key] = self._decide(m.batch, m.layer, parts, view)
        del self._asked[key]
        return [self._answer(one) for one in parts]

    def keep(self, batches: Container[int]) -> None:
        """Forget what belongs to other batches than these: they are over."""
        for held in (self._asked, self._decided):
            for key in [key for key in held if key[0] not in batches]:
                del held[key]  # type: ignore[attr-defined]

    def _width(self, layer: int) -> int:
        """How much a row tells a layer's router; -1 where it does not choose for whole batches."""
        if layer not in self._widths:
            of = self.model.layers[layer]
            asks = of.gate is not None and of.router.scope == "batch"
            row = np.zeros((1, self.model.spec.d_model), np.float32)
            self._widths[layer] = scored(of, row).shape[1] if asks else -1
        return self._widths[layer]

    def _decide(self, batch: int, layer: int, parts: list[Scores], view: View) -> _Decided:
        of, gate = self.model.layers[layer], self.model.layers[layer].gate
        assert gate is not None
        experts = self.model.spec.experts
        if layer not in self._states:
            self._states[layer] = of.router.new_state(experts)
        asked_by = np.repeat([one.home for one in parts], [len(one.scores) for one in parts]).astype(np.int16)
        context = Context(
            layer, batch, asked_by, view.holders(layer), view.module_to_node, self._states[layer], self.counts
        )
        routing = of.router.choose(np.concatenate([one.scores for one in parts]), gate, context)
        order = self._made[layer]
        self._made[layer] += 1
        context.count(DECISIONS, 1)
        digests = {one.start: _digest(one) for one in parts}
        return _Decided(padded(routing), order, asked_by, view.epoch, digests)

    def _answer(self, m: Scores) -> Send:
        decided = self._decided[m.batch, m.layer]
        rows = slice(m.start, m.start + len(m.scores))
        experts, weights = decided.routing.experts[rows], decided.routing.weights[rows]
        own = decided.scores.get(m.start) == _digest(m)
        made = decided.order, int(decided.asked_by[m.start]), decided.epoch, own
        return Send(m.home, RouteReply(m.batch, m.slice, m.micro, m.layer, experts, weights, *made))


def _digest(m: Scores) -> bytes:
    return xxh3_64_digest(np.ascontiguousarray(m.scores).data)


def padded(routing: Routing) -> Routing:
    """A routing with one choice per token at least, be it none, in the types that messages have."""
    experts, weights = routing
    if not experts.shape[1]:
        shape = len(experts), 1
        experts, weights = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    return Routing(np.ascontiguousarray(experts, np.int32), np.ascontiguousarray(weights, np.float32))
