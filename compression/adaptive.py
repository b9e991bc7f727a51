"""Policies that go by measured link rates and coder speeds: `auto` and `deadline`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np

from .codec import Codec
from .errors import CodecError
from .gauge import Gauge
from .policy import CodecChange, MakeCodec

EVERY = 8  # timed frames between two decisions
SAMPLE_EVERY = 32  # decisions between two samples of how well rows compress
WINS = 3  # decisions in a row that another codec must win
STEPS = 4  # in which a rate doubles: one of the same step, within a fifth, is not new
WORTH = 0.8  # another codec must be predicted to take less than this part of the present one's time


@dataclass(frozen=True)
class Auto:
    """The codec that brings rows across soonest: it compresses only where the link is slower than the coder.

    A frame's fixed costs (the machine's, not the link's) are the same for all and are left out. While the
    processor is busy and the link is not, rows travel behind other work, and coding would hold that up: then
    the first codec is used.
    """

    codecs: tuple[Codec, ...]

    @classmethod
    def build(cls, given: Any, make: MakeCodec) -> Auto:
        """From a list of codecs, the one to begin with first; by default (None) raw, bf16 and int8."""
        return cls(_candidates("auto", given, ("raw", "bf16", "int8"), make))

    def chooser(self, gauge: Gauge | None = None) -> AdaptiveChooser:
        return AdaptiveChooser(self, gauge)

    def pick(self, seconds: list[float], current: int, hidden: bool) -> int:
        """Index of the codec to use, of the predicted times of each."""
        return 0 if hidden else _soonest(seconds, current)

    def __str__(self) -> str:
        return f"auto({', '.join(map(str, self.codecs))})"


@dataclass(frozen=True)
class Deadline:
    """The mildest codec with which rows are across in time; if none is, the soonest."""

    within_s: float
    codecs: tuple[Codec, ...]  # from mild to strong

    @classmethod
    def build(cls, given: Any, make: MakeCodec) -> Deadline:
        """From {within_ms: 2, codecs: [raw, bf16, int8, int4]}; these codecs are the default."""
        wanted = "a mapping like {within_ms: 2, codecs: [raw, bf16, int8, int4]}"
        if not isinstance(given, Mapping) or not {"within_ms"} <= set(given) <= {"within_ms", "codecs"}:
            raise CodecError(f"deadline: {given!r} is not {wanted}")
        within = given["within_ms"]
        if isinstance(within, bool) or not isinstance(within, (int, float)) or not 0 < within < 1e9:
            raise CodecError(f"deadline: within_ms must be milliseconds above 0, not {within!r}")
        default = ("raw", "bf16", "int8", "int4")
        return cls(within / 1e3, _candidates("deadline", given.get("codecs"), default, make))

    def chooser(self, gauge: Gauge | None = None) -> AdaptiveChooser:
        return AdaptiveChooser(self, gauge)

    def pick(self, seconds: list[float], current: int, hidden: bool) -> int:
        """Index of the codec to use, of the predicted times of each."""
        for index, predicted in enumerate(seconds):
            margin = WORTH if index < current else 1.0  # towards milder ones only with room to spare
            if predicted <= margin * self.within_s:
                return index
        return _soonest(seconds, current)

    def __str__(self) -> str:
        return f"deadline({self.within_s * 1e3:g} ms: {', '.join(map(str, self.codecs))})"


class AdaptiveChooser:
    """Decides anew every few frames. Without a gauge, or before anything arrived, the first codec is used.

    A link is busiest where nothing is to be gained. So only the frames that are timed are looked at, each for
    all since the one before, and which these are is left to chance: frames come in patterns.
    """

    learns = True

    def __init__(self, policy: Auto | Deadline, gauge: Gauge | None) -> None:
        self.policy, self.gauge = policy, gauge
        self.current = 0
        self.timed = False
        self._untimed = 0 if gauge is not None else float("inf")  # frames before the next that is timed
        self._looks = self._wins = 0
        self._rival = 0  # who won the last decisions
        self._known: tuple[int, bool, int] | None = None  # what the last one was made from, roughly
        self._changes: list[CodecChange] = []

    def choose(self, rows: np.ndarray) -> int:
        self._untimed -= 1
        self.timed = self._untimed < 0
        if self.timed and self.gauge is not None:
            self._look(rows, self.gauge)
        return self.current

    def changes(self) -> list[CodecChange]:
        taken, self._changes = self._changes, []
        return taken

    def _look(self, rows: np.ndarray, gauge: Gauge) -> None:
        every = gauge.every
        if every > 1:
            self._untimed = round((every - 1) * (gauge.rng.random() + gauge.rng.random()))
        else:
            self._untimed = 0
        gauge.frames += every
        gauge.offered += every * rows.nbytes
        if self._looks % EVERY == 0 and rows.size and (rate := gauge.rate) is not None:
            self._decide(rows, gauge, rate)
        self._looks += 1

    def _decide(self, rows: np.ndarray, gauge: Gauge, rate: float) -> None:
        codecs = self.policy.codecs
        again = self._looks % (EVERY * SAMPLE_EVERY) == 0
        hidden = gauge.hidden(rate)
        known = round(STEPS * log2(rate)), hidden, rows.nbytes.bit_length()
        if known == self._known and self._rival == self.current and not again:
            return  # nothing is new
        self._known = known
        for codec in codecs:
            if again or not gauge.coders.knows(codec):
                gauge.coders.sample(codec, rows)
        seconds = [gauge.seconds(codec, rows.nbytes, rate) for codec in codecs]
        picked = self.policy.pick(seconds, self.current, hidden)
        self._wins = self._wins + 1 if picked == self._rival else 1
        self._rival = picked
        if picked == self.current or self._wins < WINS:
            return
        before, self.current = self.current, picked
        predicted = {str(c): s for c, s in zip(codecs, seconds, strict=True) if s < float("inf")}
        self._changes.append(
            CodecChange(str(codecs[before]), str(codecs[picked]), rows.nbytes, rate, hidden, predicted)
        )


def _soonest(seconds: list[float], current: int) -> int:
    """Index of the shortest time, if it is short enough to leave the current one for it."""
    best = min(range(len(seconds)), key=seconds.__getitem__)
    return best if seconds[best] < WORTH * seconds[current] else current


def _candidates(name: str, given: Any, default: tuple[str, ...], make: MakeCodec) -> tuple[Codec, ...]:
    if given is not None and (not isinstance(given, (list, tuple)) or not given):
        raise CodecError(f"{name}: {given!r} is not a list of codecs like [{', '.join(default)}]")
    codecs = tuple(make(c) for c in (default if given is None else given))
    if len(set(codecs)) < len(codecs):
        raise CodecError(f"{name}: {given!r} names a codec twice")
    return codecs
