"""The door to modelled hardware: load it by name, ask what work takes. Emulated time, never wall time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayemu.hardware import passes, transfers
from rayemu.hardware.loading import HardwareError, Loaded, load
from rayemu.hardware.quantities import write
from rayemu.hardware.spec import BITS, LEVELS, Level
from rayemu.hardware.spec import Hardware as Spec
from rayemu.plain_yaml import show

MOST = 1 << 53  # rows and sizes, up to which float64 counts whole numbers
MOST_NODES = 1 << 20  # each has links of its own


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

        `weight_bits` None: those of the hardware's precision. Raises ValueError for sizes that are no whole
        numbers from 1 on.
        """
        _check(d_model=d_model, d_ff=d_ff, rows=rows, weight_bits=weight_bits, gated=gated)
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
        _check(d_model=d_model, d_ff=d_ff, rows=rows, weight_bits=weight_bits, gated=gated)
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

        Where weights are fetched, they have to fit where they come from. Raises HardwareError, with numbers,
        and ValueError for what is no number of bytes.
        """
        sizes = _amounts(held, "held").astype(np.float64).ravel()
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
        """The link of a level: bank, module, node or cluster. Raises ValueError for any other."""
        if name not in LEVELS:
            raise ValueError(f"level: {_shown(name)} is not allowed; allowed: {', '.join(LEVELS)}")
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
        seconds = _array(deadline, "deadline")
        if seconds.ndim or seconds.dtype.kind not in "iuf" or not np.isfinite(seconds):
            raise ValueError(f"deadline: {_shown(deadline)} is not allowed; allowed: a number of seconds")
        sizes, nodes = self._exchange(bytes_between, module_to_node)
        return transfers.bandwidth_needed(self.spec, sizes, nodes, deadline)

    def _exchange(
        self, bytes_between: np.ndarray, module_to_node: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        sizes = _amounts(bytes_between, "bytes_between")
        modules = len(sizes) if sizes.ndim else 0
        if sizes.shape != (modules, modules):
            raise ValueError(f"bytes_between has shape {sizes.shape}; it must be [M, M], from row to column")
        if module_to_node is None:
            return sizes, np.arange(modules) // self.spec.modules_per_node
        nodes = _array(module_to_node, "module_to_node")
        if nodes.shape != (modules,) or (modules and nodes.dtype.kind not in "iu"):
            raise ValueError(
                f"module_to_node: {_shown(module_to_node)} is not allowed; it must be the node of each of "
                f"{modules} modules, whole numbers from 0"
            )
        if modules and not 0 <= nodes.min() <= nodes.max() < MOST_NODES:
            wrong = nodes.min() if nodes.min() < 0 else nodes.max()
            raise ValueError(f"module_to_node: node {wrong} is not allowed; allowed: 0 to {MOST_NODES - 1}")
        return sizes, nodes


def load_hardware(source: str | os.PathLike[str], *changes: str) -> Hardware:
    """Load a hardware by name ("h100-sxm") or path; see `rayemu hardware` for names. Raises HardwareError.

    `changes` are assignments such as "module.banks.count.value=32".
    """
    if wrong := [change for change in changes if not isinstance(change, str)]:
        raise HardwareError(
            [f"{_shown(wrong[0])}: is not an assignment; write 'module.banks.count.value=32'"]
        )
    loaded: Loaded = load(source, changes)
    return Hardware(loaded.spec, loaded.sources, loaded.remarks)


def _like(result: np.ndarray, rows: int | np.ndarray) -> float | np.ndarray:
    return float(result) if np.ndim(rows) == 0 and not isinstance(rows, np.ndarray) else np.asarray(result)


def _check(*, weight_bits: int | None = None, gated: bool = True, **given: int | np.ndarray) -> None:
    if weight_bits is not None:
        given["weight_bits"] = weight_bits
    if not isinstance(gated, (bool, np.bool_)):
        raise ValueError(f"gated: {_shown(gated)} is not allowed; allowed: True or False")
    for name, value in given.items():
        least, most = (0 if name == "rows" else 1), (64 if name == "weight_bits" else MOST)
        numbers = _array(value, name)
        whole = numbers.dtype.kind in "iu" and (name == "rows" or not numbers.ndim)
        if numbers.size and (not whole or (numbers < least).any() or (numbers > most).any()):
            limit = "2^53" if most == MOST else most
            raise ValueError(
                f"{name}: {_shown(value)} is not allowed; allowed: whole numbers from {least} to {limit}"
            )


def _shown(value: object) -> str:
    return " ".join(show(value).split())  # an array has lines


def _array(value: object, name: str) -> np.ndarray:
    """The value as an array. Raises ValueError, where it is lists of several lengths."""
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(f"{name}: {_shown(value)} is not allowed; its rows have several lengths") from None


def _amounts(value: object, name: str) -> np.ndarray:
    """Numbers of bytes. Raises ValueError."""
    sizes = _array(value, name)
    if sizes.size and sizes.dtype.kind not in "iuf":
        raise ValueError(f"{name}: {_shown(value)} is not allowed; it must be numbers of bytes")
    if (sizes < 0).any() or not np.isfinite(sizes).all():
        raise ValueError(f"{name}: every number of bytes must be 0 or more, and finite")
    return sizes
