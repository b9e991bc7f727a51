"""Choices in files: a routing trace with the choices of tokens, or the `choices.npz` of a run folder.

Shapes: T tokens of a batch or of a trace, L layers, K choices per token, E experts, B batches, P parts.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32

_VERSION = 1  # of a trace's format, see rayemu/traces/arrays.py
_RUN = ("batch", "parts", "experts", "weights")  # as rayemu/drivers/decided.py saves a run's choices
_PART = 4  # columns of a part that say where its choices belong: layer, first row, rows, K


@dataclass(frozen=True, eq=False)
class TokenTrace:
    """What a trace says: `choices` [T, L, K] of the model's `layers` [L], and its number of experts."""

    choices: npt.NDArray[np.int32]
    layers: list[int]
    experts: int
    weighed = False

    def most(self, top_k: int) -> int:
        """The most choices of a token."""
        return top_k

    def check(self, experts: int, top_k: int) -> None:
        """Raise ValueError for another number of experts or choices."""
        if self.experts != experts:
            raise ValueError(
                f"has choices among {self.experts} experts, the model has {experts}; set model.experts"
            )
        if (choices := self.choices.shape[2]) != top_k:
            raise ValueError(f"has {choices} choices per token, the model {top_k}; set model.top_k")

    def check_run(self, layers: Sequence[int], batches: int, rows: int, cyclic: bool) -> None:
        """Raise ValueError when these layers, or so many batches of `rows` tokens, are not in it."""
        _check_layers(self.layers, layers)
        if (tokens := batches * rows) > len(self.choices) and not cyclic:
            raise ValueError(
                f"has {len(self.choices)} tokens, the run takes {tokens}; set "
                "routing.cyclic to begin again, or lower run.batches or run.batch_tokens"
            )

    def of(self, batch: int, layer: int, rows: int) -> tuple[npt.NDArray[np.int32], F32 | None]:
        """A batch's choices [T, K] in a layer, without weights."""
        tokens = np.arange(batch * rows, (batch + 1) * rows) % len(self.choices)
        return self.choices[tokens, self.layers.index(layer)], None


@dataclass(frozen=True, eq=False)
class RunChoices:
    """A run's decisions: parts in the order of batch, layer and first row, choices and weights flat.

    `batch`, `layer`, `rows`, `choices` and `begin` [P] say of which batch and layer a part is, how many rows
    of how many choices it has, and where its own begin in `experts` and `weights`.
    """

    batch: npt.NDArray[np.int64]
    layer: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    choices: npt.NDArray[np.int64]
    begin: npt.NDArray[np.int64]
    experts: npt.NDArray[np.int32]
    weights: F32
    sizes: npt.NDArray[np.int64]  # tokens of each batch [B], the same in all layers
    layers: list[int]
    weighed = True

    def most(self, top_k: int) -> int:
        """The most choices of a token."""
        return int(self.choices.max())

    def check(self, experts: int, top_k: int) -> None:
        """Raise ValueError for an expert that there is not."""
        if (last := int(self.experts.max(initial=-1))) >= experts:
            raise ValueError(f"names expert {last}, the model has {experts}; set model.experts")

    def check_run(self, layers: Sequence[int], batches: int, rows: int, cyclic: bool) -> None:
        """Raise ValueError when these layers, or so many batches of `rows` tokens, are not in it."""
        _check_layers(self.layers, layers)
        if batches > len(self.sizes) and not cyclic:
            raise ValueError(
                f"has {len(self.sizes)} batches, the run takes {batches}; set routing.cyclic to begin again, "
                "or lower run.batches"
            )
        self._check_rows(self.sizes[:batches], rows)

    def of(self, batch: int, layer: int, rows: int) -> tuple[npt.NDArray[np.int32], F32 | None]:
        """A batch's choices [T, K] in a layer, and their weights."""
        batch %= len(self.sizes)
        self._check_rows(self.sizes[batch : batch + 1], rows)
        low, high = np.searchsorted(self.batch, (batch, batch + 1))
        mine = low + np.flatnonzero(self.layer[low:high] == layer)
        choices = int(self.choices[mine[0]])
        sizes = self.rows[mine] * choices
        spans = [slice(at, at + size) for at, size in zip(self.begin[mine], sizes, strict=True)]
        experts = np.concatenate([self.experts[span] for span in spans]).reshape(rows, choices)
        return experts, np.concatenate([self.weights[span] for span in spans]).reshape(rows, choices)

    def _check_rows(self, sizes: npt.NDArray[np.int64], rows: int) -> None:
        if len(others := sizes[sizes != rows]):
            raise ValueError(
                f"has batches of {others[0]} tokens, the run's have {rows}; set run.batch_tokens"
            )


