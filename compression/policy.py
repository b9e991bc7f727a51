"""Policies: which codec the next rows get. A single codec is the simplest one.

A policy is a plain, immutable description; `chooser()` gives the object that decides, one for each sender and
link, which may learn. Whatever it decides is noted with the rows, so that results stay reproducible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .codec import Codec
from .errors import CodecError

MakeCodec = Callable[[Any], Codec]


class Chooser(Protocol):
    """Decides for one sender and link."""

    def choose(self, rows: np.ndarray) -> int:
        """Index into the policy's `codecs` of the codec for rows [n, D]."""


class Policy(Protocol):
    """A way to choose among `codecs`."""

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """All codecs that may be chosen."""

    def chooser(self) -> Chooser:
        """A decider of its own."""


@dataclass(frozen=True)
class Fixed:
    """Always the same codec."""

    codec: Codec

    @property
    def codecs(self) -> tuple[Codec, ...]:
        return (self.codec,)

    def chooser(self) -> Fixed:
        return self

    def choose(self, rows: np.ndarray) -> int:
        return 0

    def __str__(self) -> str:
        return str(self.codec)


@dataclass(frozen=True)
class BySize:
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

    def chooser(self) -> BySize:
        return self

    def choose(self, rows: np.ndarray) -> int:
        for index, limit in enumerate(self.limits):
            if len(rows) < limit:
                return index
        return len(self.limits)

    def __str__(self) -> str:
        steps = [f"{limit}: {codec}" for limit, codec in zip(self.limits, self.codecs, strict=False)]
        return f"by_size({', '.join([*steps, str(self.codecs[-1])])})"


POLICIES: dict[str, Any] = {"by_size": BySize}


def build_policy(spec: Any, make: MakeCodec) -> Policy:
    """A policy from its name, from {name: parameters}, or, for anything else, the codec that `make` makes."""
    if isinstance(spec, str) and spec in POLICIES:
        return POLICIES[spec].build(None, make)  # type: ignore[no-any-return]
    if isinstance(spec, Mapping) and len(spec) == 1 and next(iter(spec)) in POLICIES:
        ((name, given),) = spec.items()
        return POLICIES[name].build(given, make)  # type: ignore[no-any-return]
    return Fixed(make(spec))
