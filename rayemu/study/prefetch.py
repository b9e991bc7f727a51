"""Experts fetched into a fast tier before they are asked for: how often right, what it gains and wastes.

Shapes: T tokens, K choices per token, L layers, N uses (one for each choice of a token in a layer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rayemu.hardware.spec import Tier
from rayemu.hardware.tiers import come_to, served_from, uses_of_choices
from rayemu.routing.predicting import Patterns, Predictor, Transitions, compared, forecasts

PREDICTORS: dict[str, tuple[Callable[[int], Predictor], str]] = {
    "token before, transitions": (Transitions, "tokens"),
    "tokens before, patterns": (Patterns, "tokens"),
    "layer before, transitions": (Transitions, "layers"),
    "layers before, patterns": (Patterns, "layers"),
}
MOST_STEPS = 20_000  # tokens times layers that a predictor is asked for, one by one: some seconds


@dataclass(frozen=True)
class Prefetched:
    """What a predictor came to: shares of the uses that were right, of the fetches that were used.

    `use_emu_s` is the mean time until a use's weights are read, fetches included; `wasted` are the experts
    per use that are fetched and not used.
    """

    predictor: str
    hit_rate: float
    precision: float
    use_emu_s: float
    wasted: float


def prefetching(
    choices: np.ndarray,
    experts: int,
    tiers: Mapping[str, Tier],
    expert_bytes: float,
    held: Mapping[str, int],
    count: int,
    confidence: float,
) -> list[Prefetched]:
    """Every predictor on choices [T, L, K] of single tokens, of which the first MOST_STEPS / L count.

    `count` experts are fetched for each token and layer, and kept in `count` places of the first tier that
    has as many; LRU has the others. A use that was foreseen takes that tier's time, as if every fetch ended
    in time and no link were taken up by it; others take theirs under LRU. The first line is LRU alone, with
    all places. Raises ValueError where no tier but the last has `count` places.
    """
    choices = choices[: max(2, MOST_STEPS // choices.shape[1])].astype(np.int64)
    uses, room = uses_of_choices(choices, experts), list(held.values())
    fast = next((tier for tier, places in enumerate(room[:-1]) if places >= count), None)
    if fast is None:
        raise ValueError(f"--prefetch: {count} is not allowed; no tier but the last has places for so many")
    alone = come_to("", served_from(uses, room, "lru"), tiers, expert_bytes)
    found = [Prefetched("none, lru", 0.0, 0.0, alone.seconds, 0.0)]
    room[fast] -= count
    served = served_from(uses, room, "lru")  # [N]
    for name, (make, along) in PREDICTORS.items():
        likely = forecasts(lambda make=make: make(experts), choices, count, confidence, along)  # type: ignore[misc]
        here = (likely[uses.step, uses.layer] == uses.expert[:, None]).any(axis=1)  # [N]
        priced = come_to("", np.where(here, np.minimum(served, fast), served), tiers, expert_bytes)
        came = compared(likely.reshape(-1, count), choices.reshape(-1, choices.shape[2]))
        wasted = (came.fetched - came.hits) / max(came.used, 1)
        found.append(Prefetched(name, came.recall, came.precision, priced.seconds, wasted))
    return found