def _check_layers(known: list[int], wanted: Sequence[int]) -> None:
    if missing := sorted(set(wanted) - set(known)):
        raise ValueError(
            f"has no choices of layer {missing[0]}; it has layers {', '.join(map(str, known))}; "
            "give others a router of their own in routing.layers"
        )


@lru_cache(maxsize=4)
def read(path: str, changed: int, size: int) -> TokenTrace | RunChoices:
    """What is in a file, which is read again when it has changed. OSError and ValueError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if set(_RUN) <= set(arrays.files):
                return _run({name: arrays[name] for name in _RUN})
            if int(arrays["rayemu_trace"]) != _VERSION:
                raise KeyError
            choices = arrays["choices"] if "choices" in arrays else None
            layers, experts = arrays["layers"], int(arrays["loads"].shape[-1])
    except _Wrong:
        raise
    except (zipfile.BadZipFile, EOFError, LookupError, TypeError, AttributeError, ValueError):
        raise ValueError(
            "is no trace of rayemu's; make one with `rayemu trace import`, or take a run's choices.npz"
        ) from None
    if choices is None:
        raise ValueError("has loads only; a replay needs a trace with the choices of tokens")
    return _trace(choices, layers, experts)


class _Wrong(ValueError):
    """What is wrong in a file of which it is clear what it is."""


def _trace(choices: npt.NDArray[Any], layers: npt.NDArray[Any], experts: int) -> TokenTrace:
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
    twice = _twice(found)
    if twice.any():
        token, layer, place = (int(n) for n in np.argwhere(twice)[0])
        expert = np.sort(found, axis=2)[token, layer, place]
        raise ValueError(f"gives token {token} expert {expert} of layer {layers[layer]} twice")
    found.flags.writeable = False
    return TokenTrace(found, layers.tolist(), experts)


def _twice(choices: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where the next of a token's choices [..., K], in order, is the same expert: [..., K - 1]."""
    alike = np.sort(choices, axis=-1)
    return (alike[..., 1:] == alike[..., :-1]) & (alike[..., 1:] >= 0)


def _run(arrays: Mapping[str, npt.NDArray[Any]]) -> RunChoices:
    batch, parts, experts, weights = (arrays[name] for name in _RUN)
    whole = parts.ndim == 2 and parts.shape[1] >= _PART and len(parts) == len(batch) > 0
    if not whole or {a.dtype.kind for a in (batch, parts, experts)} != {"i"} or weights.dtype.kind != "f":
        raise _Wrong("has parts and choices that do not fit together; take another run's choices.npz")
    batch = batch.astype(np.int64)
    layer, start, rows, choices = parts[:, :_PART].astype(np.int64).T
    size = rows * choices
    if (rows < 1).any() or (choices < 1).any() or not size.sum() == len(experts) == len(weights):
        raise _Wrong("has parts and choices that do not fit together; take another run's choices.npz")
    none = experts < 0
    if not (np.isfinite(weights) & (weights >= 0)).all() or weights[none].any() or (experts < -1).any():
        raise _Wrong("has weights below 0, not finite, or of no expert; take another run's choices.npz")
    for width in np.unique(choices).tolist():
        if _twice(experts[np.repeat(choices, size) == width].reshape(-1, width)).any():
            raise _Wrong("gives a token an expert twice; take another run's choices.npz")
    order = np.lexsort((start, layer, batch))
    begin = (size.cumsum() - size)[order]
    batch, layer, start, rows, choices = (one[order] for one in (batch, layer, start, rows, choices))
    first = np.ones(len(batch), bool)  # part of a batch and layer
    first[1:] = (batch[1:] != batch[:-1]) | (layer[1:] != layer[:-1])
    group = first.cumsum() - 1
    before = rows.cumsum() - rows
    tokens = np.bincount(group, rows).astype(np.int64)
    numbers, at = np.unique(batch[first], return_index=True)
    layers = np.unique(layer)
    if len(lost := np.setdiff1d(np.arange(int(batch.max()) + 1), numbers)):
        raise _Wrong(f"has no batch {lost[0]}, which failed in that run; take a run that lost nothing")
    if (
        (start != before - before[first][group]).any()
        or (choices != choices[first][group]).any()
        or not np.array_equal(layer[first], np.tile(layers, len(numbers)))
        or not np.array_equal(tokens, np.repeat(tokens[at], len(layers)))
    ):
        raise _Wrong("lacks the choices of some rows; take another run's choices.npz")
    flat = experts.astype(np.int32), weights.astype(np.float32)
    return RunChoices(batch, layer, rows, choices, begin, *flat, tokens[at], layers.tolist())
