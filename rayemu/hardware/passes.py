"""What a pass of an expert takes on a module: time by a roofline over its banks, and energy by component.

A pass is two products, [rows, D] @ [D, 2F] and [rows, F] @ [F, D], with silu times product between them;
without gate the first is [D, F]. docs/hardware.md derives each term and says how near measured passes are.
"""

from __future__ import annotations

import numpy as np

from rayemu.hardware.spec import BITS
from rayemu.hardware.spec import Hardware as Spec

Array = np.ndarray


def expert_weights(d_model: int, d_ff: int, gated: bool) -> int:
    """Weights of one expert: two matrices of D x F, three where it is gated (SwiGLU)."""
    return (3 if gated else 2) * d_model * d_ff


def reached_bandwidth(hardware: Spec) -> float:
    """Bytes/s at which a pass reads weights: of all banks, within the power limit, times the share."""
    banks = hardware.module.banks
    return min(banks.count * banks.bandwidth, banks.limit or np.inf) * banks.share


def expert_seconds(
    hardware: Spec, d_model: int, d_ff: int, rows: Array, gated: bool, bits: int | None
) -> Array:
    """Seconds of one expert's pass over `rows` [...]; 0 where there are none."""
    compute = hardware.module.compute
    d_model, d_ff = int(d_model), int(d_ff)  # an int32 of NumPy would overflow
    rows = np.asarray(rows, np.float64)
    weight = (bits or BITS[compute.precision]) / 8
    bandwidth = reached_bandwidth(hardware)
    rate = compute.rates[compute.precision] * compute.share
    tiled = np.ceil(rows / compute.tile) * compute.tile
    between, beside = _activations(hardware, d_model, d_ff, gated)
    busy = rows * between / bandwidth
    for (inner, outer), moved in zip(_products(d_model, d_ff, gated), beside, strict=True):
        memory = (_readings(hardware, rows) * inner * outer * weight + rows * moved) / bandwidth
        busy = busy + _overlapped(memory, 2.0 * inner * outer * tiled / rate, compute.overlap)
    time = np.maximum(busy + compute.overhead, compute.kernels * compute.launch)
    if (fetch := hardware.module.fetch) is not None:
        size = expert_weights(d_model, d_ff, gated) * weight
        time = time + fetch.latency + size / (fetch.bandwidth * fetch.share)
    return np.where(rows > 0, time, 0.0)


def expert_joules(
    hardware: Spec, d_model: int, d_ff: int, rows: Array, gated: bool, bits: int | None, static: bool
) -> Array:
    """Joules of the same pass; `static`: with what the module draws anyway while it lasts."""
    compute, energy = hardware.module.compute, hardware.energy
    d_model, d_ff = int(d_model), int(d_ff)
    rows = np.asarray(rows, np.float64)
    weights = expert_weights(d_model, d_ff, gated)
    size = float(weights * (bits or BITS[compute.precision]))
    between, beside = _activations(hardware, d_model, d_ff, gated)
    moved = rows * 8 * (between + sum(beside) or 2 * d_model * BITS[compute.precision] / 8)
    joules = _readings(hardware, rows) * size * energy.weights + 2.0 * weights * rows * energy.compute
    joules = joules + moved * (energy.activations or 0.0)
    if hardware.module.fetch is not None:
        joules = joules + np.minimum(rows, 1) * size * (energy.fetch or 0.0)
    seconds = expert_seconds(hardware, d_model, d_ff, rows, gated, bits)
    if energy.busy is not None:  # a module never draws more than its limit
        joules = np.minimum(joules, (energy.busy - energy.static) * seconds)
    return joules + energy.static * seconds if static else joules


def _products(d_model: int, d_ff: int, gated: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    return (d_model, (2 if gated else 1) * d_ff), (d_ff, d_model)


def _readings(hardware: Spec, rows: Array) -> Array:
    """How often a pass reads the weights: once for every `inputs` rows."""
    inputs = hardware.module.compute.inputs
    return np.ceil(rows / inputs) if inputs is not None else np.minimum(rows, 1)


def _activations(hardware: Spec, d_model: int, d_ff: int, gated: bool) -> tuple[float, tuple[float, ...]]:
    """Bytes of a row that go through the memory: between the two products, and as their inputs and outputs.

    silu reads and writes F values; the product with the gate reads 2F and writes F.
    """
    compute = hardware.module.compute
    if compute.activations != "memory":
        return 0.0, (0.0, 0.0)
    width = BITS[compute.precision] / 8
    beside = tuple((inner + outer) * width for inner, outer in _products(d_model, d_ff, gated))
    return (5 if gated else 2) * d_ff * width, beside


def _overlapped(one: Array, other: Array, exponent: float | None) -> Array:
    """Time of two things at once: the longer, or with an exponent p the p-norm of both."""
    longer, shorter = np.maximum(one, other), np.minimum(one, other)
    if exponent is None:
        return longer
    share = np.divide(shorter, longer, out=np.zeros_like(longer), where=longer > 0)
    return longer * (1.0 + share**exponent) ** (1.0 / exponent)
