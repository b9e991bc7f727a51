"""Replay: recorded choices, of a routing trace or of a run, instead of the gate's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices, softmax_powers
from rayemu.routing.recorded import RunChoices, TokenTrace, read
from rayemu.routing.router import FILE, Context, Router

_WEIGHTS = ("recorded", "uniform", "gate")


@contextmanager
def _named(path: str) -> Iterator[None]:
    """What is wrong with the file, with its name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"path: {path!r} {error}") from None


@dataclass(frozen=True)
class Replay(Router):
    """Choices of a trace file with the choices of tokens (`rayemu trace import`), or a run's choices.npz.

    In a trace, row r of batch b, of T rows, is token b T + r, in layers by the model's numbers. A run's
    `choices.npz` has the decisions of its batches: batch b gets those of its batch b, which must have as many
    rows. What is too short begins again if it is `cyclic`, else it is refused. Weights are those of the run
    (`weights: recorded`; traces have none), the same for all of a token's choices (`uniform`), or the softmax
    of the gate's logits of these experts (`gate`); without any word, recorded or else uniform.
    The file is read on every machine that makes the model.
    """

    top_k: int
    path: str = field(default="", metadata=FILE)
    cyclic: bool = True
    weights: str | None = None
    scope: ClassVar[str] = "batch"

    def __post_init__(self) -> None:
        if self.weights is not None and self.weights not in _WEIGHTS:
            raise ValueError(f"weights: {self.weights!r} is not allowed; allowed: {', '.join(_WEIGHTS)}")

    def check(self, experts: int) -> None:
        """Raise ValueError when the file's choices are not of `experts` experts, or a trace's not `top_k`."""
        check_choices(self.top_k, experts)
        recorded = self._recorded()
        if self.weights == "recorded" and not recorded.weighed:
            raise ValueError(
                "weights: 'recorded' is not allowed with a trace, which has none; allowed: uniform, gate"
            )
        with _named(self.path):
            recorded.check(experts, self.top_k)

    def check_run(self, layers: Sequence[int], batches: int, batch_tokens: int) -> None:
        """Raise ValueError when the file does not cover these layers or so many tokens."""
        recorded = self._recorded()
        with _named(self.path):
            recorded.check_run(layers, batches, batch_tokens, self.cyclic)

    def most(self, experts: int) -> int:
        """As many as the file has."""
        return self._recorded().most(self.top_k)

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> the recorded choices [T, K] of this batch and layer, of a trace with -1 last."""
        recorded, rows = self._recorded(), len(scores)
        with _named(self.path):
            recorded.check_run((context.layer,), context.batch + 1, rows, self.cyclic)
            chosen, weights = recorded.of(context.batch, context.layer, rows)
        if weights is not None and self.weights in (None, "recorded"):
            return Routing(chosen, weights)
        given = chosen >= 0
        if self.weights == "gate":
            logits = np.take_along_axis(scores, np.maximum(chosen, 0), axis=1)
            weights = softmax_powers(np.where(given, logits, np.float32(-np.inf)))
            weights[~given] = 0
        else:
            weights = given.astype(np.float32)
        total = np.add.reduce(weights, axis=1, keepdims=True)
        weights /= np.where(total == 0, np.float32(1), total)
        return Routing(chosen, weights)

    def _recorded(self) -> TokenTrace | RunChoices:
        if not self.path:
            raise ValueError(
                "path: '' is not allowed; give a .npz that `rayemu trace import` has written, or a run's "
                "choices.npz"
            )
        path = os.path.expanduser(self.path)
        with _named(self.path):
            try:
                about = os.stat(path)
                return read(path, about.st_mtime_ns, about.st_size)
            except OSError as error:
                raise ValueError(f"cannot be read: {error.strerror or error}") from None
