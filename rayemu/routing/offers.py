"""Top-k in parts: whoever scores some of the experts offers the best of them, and offers are merged.

Shapes: T tokens, K choices per token, E experts, n experts that one part scores, k choices that it offers.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rayemu.numerics import F32
from rayemu.routing.gate import top_k


class Offer(NamedTuple):
    """A part's experts for each token, equals in ascending order: `experts` [T, k] int32, `scores` [T, k]."""

    experts: npt.NDArray[np.int32]
    scores: F32


def offer_top_k(scores: F32, experts: npt.NDArray[np.integer], count: int) -> Offer:
    """What a part offers that scored `experts` [n], in ascending order: its best `count`, best first.

    A part of no more than `count` experts offers them all, by number, for there is nothing to choose.
    scores [T, n] C-contiguous (overwritten). Ties go to the lower expert, NaN comes first.
    """
    if (experts[1:] <= experts[:-1]).any():
        raise ValueError(f"experts are {experts.tolist()}; allowed: different ones in ascending order")
    if len(experts) <= count:  # nothing to rank
        return Offer(np.broadcast_to(experts.astype(np.int32), scores.shape), scores)
    places, values = top_k(scores, count)  # [T, k]
    return Offer(experts.astype(np.int32)[places], values)


def merge_top_k(offers: Sequence[Offer], count: int) -> Offer:
    """The best `count` experts of all offers for each token, best first: to the bit what one top-k finds.

    Each expert is offered by one part, and each part offers its best `count` or all that it has; then no
    expert that is not offered can be among the best. Offers may come in any order, and parts may hold any
    experts. Ties go to the lower expert, NaN comes first. Raises ValueError for too few or double offers.
    """
    if sum(offer.experts.shape[1] for offer in offers) < count:
        sizes = [offer.experts.shape[1] for offer in offers]
        raise ValueError(f"offers have {sizes} experts; needed: {count} in all")
    experts = np.concatenate([offer.experts for offer in offers], axis=1)  # [T, sum of k]
    scores = np.concatenate([offer.scores for offer in offers], axis=1)
    if not len(experts):
        return Offer(experts[:, :count], scores[:, :count])
    bounds = [(offer.experts.min(), offer.experts.max()) for offer in offers if offer.experts.size]
    if any(before[1] >= after[0] for before, after in pairwise(bounds)):
        # equals are then not yet in the order of their numbers, which `top_k` leaves as it is
        order = experts.argsort(axis=1)
        experts = np.take_along_axis(experts, order, axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
        row, place = np.nonzero(experts[:, 1:] == experts[:, :-1])
        if row.size:
            raise ValueError(f"expert {experts[row[0], place[0]]} is offered twice; allowed: by one part")
    places, values = top_k(scores, count)
    return Offer(np.take_along_axis(experts, places, axis=1), values)
