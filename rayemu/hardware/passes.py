"""What a pass of an expert takes on a module: time by a roofline over its banks, and energy by component."""

from __future__ import annotations

import numpy as np

from rayemu.hardware.spec import BITS
from rayemu.hardware.spec import Hardware as Spec

Array = np.ndarray


def expert_weights(d_model: int, d_ff: int, gated: bool) -> int:
    """Weights of one expert: two matrices of D x F, three where it is gated (SwiGLU)."""
    return (3 if gated else 2) * d_model * d_ff


def expert_seconds(
    hardware: Spec, d_model: int, d_ff: int, rows: Array, gated: bool, bits: int | None
) -> Array:
    """Seconds of one expert's pass over `rows` [...]; 0 where there are none."""
    compute, banks = hardware.module.compute, hardware.module.banks
    rows = np.asarray(rows, np.float64)
    weights = expert_weights(d_model, d_ff, gated)
    size = weights * (bits or BITS[compute.precision]) / 8
    passes = np.ceil(rows / compute.inputs) if compute.inputs is not None else np.minimum(rows, 1)
    bandwidth = min(banks.count * banks.bandwidth, banks.limit or np.inf) * banks.share
    memory = passes * size / bandwidth
    tiled = np.ceil(rows / compute.tile) * compute.tile
    products = 2.0 * weights * tiled / (compute.rates[compute.precision] * compute.share)
    fetched = 0.0
    if (fetch := hardware.module.fetch) is not None:
        fetched = fetch.latency + size / (fetch.bandwidth * fetch.share)
    busy = np.maximum(np.maximum(memory, products), compute.kernels * compute.launch)
    return np.where(rows > 0, busy + fetched + compute.overhead, 0.0)


def expert_joules(
    hardware: Spec, d_model: int, d_ff: int, rows: Array, gated: bool, bits: int | None
) -> Array:
    """Joules of the same pass, without the static power."""
    compute, energy = hardware.module.compute, hardware.energy
    rows = np.asarray(rows, np.float64)
    weights = expert_weights(d_model, d_ff, gated)
    size_bits = float(weights * (bits or BITS[compute.precision]))
    passes = np.ceil(rows / compute.inputs) if compute.inputs is not None else np.minimum(rows, 1)
    joules = passes * size_bits * energy.weights + 2.0 * weights * rows * energy.compute
    if hardware.module.fetch is not None:
        joules = joules + np.minimum(rows, 1) * size_bits * (energy.fetch or 0.0)
    if energy.activations is not None:
        joules = joules + rows * 2 * d_model * BITS[compute.precision] * energy.activations
    return joules
