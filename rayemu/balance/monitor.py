"""What a running system watches: moving averages of loads, and experts that get too much or too little.

B batches (or windows), oldest first, L layers, E experts; loads [B, L, E] in rows per batch.
"""

from __future__ import annotations

import numpy as np


def window_average(loads: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` batches [L, E], or of all where there are fewer."""
    if window < 1:
        raise ValueError(f"window: {window!r} is not allowed; allowed: 1 and above")
    return loads[-window:].mean(axis=0)


def exponential_average(loads: np.ndarray, half_life: float) -> np.ndarray:
    """Mean [L, E] in which a batch that is `half_life` batches older weighs half as much.

    The weights of the B batches that there are add up to 1, so the first batch is not favoured.
    """
    if not half_life > 0:
        raise ValueError(f"half_life: {half_life!r} is not allowed; allowed: above 0")
    weight = 0.5 ** (np.arange(len(loads))[::-1] / half_life)  # [B]
    return np.tensordot(weight / weight.sum(), loads, axes=1)


def in_windows(loads: np.ndarray, batches: int) -> np.ndarray:
    """Rows per window [W, L, E] of `batches` batches each, the last ending now; what is older is left out."""
    if batches < 1:
        raise ValueError(f"batches: {batches!r} is not allowed; allowed: 1 and above")
    count = len(loads) // batches
    return loads[len(loads) - count * batches :].reshape(count, batches, *loads.shape[1:]).sum(axis=1)


def usage(loads: np.ndarray, under: float = 0.5, over: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Which experts [L, E] bool get less than `under`, and more than `over` times their layer's mean load.

    `loads` is one (averaged) window [L, E]. Layers without load have neither.
    """
    if not 0 <= under <= over:
        raise ValueError(f"under: {under!r} is not allowed; allowed: 0 to `over`, {over!r}")
    mean = loads.mean(axis=-1, keepdims=True)
    return (loads < under * mean) & (mean > 0), loads > over * mean


def adjusted_capacity(
    capacity: np.ndarray, loads: np.ndarray, under: float = 0.5, over: float = 1.5
) -> np.ndarray:
    """Rows [L, E] that each expert may take, after unused room goes from under- to over-used experts.

    An over-used expert wants the load that it has beyond its `capacity [L, E]`. An under-used one can spare
    what it does not use, but keeps half. What moves in a layer is the smaller of both sums, taken in
    proportion to what each can spare and given in proportion to what each wants, in whole rows: largest
    remainders first, ties to the lower id. A layer's total never changes.
    """
    low, high = usage(loads, under, over)
    capacity = np.asarray(capacity, np.int64)
    used = np.maximum(np.ceil(loads).astype(np.int64), -(-capacity // 2))
    spare = np.where(low, np.maximum(capacity - used, 0), 0)  # [L, E]
    wanted = np.where(high, np.maximum(np.ceil(loads).astype(np.int64) - capacity, 0), 0)
    moved = np.minimum(spare.sum(axis=-1), wanted.sum(axis=-1))  # [L]
    change = [_split(n, w) - _split(n, s) for n, w, s in zip(moved, wanted, spare, strict=True)]
    return capacity + np.reshape(change, capacity.shape)


def _split(total: int, weights: np.ndarray) -> np.ndarray:
    """`total` as whole numbers in proportion to whole `weights`, none above its weight if that can be."""
    if not total:
        return np.zeros_like(weights)
    parts, left = np.divmod(total * weights, weights.sum())
    parts[np.argsort(-left, kind="stable")[: total - parts.sum()]] += 1
    return parts
