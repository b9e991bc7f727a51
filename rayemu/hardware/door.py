"""The door to modelled hardware: load it by name, ask what work takes. Emulated time, never wall time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayemu.hardware import passes, transfers
from rayemu.hardware.loading import HardwareError, Loaded, load
from rayemu.hardware.quantities import write
from rayemu.hardware.spec import BITS, Level
from rayemu.hardware.spec import Hardware as Spec


@dataclass(frozen=True)
class Hardware:
    """A checked hardware: its numbers (`spec`, SI units), their sources, and what work would take on it.

    Where a method takes an array of rows it returns an array of the same shape; for one number, a float.
    """

    spec: Spec
    sources: dict[str, str]
    remarks: dict[str, str]

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    def expert_seconds(
        self,
        d_model: int,
        d_ff: int,
        rows: int | np.ndarray,
        *,
        gated: bool = True,
        weight_bits: int | None = None,
    ) -> float | np.ndarray:
        """Seconds of one expert's pass over `rows`: D x F, gated is SwiGLU, weights in the module's memory.

        `weight_bits` None: those of the hardware's precision. Raises ValueError for sizes below 1.
        """
        _check(d_model=d_model, d_ff=d_ff, rows=rows, weight_bits=weight_bits)
        return _like(
            passes.expert_seconds(self.spec, d_model, d_ff, np.asarray(rows), gated, weight_bits), rows
        )

    def expert_joules(
        self,
        d_model: int,
        d_ff: int,
        rows: int | np.ndarray,
        *,
        gated: bool = True,
        weight_bits: int | None = None,
        static: bool = True,
    ) -> float | np.ndarray:
        """Joules that the module draws in the same pass: of its work, and its static power for so long.

        `static` False: of its work alone, for whoever charges static power by the clock, idle time included.
        """
        _check(d_model=d_model, d_ff=d_ff, rows=rows, weight_bits=weight_bits)
        count = np.asarray(rows)
        return _like(passes.expert_joules(self.spec, d_model, d_ff, count, gated, weight_bits, static), rows)

    def route_seconds(self, d_model: int, experts: int, rows: int | np.ndarray) -> float | np.ndarray:
        """Seconds to score `rows` against `experts` and select: by the router, or by the host."""
        _check(d_model=d_model, experts=experts, rows=rows)
        count = np.asarray(rows, np.float64)
        router, host = self.spec.router, self.spec.host
        if router is not None:
            cycles = count * (
                np.ceil(d_model * experts / router.macs) + np.ceil(experts / router.comparators)
            )
            return _like(cycles / router.clock, rows)
        operations = 2.0 * count * d_model * experts
        size = (count * d_model + d_model * experts) * BITS["fp32"] / 8
        time = np.maximum(operations / host.rate, size / host.bandwidth) + host.overhead
        return _like(np.where(count > 0, time, 0.0), rows)

    def combine_seconds(self, d_model: int, top_k: int, rows: int | np.ndarray) -> float | np.ndarray:
        """Seconds to sum `top_k` weighted outputs of each row: memory-bound, in the module that owns them."""
        _check(d_model=d_model, top_k=top_k, rows=rows)
        precision = self.spec.module.compute.precision
        size = np.asarray(rows, np.float64) * (top_k + 1) * d_model * BITS[precision] / 8
        return _like(size / passes.reached_bandwidth(self.spec), rows)

    def check_fits(self, held: np.ndarray | Sequence[float], what: str = "experts") -> None:
        """Refuse a module that cannot hold its share: `held` [M] bytes of `what` on each module.

        Where weights are fetched, they have to fit where they come from. Raises HardwareError, with numbers.
        """
        sizes = np.asarray(held, np.float64)
        if not sizes.size or sizes.max() <= self.capacity:
            return
        worst = int(sizes.argmax())
        least = int(np.ceil(sizes.sum() / self.capacity))
        needed, room = write(sizes[worst], "size"), write(self.capacity, "size")
        remedy = f"take at least {least} modules, weights of fewer bits, or hardware with more memory"
        raise HardwareError(
            [f"{self.name}: module {worst} would hold {needed} of {what} and has room for {room}; {remedy}"]
        )

    @property
    def capacity(self) -> float:
        """Bytes of weights that a module can hold, or where it fetches them, its share of what holds them."""
        fetch = self.spec.module.fetch
        if fetch is None:
            return self.spec.module.banks.capacity
        return fetch.capacity if fetch.capacity is not None else float("inf")

    def level(self, name: str) -> Level:
        """The link of a level: bank, module, node or cluster."""
        return transfers.level_of(self.spec, name)

    def all_to_all_seconds(
        self, bytes_between: np.ndarray, module_to_node: np.ndarray | None = None
    ) -> float:
        """Seconds of one exchange [M, M] of bytes, from row to column; the diagonal stays and is free.

        `module_to_node` [M] None: consecutive modules fill nodes of `modules_per_node`. Raises ValueError.
        """
        sizes, nodes = self._exchange(bytes_between, module_to_node)
        return transfers.all_to_all_seconds(self.spec, sizes, nodes)

    def bandwidth_needed(
        self, bytes_between: np.ndarray, deadline: float, module_to_node: np.ndarray | None = None
    ) -> dict[str, float]:
        """Bandwidth (bytes/s) that each level needs to end such an exchange within `deadline` seconds.

        Levels that nothing crosses are left out. Raises ValueError where latency alone takes longer.
        """
        sizes, nodes = self._exchange(bytes_between, module_to_node)
        return transfers.bandwidth_needed(self.spec, sizes, nodes, deadline)

    def _exchange(
        self, bytes_between: np.ndarray, module_to_node: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.asarray(bytes_between)
        if sizes.ndim != 2 or not np.issubdtype(sizes.dtype, np.number):
            raise ValueError(
                f"bytes_between has shape {sizes.shape} of {sizes.dtype}; it must be numbers [M, M]"
            )
        if (sizes < 0).any() or not np.isfinite(sizes).all():
            raise ValueError("bytes_between: every number of bytes must be 0 or more, and finite")
        if module_to_node is None:
            return sizes, np.arange(len(sizes)) // self.spec.modules_per_node
        return sizes, np.asarray(module_to_node)


def load_hardware(source: str | os.PathLike[str], *changes: str) -> Hardware:
    """Load a hardware by name ("h100-sxm") or path; see `rayemu hardware` for names. Raises HardwareError.

    `changes` are assignments such as "module.banks.count.value=32".
    """
    loaded: Loaded = load(source, changes)
    return Hardware(loaded.spec, loaded.sources, loaded.remarks)


def _like(result: np.ndarray, rows: int | np.ndarray) -> float | np.ndarray:
    return float(result) if np.ndim(rows) == 0 and not isinstance(rows, np.ndarray) else np.asarray(result)


def _check(**given: int | np.ndarray | None) -> None:
    for name, value in given.items():
        if value is None:
            continue
        numbers = np.asarray(value)
        least = 0 if name == "rows" else 1
        whole = np.issubdtype(numbers.dtype, np.integer) and (name == "rows" or not numbers.ndim)
        if not whole or (numbers < least).any():
            raise ValueError(f"{name}: {value!r} is not allowed; allowed: whole numbers from {least} on")
