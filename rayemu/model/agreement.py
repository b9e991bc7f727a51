"""Whether two processes compute alike, to the bit: unlike processors may not, and then no run could be exact.

The kernels of a BLAS round differently, and so may NumPy's own loops (exp, say) and the generator of random
weights. So the driver sends how it computes, and every other process of a run compares.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

import numpy as np
import xxhash

from rayemu.model.expert import Expert, expert_forward
from rayemu.numerics import (
    Way,
    denormals_kept,
    exact_matmul,
    keep_denormals,
    keeps_rows,
    kernels,
    thread_count,
    use,
    way,
)

# [K, N] of the products that are compared: narrow, ragged, wide, and K that kernels cut into blocks
_SHAPES = ((33, 77), (300, 65), (200, 768), (64, 8), (550, 400), (1024, 130), (2100, 66))
_ROWS = (1, 30, 200)  # the last ones are shared out among threads
_TINY = np.uint32(1 << 9).view(np.float32)  # 2^-140, itself and the products of such rows denormal


class KernelsDiffer(RuntimeError):
    """This process does not compute like the driver: names both, and what to do."""


@dataclass(frozen=True)
class Arithmetic:
    """How a process computes: the way of its products, its BLAS and threads, a digest of results."""

    way: Way
    kernels: str
    threads: int
    digest: str


def own_arithmetic() -> Arithmetic:
    """How this process computes."""
    return Arithmetic(way(), kernels(), thread_count(), digest())


def agree(driver: Arithmetic) -> None:
    """Compute like the driver from now on; raises KernelsDiffer where this process cannot.

    The driver found its way to hold with its own BLAS and threads, and with one: others try it themselves.
    """
    keep_denormals()
    use(driver.way)
    own = digest()
    tried = kernels() == driver.kernels and thread_count() in (1, driver.threads)
    if own != driver.digest or not (tried or keeps_rows(driver.way)):
        raise KernelsDiffer(
            f"{platform.node()} computes with {kernels()} and NumPy {np.__version__} (digest {own}), the "
            f"driver with {driver.kernels} (digest {driver.digest}), so outputs would not be exact; give all "
            "machines the same NumPy, and the driver an OPENBLAS_CORETYPE that all of them can run"
        )


@denormals_kept()
def digest() -> str:
    """A digest of products, expert outputs and random numbers as this process makes them; some 30 ms."""
    hashed = xxhash.xxh3_64()
    rng = np.random.default_rng(23)
    for inner, columns in _SHAPES:
        x = rng.standard_normal((max(_ROWS), inner), dtype=np.float32)
        w = rng.standard_normal((inner, columns), dtype=np.float32)
        for rows in _ROWS:
            hashed.update(exact_matmul(x[:rows], w).tobytes())
        hashed.update(exact_matmul(x[:3, :64] * _TINY, w[:64, :16].copy()).tobytes())  # denormals are slow
    x = rng.standard_normal((20, 48), dtype=np.float32)
    up, down = (
        rng.standard_normal((48, 160), dtype=np.float32),
        rng.standard_normal((80, 48), dtype=np.float32),
    )
    for activation, columns in (("swiglu", 160), ("gelu", 80)):
        expert = Expert(np.ascontiguousarray(up[:, :columns]), down, activation)
        hashed.update(expert_forward(expert, x).tobytes())
    return hashed.hexdigest()
