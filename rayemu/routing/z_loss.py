"""Router z-loss: how large the logits have grown."""

from __future__ import annotations

import numpy as np

from rayemu.numerics import F32


def router_z_loss(logits: F32) -> float:
    """The mean over rows [T, E] of the squared log-sum-exp of their logits; NaN for no rows.

    A term of the training loss that keeps logits small, and with them the rounding errors of the gate; here a
    metric. It is from ST-MoE (Zoph et al. 2022, arXiv 2202.08906, equation 5), not from Switch, whose
    auxiliary loss is about balance. In float64.
    """
    if not len(logits):
        return float("nan")
    wide = logits.astype(np.float64)
    highest = wide.max(axis=1, keepdims=True)
    base = np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore", over="ignore"):  # log(0) is -inf, exp(inf) is inf: both are right
        sums = base[:, 0] + np.log(np.exp(wide - base).sum(axis=1))
    return float(np.square(sums).mean())
