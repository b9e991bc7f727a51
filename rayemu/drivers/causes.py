"""What each row of a record waited for, found after the run by joining what its rows say of themselves.

Nothing of this is known while the run goes: it would have to travel with every frame. Rows that nobody
waited for (asked twice, late, of a home that died) cause nothing. Between machines clocks differ: which of
several rows came first is told by their times only where all else is alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayemu.drivers.record import (
    COMBINE,
    CONTROL,
    DECODE,
    DISPATCH,
    ENCODE,
    FORWARD,
    GEMM,
    GROUPS,
    OFFER,
    OFFER_REPLY,
    OFFER_REQUEST,
    REPLY,
    RESULT,
    ROUTE,
    ROUTE_REPLY,
    ROUTE_REQUEST,
    SCORES,
    SLICE,
    SUBMIT,
    ends,
    in_order,
    queued,
    starts,
)
from rayemu.protocol.relay import INCARNATION_SHIFT

_CLOCK_S = 1e-6  # that times of one process may be apart by rounding
_UNIT = ("home", "incarnation", "batch", "slice", "micro", "layer")
_ASKED = ("home", "batch", "slice", "micro", "layer")  # of a unit, by who does not know the incarnation


@dataclass(frozen=True, eq=False)
class Causes:
    """Pairs of rows of a record: `effect` [C] waited for `cause` [C], both places in the record."""

    effect: np.ndarray
    cause: np.ndarray
    gaps: int  # rows of which some cause must have been, and is not in the record


def collected(rows: np.ndarray) -> np.ndarray:
    """Put the rows of all processes in order of time, with their ids and the last cause of each.

    A dispatch that its home itself routed is taken to wait (for its hop's window) from then on.
    """
    record = in_order(rows)
    record["id"] = np.arange(len(record))
    found = causes_of(record)
    order = np.lexsort((ends(record)[found.cause], found.effect))
    record["cause"][found.effect[order]] = found.cause[order]  # the last one written stays
    sent = np.flatnonzero((record["kind"] == DISPATCH) & (record["cause"] >= 0))
    by = record["cause"][sent]
    own = (record["kind"][by] == ROUTE) & (record["src"][by] == record["src"][sent])
    sent, by = sent[own], by[own]
    queued(record)[sent] = np.minimum(queued(record)[sent], ends(record)[by])
    return record


def causes_of(record: np.ndarray, in_flight: int | None = None) -> Causes:
    """Find what every row waited for. The record must be in order of time, see `collected`.

    A GEMM part waits for the message that brought it, or at its own home for the choices; a reply for the
    jobs of its parts and, from a relay, the replies that it gathers; a combine for the replies and jobs of
    its unit; routing and the shared expert for the combine of the layer before, or the slice; a choice for a
    whole batch for the scores of all homes; a result for the last combines; a slice for its submission. A
    submission waits for the results that freed its place: those of the batch `in_flight` before it; by
    default that is how many were ever under way at once.
    """
    return _Joins(record).all(in_flight)


class _Joins:
    """The joins over one record. Indices are places in it; the rows are in order of time."""

    def __init__(self, record: np.ndarray) -> None:
        self.record = record
        self.starts, self.ends = starts(record), ends(record)
        self.kind = record["kind"]
        self.effects: list[np.ndarray] = []
        self.causes: list[np.ndarray] = []
        self.caused, self.scoring = np.zeros((2, len(record)), bool)  # has a cause; led to scores only
        self.gaps = 0
        # One number for each (home, request), and of the home's incarnation that asked.
        asked = np.unique(record["request"], return_inverse=True)[1].reshape(-1)
        self.columns = {
            "request": np.where(record["request"] >= 0, asked, -1),
            "asker": record["request"] >> INCARNATION_SHIFT,
        }

    def all(self, in_flight: int | None) -> Causes:
        self._routing()
        self._dispatches()
        self._replies()
        self._combines()
        self._results()
        self._places(in_flight)
        self._complete()
        frames = self._of(DISPATCH, FORWARD, REPLY)
        self._latest(frames, self._of(DECODE), ("src", "dst", "home", "request"))
        effects = np.concatenate([np.zeros(0, np.int64), *self.effects])
        return Causes(effects, np.concatenate([np.zeros(0, np.int64), *self.causes]), self.gaps)

    # -- what waits for what ----------------------------------------------------------------------------
    def _routing(self) -> None:
        central = self.record["src"] < 0
        routes, submits, slices = self._of(ROUTE), self._of(SUBMIT), self._of(SLICE)
        whole = routes[(self.record["micro"][routes] < 0) & (self.record["slice"][routes] >= 0)]  # of slices
        asked = routes[central[routes] & (self.record["micro"][routes] >= 0)]
        self._latest(submits, whole, ("batch",))
        self._latest(whole, slices, ("home", "batch", "slice"))
        self._latest(submits, self._without(slices), ("batch",))
        self._latest(self._of(ROUTE_REQUEST), asked, _ASKED)
        self._latest(asked, self._of(ROUTE_REPLY), _ASKED)
        # Of a whole batch: each home scores its rows, all scores make the choice, everyone is told.
        scores, decided = self._of(SCORES), routes[self.record["slice"][routes] < 0]
        own = routes[~central[routes]]
        before = len(self.causes)
        self._latest(own, scores, _UNIT)
        for cause in self.causes[before:]:
            self.scoring[cause] = True
        cause, effect = self._pairs(scores, decided, ("batch", "layer"))
        in_time = self.starts[cause] <= self.starts[effect]
        self._add(cause[in_time], effect[in_time])
        self._latest(decided, self._without(self._of(ROUTE_REPLY)), ("batch", "layer"))
        # Groups at the coordinator: the home chooses within them.
        groups = self._of(GROUPS)
        self._latest(asked, groups, _ASKED)
        self._latest(groups, own, _ASKED)
        local = self._offers(own)
        shared = self._of(GEMM)
        shared = shared[self.record["request"][shared] < 0]
        asking = self._of(ROUTE_REQUEST, OFFER_REQUEST)
        self._begin(np.concatenate([self._without(own), asking, local, shared]))

    def _offers(self, own: np.ndarray) -> np.ndarray:
        """Join what modules scored with what homes asked and chose; returns what homes scored themselves."""
        offers, replies = self._of(OFFER), self._of(OFFER_REPLY)
        asked = self.record["request"][offers] >= 0
        local, offers = offers[~asked], offers[asked]
        self._latest(self._of(OFFER_REQUEST), offers, ("home", "request"))
        self._latest(offers, replies, ("src", "home", "request"))
        cause, effect = self._pairs(replies, own, _ASKED)
        in_time = self.starts[cause] <= self.starts[effect]
        self._add(cause[in_time], effect[in_time])
        cause, effect = self._pairs(local, own, _UNIT)
        in_time = self.ends[cause] <= self.starts[effect] + _CLOCK_S
        self._add(cause[in_time], effect[in_time])
        return local

    def _begin(self, effects: np.ndarray) -> None:
        """What begins a layer of a unit waits for the combine of the layer before, or for the slice."""
        before = {"layer": self._column("layer") + 1}
        self._latest(self._of(COMBINE), effects, _UNIT, before)
        first = effects[self.record["layer"][effects] == 0]
        self._latest(self._of(SLICE), first, ("home", "batch", "slice"))

    def _chosen(self, effects: np.ndarray) -> None:
        """What goes to experts waits for the choices: made here, at the coordinator, or with the slice."""
        routes = self._of(ROUTE)
        self._latest(routes[(self.record["src"][routes] >= 0) & ~self.scoring[routes]], effects, _UNIT)
        rest = self._without(effects)
        self._latest(self._of(ROUTE_REPLY), rest, _ASKED)
        rest = self._without(rest)
        self.gaps += int((self.record["layer"][rest] > 0).sum())
        self._begin(rest)

    def _dispatches(self) -> None:
        gemms = self._of(GEMM)
        gemms = gemms[self.record["request"][gemms] >= 0]
        own = self.record["src"][gemms] == self.record["home"][gemms]
        dispatches, forwards = self._of(DISPATCH), self._of(FORWARD)
        self._chosen(np.concatenate([dispatches, gemms[own]]))
        arrived = {"src": self._column("dst")}
        self._latest(dispatches, forwards, ("src", "home", "request"), arrived)
        messages = np.sort(np.concatenate([dispatches, forwards]))
        self._latest(messages, gemms[~own], ("src", "home", "request"), arrived)

    def _replies(self) -> None:
        replies, gemms = self._of(REPLY), self._of(GEMM)
        cause, effect = self._pairs(gemms, replies, ("src", "home", "request"))
        done = self.ends[cause] <= self.starts[effect] + _CLOCK_S
        self._add(cause[done], effect[done])
        relays = replies[self.record["src"][replies] != self.record["home"][replies]]
        arrived = {"src": self._column("dst")}
        cause, effect = self._pairs(replies, relays, ("src", "home", "request"), arrived)
        done = self.starts[cause] <= self.starts[effect]  # a relay's modules are on its machine
        self._add(cause[done], effect[done])

    def _combines(self) -> None:
        record, combines, replies, gemms = self.record, self._of(COMBINE), self._of(REPLY), self._of(GEMM)
        # A reply does not say of which slice it is: its request does.
        slices = self._column("slice").copy()
        cause, effect = self._pairs(self._of(DISPATCH), replies, ("home", "request"))
        slices[effect] = record["slice"][cause]
        brought = replies[record["dst"][replies] == record["home"][replies]]
        asker = {"incarnation": self._column("asker"), "slice": slices}
        cause, effect = self._pairs(brought, combines, _UNIT, asker)
        local = gemms[record["src"][gemms] == record["home"][gemms]]
        own_cause, own_effect = self._pairs(local, combines, _UNIT)
        done = self.ends[own_cause] <= self.starts[own_effect] + _CLOCK_S
        own_cause, own_effect = own_cause[done], own_effect[done]
        self._add(own_cause, own_effect)

        in_time = self.starts[cause] <= self.starts[effect]
        self._add(cause[in_time], effect[in_time])
        size, rows = len(record), record["rows"]
        routed = record["request"][own_cause] >= 0
        have = np.zeros(size)  # a bincount of nothing has no weights: integers
        have += np.bincount(own_effect[routed], rows[own_cause[routed]], size)
        have += np.bincount(effect[in_time], rows[cause[in_time]], size)
        routing = np.concatenate([self._of(DISPATCH), gemms[record["request"][gemms] >= 0]])
        experts = combines[np.isin(record["layer"][combines], np.unique(record["layer"][routing]))]
        wanted = np.zeros(size)
        wanted[experts] = choices(record[experts])
        # Where the clock of another machine is ahead, the rows that are missing seem to have come later.
        late = ~in_time & (have < wanted)[effect]
        self._add(cause[late], effect[late])
        have += np.bincount(effect[late], rows[cause[late]], size)
        self.gaps += int((have < wanted).sum())
        self._chosen(self._without(combines))

    def _results(self) -> None:
        combines = self._of(COMBINE)
        last = combines[self.record["layer"][combines] == self.record["layer"][combines].max(initial=0)]
        where = ("src", "incarnation", "batch", "slice")
        self._add(*self._pairs(last, self._of(RESULT), where))

    def _places(self, in_flight: int | None) -> None:
        """A bounded number of batches is under way, and results are taken in order."""
        results, submits = self._of(RESULT), self._of(SUBMIT)
        batch, slices = self.record["batch"][results], self.record["slice"][results]
        first = np.sort(np.unique(np.stack([batch, slices]), axis=1, return_index=True)[1].reshape(-1))
        results = results[first]  # those that come again are not taken
        batches, number = np.unique(self.record["batch"][results], return_inverse=True)
        if not len(batches) or not len(submits):
            return
        batch, at_s = self.record["batch"][submits].astype(np.int64), self.starts[submits]
        if in_flight is not None:
            freed = batch - in_flight
        else:
            finished = np.full(len(batches), -np.inf)
            np.maximum.at(finished, number.reshape(-1), self.ends[results])
            begun, first = np.unique(batch, return_index=True)
            begun_s = np.sort(at_s[first[np.isin(begun, batches)]])
            over = np.searchsorted(np.sort(finished), begun_s, "right")
            freed = batch - (np.arange(1, len(begun_s) + 1) - over).max(initial=1)
            # Where fewer were allowed, as between two streams, that batch may have been finished later.
            unfinished = np.isin(freed, batches)
            unfinished[unfinished] = finished[np.searchsorted(batches, freed[unfinished])] > at_s[unfinished]
            order = np.argsort(finished)
            last = np.searchsorted(finished[order], at_s[unfinished], "right") - 1
            freed[unfinished] = np.where(last >= 0, batches[order][last], -1)
        wanted = self._column("batch").copy()
        wanted[submits] = freed
        effect, cause = self._pairs(submits, results, ("batch",), {"batch": wanted})
        self._add(cause, effect)

    def _complete(self) -> None:
        """Let what should have a cause and has none wait at least for the submission of its batch."""
        aside = np.isin(self.kind, (SUBMIT, ENCODE, DECODE, CONTROL))
        lost = np.flatnonzero(~aside & ~self.caused)
        self.gaps += len(lost)
        self._latest(self._of(SUBMIT), lost, ("batch",))

    # -- how rows are joined ----------------------------------------------------------------------------
    def _of(self, *kinds: int) -> np.ndarray:
        return np.flatnonzero(np.isin(self.kind, kinds))

    def _without(self, rows: np.ndarray) -> np.ndarray:
        return rows[~self.caused[rows]]

    def _column(self, name: str) -> np.ndarray:
        if name not in self.columns:
            self.columns[name] = self.record[name].astype(np.int64)
        return self.columns[name]

    def _add(self, cause: np.ndarray, effect: np.ndarray) -> None:
        self.causes.append(cause)
        self.effects.append(effect)
        self.caused[effect] = True

    def _found(
        self,
        causes: np.ndarray,
        effects: np.ndarray,
        names: tuple[str, ...],
        instead: dict[str, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the causes whose columns equal those of each effect; `instead` are columns of the causes.

        Returns the causes sorted by key, and for each effect where its own begin and end among them.
        """
        instead = instead or {}
        key = np.zeros(len(causes) + len(effects), np.int64)
        size = 1
        for name in names:
            own = self._column(name)
            column = np.concatenate([instead.get(name, own)[causes], own[effects]])
            column = column - column.min(initial=0)
            span = int(column.max(initial=0)) + 1
            if size * span >= 1 << 62:
                key = np.unique(key, return_inverse=True)[1].reshape(-1)
                size = len(key) + 1
            key, size = key * span + column, size * span
        order = np.argsort(key[: len(causes)], kind="stable")
        sorted_keys, wanted = key[: len(causes)][order], key[len(causes) :]
        low, high = (np.searchsorted(sorted_keys, wanted, side) for side in ("left", "right"))  # type: ignore[call-overload]
        return causes[order], low, high

    def _pairs(
        self,
        causes: np.ndarray,
        effects: np.ndarray,
        names: tuple[str, ...],
        instead: dict[str, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return every (cause, effect) whose columns are equal."""
        found, low, high = self._found(causes, effects, names, instead)
        return found[_spread(low, high)], np.repeat(effects, high - low)

    def _latest(
        self,
        causes: np.ndarray,
        effects: np.ndarray,
        names: tuple[str, ...],
        instead: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Let each effect wait for one cause whose columns are equal: the last that began before it."""
        found, low, high = self._found(causes, effects, names, instead)
        at = np.repeat(np.arange(len(effects)), high - low)  # each pair's effect
        in_time = self.starts[found[_spread(low, high)]] <= self.starts[effects[at]]
        before = np.bincount(at[in_time], minlength=len(effects))
        some = high > low
        self._add(found[(low + np.maximum(before - 1, 0))[some]], effects[some])


def _spread(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """All places from each `low` to its `high`, one after the other."""
    count = high - low
    return np.repeat(low, count) + np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


def choices(combines: np.ndarray) -> np.ndarray:
    """Return how many choices [N] the rows of combines have, in dense layers one each.

    Their operations are 2 x choices x D, their bytes 4 x rows x D.
    """
    size = np.maximum(combines["raw_bytes"], 1)
    return np.rint(2.0 * combines["flops"] * combines["rows"] / size)
