"""From measured passes to the constants of modelled hardware: overhead, bandwidth, rate."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import nnls


def fit_passes(measured: Mapping[tuple[int, int, int], float], tile: int) -> tuple[float, float, float]:
    """Return the overhead (s), bandwidth (B/s) and rate (FLOP/s) of expert passes (D, F, rows) -> seconds.

    A pass takes overhead + bytes / bandwidth + operations / rate, one after the other: weights and
    activations in float32, as `rayemu.hardware.passes` counts them. Least squares of the relative errors,
    none below 0.
    """
    features, wanted = [], []
    for (d_model, d_ff, rows), seconds in measured.items():
        weights = 3 * d_model * d_ff
        size = 4.0 * (weights + rows * (5 * d_ff + (d_model + 2 * d_ff) + (d_ff + d_model)))
        tiled = -(-rows // tile) * tile
        features.append(np.array([1.0, size, 2.0 * weights * tiled]) / seconds)
        wanted.append(1.0)
    scale = np.abs(features).max(0)
    found = nnls(np.array(features) / scale, np.array(wanted))[0] / scale
    overhead, per_byte, per_operation = found
    return float(overhead), 1 / max(per_byte, 1e-18), 1 / max(per_operation, 1e-18)
