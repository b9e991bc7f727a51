"""Tokens that load the experts as a recorded trace says: traffic of a real system, without its texts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayemu.model.model import Model
from rayemu.model.spec import ModelSpec
from rayemu.placement import Placement
from rayemu.streams.aim import Chosen, candidates, first_choices
from rayemu.streams.embedding import LEANINGS, check_common, check_count, embed, require
from rayemu.streams.uniform import Uniform
from rayemu.traces import TraceError, read_trace

_STEPS = 300  # of fitting a window
_PUSH = 6.0
_LEAST = 1e-9  # share of an expert without load, which would have no logarithm


@dataclass(frozen=True)
class Trace:
    """Tokens that are chosen so that the first layer with experts is loaded as a routing trace says.

    `path` is a file that `rayemu trace import` reads: loads [W, L, E] of windows, layers, experts. Of the
    trace's layers the first that has any load counts. Each window lasts for `every` batches; after the
    last comes the first again. Of the `vocabulary` ids, each gets the probability with which the loads come
    out in expectation; where they cannot, more than `tolerance` of the rows at the wrong expert are refused.
    Every second id's embedding leans towards experts that the trace loads, or rare ones would hardly meet.
    `context` is how much of the previous activation stays in the next (0 to below 1), which blurs the loads.
    """

    path: str = ""
    every: int = 1
    vocabulary: int = 4096
    tolerance: float = 0.05
    context: float = 0.0

    def __post_init__(self) -> None:
        check_common(self.vocabulary, self.context)
        check_count("every", self.every, "batches")
        require(0 <= self.tolerance <= 1, "tolerance", self.tolerance, "0 to 1")
        self.shares()

    def tokens(self, batch_tokens: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of candidates [T] int64: any id."""
        return Uniform(self.vocabulary).tokens(batch_tokens, seed)

    def batches(self, batch_tokens: int, d_model: int, seed: int) -> Iterator[np.ndarray]:
        """Endless batches of the candidates' activations x [T, D] float32."""
        return embed(self.tokens(batch_tokens, seed), self.vocabulary, d_model, seed, self.context)

    def shares(self) -> np.ndarray:
        """The share of its rows that each expert gets in each window [W, E] float64; sums are 1.

        ValueError where the file cannot be read as such.
        """
        loads = _loads(self.path)  # [W, L, E]
        loaded = loads.any(axis=(0, 2))  # [L]
        if not loaded.any():
            raise ValueError(f"path: {self.path!r} has no load in any layer")
        rows = loads[:, int(loaded.argmax())]  # [W, E]
        total = rows.sum(axis=1, keepdims=True)  # [W, 1]
        if not total.all():
            raise ValueError(f"path: {self.path!r} has no load in window {int(total.argmin())}; leave it out")
        return rows / total

    def check(self, spec: ModelSpec) -> None:
        """Refuse a trace of another number of experts, or one that no model of K choices can have."""
        if not spec.moe_layers:
            raise ValueError("kind: trace needs a model that has a layer with experts")
        shares = self.shares()
        if shares.shape[1] != spec.experts:
            raise ValueError(
                f"path: {self.path!r} has loads of {shares.shape[1]} experts, the model has {spec.experts}; "
                "set model.experts"
            )
        window, expert = (int(i) for i in np.unravel_index(shares.argmax(), shares.shape))
        largest, most = shares[window, expert], 1 / spec.top_k
        if largest > most + self.tolerance:
            raise ValueError(
                f"path: {self.path!r} gives expert {expert} {largest:.0%} of the rows of window {window}; "
                f"with {spec.top_k} choices per token it can have {most:.0%}; lower model.top_k"
            )

    def aimed(self, model: Model, placement: Placement, seed: int) -> Chosen:
        """The stream for this model. ValueError where the candidates cannot give a window's loads."""
        rows = candidates(self.vocabulary, model.spec.d_model, seed)  # [V, D]
        shares = self.shares()  # [W, E]
        _lean(rows[1::2], model, shares, seed)
        choices = first_choices(model, rows)  # [V, K]
        leanings: list[np.ndarray] = []  # [W] of [E]
        for window, share in enumerate(shares):
            leaning, wrong = fit(choices, share, leanings[-1] if leanings else np.zeros(len(share)))
            if wrong > self.tolerance:
                raise ValueError(
                    f"stream.path: of the loads of window {window}, {wrong:.1%} of the rows cannot be given "
                    f"by the {self.vocabulary} candidates; raise stream.vocabulary, or stream.tolerance "
                    f"({self.tolerance:.1%})"
                )
            leanings.append(leaning)

        def mass_of_batch(batch: int) -> np.ndarray:
            return _mass(choices, leanings[batch // self.every % len(leanings)])

        return Chosen(rows, mass_of_batch, self.context)


def _lean(rows: np.ndarray, model: Model, shares: np.ndarray, seed: int) -> None:
    """Add to rows [n, D] directions of the gate, each row's of K experts drawn by a window's shares [W, E].

    An expert's logit so rises by `_PUSH` times its deviation, if no dense layer comes before.
    """
    layer = model.layers[model.spec.dense_layers]
    if layer.gate is None:
        return
    towards = layer.gate.weight if layer.norm is None else layer.norm[:, None] * layer.gate.weight  # [D, E]
    length = np.sqrt((towards * towards).sum(axis=0))  # [E]
    towards = towards.T * (np.float32(_PUSH) / np.where(length, length, 1))[:, None]  # [E, D]
    rng = np.random.default_rng([seed, LEANINGS])
    chances = np.log(np.maximum(shares, _LEAST))  # [W, E]
    for number, row in enumerate(rows):
        chance = chances[number % len(chances)] + rng.gumbel(size=len(chances[0]))  # without replacement
        row += towards[np.argsort(-chance, kind="stable")[: model.spec.top_k]].sum(axis=0)


def fit(choices: np.ndarray, share: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
    """How likely tokens must be so that experts get their shares, and the share of rows that still errs.

    choices [V, K], share [E], start [E] -> leaning [E]: a token's mass is the product of exp(leaning) of its
    experts. Of all distributions with these loads it is the one of largest entropy. Found by generalised
    iterative scaling (Darroch and Ratcliff, 1972), with steps that are shortened only where they overshoot.
    """
    experts, chosen = len(share), choices.shape[1]
    wanted = np.maximum(share, _LEAST)
    leaning, step, best = start, 1.0, (start, np.inf)
    for _ in range(_STEPS):
        mass = _mass(choices, leaning)  # [V]
        rows = np.bincount(choices.ravel(), np.repeat(mass, chosen), experts) / (chosen * mass.sum())  # [E]
        wrong = float(np.abs(rows - share).sum() / 2)
        if wrong < best[1]:
            best = leaning, wrong
        elif step > 1 / chosen:
            leaning, step = best[0], max(step / 2, 1 / chosen)
            continue
        if wrong < 1e-4:
            break
        leaning = leaning + step * np.log(wanted / np.maximum(rows, 1e-12))
    return best


def _mass(choices: np.ndarray, leaning: np.ndarray) -> np.ndarray:
    """The mass of each candidate [V] of choices [V, K]; the largest is 1."""
    exponents = leaning[choices].sum(axis=1)
    return np.exp(exponents - exponents.max())


def _loads(path: str) -> np.ndarray:
    """Loads [W, L, E] float64 of a file. ValueError that starts with "path"."""
    if not path:
        raise ValueError("path: '' is not allowed; give a file that `rayemu trace import` reads")
    try:
        return read_trace(os.path.expanduser(path)).loads.astype(np.float64)
    except TraceError as error:
        raise ValueError(f"path: {error}") from None
