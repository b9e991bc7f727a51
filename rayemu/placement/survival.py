"""What a plan survives: how many failure domains may fail before an expert is lost.

A domain is whatever fails as one: give `domain [M]` as arange(M) for modules, or module_to_node for nodes.
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np

from rayemu.placement.placement import Placement

MOST_SETS = 1 << 20  # of failed domains that are tried one by one


def survives(placement: Placement, domain: np.ndarray) -> int:
    """Return how many domains may fail, whichever they are, with a copy of every expert left.

    One less than the fewest domains that hold all copies of some expert: to lose it, just these must fail.
    Every part of a sharded expert counts as one. A plan without slots survives all its domains.
    """
    lost_by = _holders(placement, domain)
    return int(lost_by.sum(axis=1).min()) - 1 if len(lost_by) else len(np.unique(domain))


def survival(placement: Placement, domain: np.ndarray, failures: int) -> float:
    """Return the share of all sets of `failures` domains whose failure leaves a copy of every expert.

    By trying them all; raises ValueError where there are more than a million.
    """
    domains = len(np.unique(domain))
    if not 0 <= failures <= domains:
        raise ValueError(f"failures: {failures} is not allowed; allowed: 0 to {domains}, the domains")
    if (sets := math.comb(domains, failures)) > MOST_SETS:
        raise ValueError(
            f"failures: {failures} of {domains} domains are {sets} sets; at most {MOST_SETS} are tried"
        )
    holders = np.unique(_holders(placement, domain), axis=0).astype(np.int32)
    every = np.array(list(combinations(range(domains), failures)), np.int64).reshape(sets, failures)
    lost = 0
    for block in np.split(every, range(4096, sets, 4096)):
        failed = np.zeros((len(block), domains), np.int32)
        failed[np.arange(len(block))[:, None], block] = 1
        left = holders.sum(axis=1) - failed @ holders.T  # [sets, X]
        lost += int((left == 0).any(axis=1).sum())
    return 1 - lost / sets


def _holders(placement: Placement, domain: np.ndarray) -> np.ndarray:
    """Return which domains hold a copy of each part of each expert that has slots: bool [X, domains]."""
    _, number = np.unique(domain, return_inverse=True)
    named = np.stack([placement.layer, placement.expert, placement.part])
    found, which = np.unique(named, axis=1, return_inverse=True)
    held = np.zeros((found.shape[1], int(number.max(initial=-1)) + 1), bool)
    held[which.reshape(-1), number[placement.module]] = True
    return held
