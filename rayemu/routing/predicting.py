"""Which experts are likely to be chosen next, so that their weights can be fetched before they are asked for.

A predictor learns from *histories*: the choices of the H steps before, latest last. Steps may be the tokens
of a sequence in one layer, or the layers that one token passes. Its confidence in an expert is the share of
like histories that the expert was chosen after.

Found with Mixtral's shape (E=8, K=2) at D=128, random weights, 4 layers, 3,000 tokens, 3 experts prefetched
(by chance 37.5 % are right): along tokens, transitions 46 % and patterns 49 % in code, 45 and 38 % in prose,
39 and 34 % at random; along layers, 60 and 81 % in code, 55 and 77 % in prose, 43 and 40 % at random. Above
a confidence of 0.8 patterns along layers are right in 91 % of what they fetch, and find 60 % of what is used.
Text 000 says 65 % for 3 experts by transitions (section 11.2.3), and 75, 82 and 68 % for patterns in text,
code and talk (11.3.7); along tokens that is not what is found here, along layers it is.

Shapes: n histories, H steps of each, K choices of a step (-1: none), E experts, P predictions, T tokens,
L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from rayemu.routing.gate import top_k

Array = npt.NDArray[np.integer[Any]]
Chances = npt.NDArray[np.float32]

_STEP = 2.0**-20  # of a confidence: equals stay equal, in whatever order something was summed


class Predicted(NamedTuple):
    """Experts [n, P], likeliest first, ties to the lower, -1 for none; and the confidence in each [n, P]."""

    experts: npt.NDArray[np.int32]
    confidence: Chances


class Predictor(Protocol):
    """What tells from histories what comes next."""

    def learn(self, history: Array, after: Array) -> None:
        """Choices `after` [n, K] followed `history` [n, H, K]."""

    def chances(self, history: Array) -> Chances:
        """The confidence in each expert after history [n, H, K], [n, E]."""


class Transitions:
    """How often each expert is chosen after each other one: a Markov chain over experts.

    The confidence in an expert is the mean over the last step's choices of how often it followed them.
    """

    def __init__(self, experts: int) -> None:
        self.followed = np.zeros((experts, experts))  # [E, E]: that the second was chosen after the first
        self.times = np.zeros(experts)  # [E]: that the first was, and something followed

    def learn(self, history: Array, after: Array) -> None:
        """Choices `after` [n, K] followed `history` [n, H, K]."""
        before = members(history[:, -1], len(self.times))  # [n, E]
        self.followed += before.T @ members(after, len(self.times))
        self.times += before.sum(axis=0)

    def chances(self, history: Array) -> Chances:
        """The confidence in each expert after history [n, H, K], [n, E]."""
        before = members(history[:, -1], len(self.times))  # [n, E]
        share = (self.followed / np.maximum(self.times, 1)[:, None]).astype(np.float32)
        return before @ share / np.maximum(before.sum(axis=1, keepdims=True), 1)


class Patterns:
    """What followed the same last `length` steps before; where nothing did, the last `length - 1`, and so on.

    n-grams of whole choices with back-off to shorter ones (as Katz 1987, without discounts): a step's choices
    are the same if their experts are, in whatever order. A pattern counts from its `least`-th time on.
    """

    def __init__(self, experts: int, length: int = 3, least: int = 1) -> None:
        self.experts, self.length, self.least = experts, length, least
        self._known: dict[tuple[bytes, ...], tuple[int, npt.NDArray[np.float32]]] = {}

    def learn(self, history: Array, after: Array) -> None:
        """Choices `after` [n, K] followed `history` [n, H, K]."""
        for steps, follows in zip(history, members(after, self.experts), strict=True):
            for pattern in self._patterns(steps):
                times, counts = self._known.get(pattern, (0, np.float32(0)))
                self._known[pattern] = times + 1, counts + follows

    def chances(self, history: Array) -> Chances:
        """The confidence in each expert after history [n, H, K], [n, E]."""
        found = np.zeros((len(history), self.experts), np.float32)
        for row, steps in enumerate(history):
            for pattern in self._patterns(steps):
                times, counts = self._known.get(pattern, (0, np.float32(0)))
                if times >= self.least:
                    found[row] = counts / times
                    break
        return found

    def _patterns(self, steps: Array) -> Iterable[tuple[bytes, ...]]:
        """The last steps as they are looked up, the longest pattern first."""
        names = [np.sort(step).astype(np.int32).tobytes() for step in steps[-self.length :]]
        return (tuple(names[start:]) for start in range(len(names)))


def members(choices: Array, experts: int) -> Chances:
    """Which experts are among choices [n, K], [n, E] of 1 and 0."""
    found = np.zeros((len(choices), experts), np.float32)
    row, place = np.nonzero(choices >= 0)
    found[row, choices[row, place]] = 1
    return found


def predict(predictor: Predictor, history: Array, count: int, confidence: float = 0.0) -> Predicted:
    """The `count` likeliest experts after history [n, H, K], as far as the confidence in them goes.

    An expert that nothing speaks for is never predicted.
    """
    chances = predictor.chances(history)  # [n, E]
    chances *= np.float32(1 / _STEP)
    np.rint(chances, out=chances)
    chances *= np.float32(_STEP)
    experts, chances = top_k(chances, count)  # [n, P]
    known = (chances > 0) & (chances >= confidence - _STEP)
    return Predicted(np.where(known, experts, -1).astype(np.int32), np.where(known, chances, np.float32(0)))


@dataclass(frozen=True)
class Foreseen:
    """What prefetching came to, in experts: how many were used, fetched in advance, and both."""

    used: int
    fetched: int
    hits: int

    @property
    def recall(self) -> float:
        """Share of the used experts that were there in advance: the hit rate of prefetching."""
        return self.hits / self.used if self.used else 0.0

    @property
    def precision(self) -> float:
        """Share of the prefetched experts that were used."""
        return self.hits / self.fetched if self.fetched else 0.0


def compared(predicted: Array, choices: Array) -> Foreseen:
    """Predicted experts [n, P] against choices [n, K]; -1 is none in both."""
    hits = (predicted[:, :, None] == choices[:, None, :]) & (predicted >= 0)[:, :, None]
    return Foreseen(int((choices >= 0).sum()), int((predicted >= 0).sum()), int(hits.sum()))


def forecasts(
    make: Callable[[], Predictor],
    choices: Array,
    count: int,
    confidence: float = 0.0,
    along: str = "tokens",
    steps: int = 3,
) -> Array:
    """The `count` experts that are predicted for every step of choices [T, L, K], learning as it goes.

    `along` "tokens" predicts a token's choices in a layer from those of up to `steps` tokens before it in
    that layer, "layers" from those of the token itself in up to `steps` layers before. There is a predictor
    for each layer. Returns experts [T, L, count], likeliest first, -1 for none; nothing is predicted of what
    has no history, the first token or the first layer.
    """
    tokens, layers, _ = choices.shape
    found = np.full((tokens, layers, count), -1, np.int32)
    for layer in range(along == "layers", layers):
        predictor = make()
        for token in range(along != "layers", tokens):
            if along == "layers":
                history = choices[token : token + 1, max(0, layer - steps) : layer]  # [1, H, K]
            else:
                history = choices[None, max(0, token - steps) : token, layer]
            found[token, layer] = predict(predictor, history, count, confidence).experts[0]
            predictor.learn(history, choices[token : token + 1, layer])
    return found


def foreseen(
    make: Callable[[], Predictor],
    choices: Array,
    count: int,
    confidence: float = 0.0,
    along: str = "tokens",
    steps: int = 3,
) -> Foreseen:
    """What came of `forecasts` where there was a history."""
    found = forecasts(make, choices, count, confidence, along, steps)
    asked = np.s_[:, 1:] if along == "layers" else np.s_[1:]
    return compared(found[asked].reshape(-1, count), choices[asked].reshape(-1, choices.shape[2]))
