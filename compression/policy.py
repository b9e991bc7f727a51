"""Policies: which codec the next rows get. A single codec is the simplest one.

A policy is a plain, immutable description; `chooser()` gives the object that decides, one for each sender,
link and direction, which may learn (see `adaptive`). Whatever it decides is noted with the rows, so that
results stay reproducible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from .codec import Codec
from .errors import CodecError
from .gauge import Gauge

MakeCodec = Callable[[Any], Codec]


@dataclass(frozen=True)
class CodecChange:
    """A chooser went over to another codec, and why: the predicted seconds of each for rows of `nbytes`."""

    before: str
    after: str
    nbytes: int
    link_bytes_per_s: float
    hidden: bool  # the link's time passed behind other work
    seconds: dict[str, float]


class Chooser(Protocol):
    """Decides for one sender, link and direction."""

    @property
    def learns(self) -> bool:
        """Whether it goes by its gauge, which then has to be fed."""

    def choose(self, rows: np.ndarray) -> int:
        """Index into the policy's `codecs` of the codec for rows [n, D]."""

    @property
    def timed(self) -> bool:
        """Whether the gauge wants to know how long the rows last chosen for are under way."""

    def changes(self) -> list[CodecChange]:
        """Return and forget what changed since the last call."""


class Policy(Protocol):
    """A way to choose among `codecs`."""

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """All codecs that may be chosen."""

    def chooser(self, gauge: Gauge | None = None) -> Chooser:
        """A decider of its own, which may go by what `gauge` knows of its link."""


class _Settled:
    """For deciders that learn nothing."""

    learns: ClassVar[bool] = False
    timed: ClassVar[bool] = False

    def changes(self) -> list[CodecChange]:
        return []


@dataclass(frozen=True)
class Fixed(_Settled):
    """Always the same codec."""

    codec: Codec

    @property
    def codecs(self) -> tuple[Codec, ...]:
        return (self.codec,)

    def chooser(self, gauge: Gauge | None = None) -> Fixed:
        return self

    def choose(self, rows: np.ndarray) -> int:
        return 0

    def __str__(self) -> str:
        return str(self.codec)


@dataclass(frozen=True)
class BySize(_Settled):
    """Stronger codecs for fewer rows: each codec up to its number of rows (exclusive), the last for the rest.

    Few rows are what a link's latency and a frame's own bytes weigh on most, and what a decoding step sends.
    """

    limits: tuple[int, ...]
    codecs: tuple[Codec, ...]  # one more than limits

    @classmethod
    def build(cls, given: Any, make: MakeCodec) -> BySize:
        """From [[16, "int4"], [64, "int8"], "fp16"], which is also the default (None)."""
        steps = [[16, "int4"], [64, "int8"], "fp16"] if given is None else given
        wanted = "a list like [[16, int4], [64, int8], fp16]: rows, codec, ..., and the codec for the rest"
        if not isinstance(steps, (list, tuple)) or not steps:
            raise CodecError(f"by_size: {given!r} is not {wanted}")
        *bounded, rest = steps
        whole = all(isinstance(s, (list, tuple)) and len(s) == 2 and type(s[0]) is int for s in bounded)
        if not whole or isinstance(rest, (list, tuple)):
            raise CodecError(f"by_size: {given!r} is not {wanted}")
        limits = [s[0] for s in bounded]
        if limits != sorted(set(limits)) or (limits and limits[0] < 1):
            raise CodecError(f"by_size: the numbers of rows {limits} must rise from 1 or more")
        return cls(tuple(limits), tuple(make(c) for c in (*(s[1] for s in bounded), rest)))

    def chooser(self, gauge: Gauge | None = None) -> BySize:
        return self

    def choose(self, rows: np.ndarray) -> int:
        for index, limit in enumerate(self.limits):
            if len(rows) < limit:
                return index
        return len(self.limits)

    def __str__(self) -> str:
        steps = [f"{limit}: {codec}" for limit, codec in zip(self.limits, self.codecs, strict=False)]
        return f"by_size({', '.join([*steps, str(self.codecs[-1])])})"
