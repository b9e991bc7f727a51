"""Replay: the choices of a recorded routing trace instead of the gate's."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import Gate, Routing, check_choices, softmax_powers
from rayemu.routing.router import Context, Router

_VERSION = 1  # of the format, see rayemu/traces/arrays.py
_WEIGHTS = ("uniform", "gate")


@dataclass(frozen=True, eq=False)
class _Recorded:
    """What a trace says: `choices` [T, L, K] of the model's `layers` [L], and its number of experts."""

    choices: npt.NDArray[np.int32]
    layers: list[int]
    experts: int


@dataclass(frozen=True)
class Replay(Router):
    """Choices of a trace file with the choices of tokens, as `rayemu trace import` writes it (.npz).

    Row r of batch b, of T rows, is the trace's token b T + r, in layers by the model's numbers; a trace that
    is too short begins again if it is `cyclic`, else it is refused. Traces hold no weights: a token's choices
    weigh the same (`weights: uniform`), or as the softmax of the gate's logits of these experts (`gate`).
    The file is read on every machine that makes the model.
    """

    top_k: int
    path: str = ""
    cyclic: bool = True
    weights: str = "uniform"
    scope: ClassVar[str] = "batch"

    def __post_init__(self) -> None:
        if self.weights not in _WEIGHTS:
            raise ValueError(f"weights: {self.weights!r} is not allowed; allowed: {', '.join(_WEIGHTS)}")

    def check(self, experts: int) -> None:
        """Raise ValueError when the trace is not of `experts` experts and `top_k` choices."""
        check_choices(self.top_k, experts)
        recorded = self._recorded()
        if recorded.experts != experts:
            raise ValueError(
                f"path: {self.path!r} has choices among {recorded.experts} experts, the model has {experts}; "
                "set model.experts"
            )
        if (choices := recorded.choices.shape[2]) != self.top_k:
            raise ValueError(
                f"path: {self.path!r} has {choices} choices per token, the model {self.top_k}; "
                "set model.top_k"
            )

    def check_run(self, layers: Sequence[int], tokens: int) -> None:
        """Raise ValueError when the trace does not cover these layers or so many tokens."""
        recorded = self._recorded()
        if missing := sorted(set(layers) - set(recorded.layers)):
            known = ", ".join(map(str, recorded.layers))
            raise ValueError(
                f"path: {self.path!r} has no choices of layer {missing[0]}; it has layers {known}"
            )
        if tokens > len(recorded.choices) and not self.cyclic:
            raise ValueError(
                f"path: {self.path!r} has {len(recorded.choices)} tokens, the run takes {tokens}; set "
                "routing.cyclic to begin again, or lower run.batches or run.batch_tokens"
            )

    def choose(self, scores: F32, gate: Gate, context: Context) -> Routing:
        """Logits [T, E] -> the trace's choices [T, K] of this batch and layer, -1 last."""
        recorded, rows = self._recorded(), len(scores)
        end = (context.batch + 1) * rows
        self.check_run((context.layer,), end)
        tokens = np.arange(end - rows, end) % len(recorded.choices)
        chosen = recorded.choices[tokens, recorded.layers.index(context.layer)]  # [T, K]
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

    def _recorded(self) -> _Recorded:
        if not self.path:
            raise ValueError("path: '' is not allowed; give a .npz that `rayemu trace import` has written")
        path = os.path.expanduser(self.path)
        try:
            about = os.stat(path)
            return _read(path, about.st_mtime_ns, about.st_size)
        except OSError as error:
            raise ValueError(f"path: {self.path!r} cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            raise ValueError(f"path: {self.path!r} {error}") from None


@lru_cache(maxsize=4)
def _read(path: str, changed: int, size: int) -> _Recorded:
    """The trace in a file, which is read again when it has changed. OSError and ValueError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if int(arrays["rayemu_trace"]) != _VERSION:
                raise KeyError
            choices = arrays["choices"] if "choices" in arrays else None
            layers, experts = arrays["layers"], int(arrays["loads"].shape[-1])
    except (zipfile.BadZipFile, EOFError, LookupError, TypeError, AttributeError, ValueError):
        raise ValueError("is no trace of rayemu's; make one with `rayemu trace import`") from None
    if choices is None:
        raise ValueError("has loads only; a replay needs a trace with the choices of tokens")
    if choices.ndim != 3 or choices.dtype.kind not in "iu" or choices.shape[1] != len(layers):
        raise ValueError(f"has choices of shape {list(choices.shape)}; expected [tokens, {len(layers)}, K]")
    if not choices.size:
        raise ValueError("has no choices in it")
    if choices.min() < -1 or choices.max() >= experts:
        wrong = choices.min() if choices.min() < -1 else choices.max()
        raise ValueError(f"names expert {wrong}; allowed: 0 to {experts - 1}, or -1 for none")
    found = choices.astype(np.int32)
    order = np.argsort(found < 0, axis=2, kind="stable")
    found = np.take_along_axis(found, order, axis=2)
    alike = np.sort(found, axis=2)
    twice = (alike[:, :, 1:] == alike[:, :, :-1]) & (alike[:, :, 1:] >= 0)
    if twice.any():
        token, layer, place = (int(n) for n in np.argwhere(twice)[0])
        expert = alike[token, layer, place]
        raise ValueError(f"gives token {token} expert {expert} of layer {layers[layer]} twice")
    found.flags.writeable = False
    return _Recorded(found, layers.tolist(), experts)
