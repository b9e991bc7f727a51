"""Whether the modules of a hardware hold what a run placed on them, at the model's full width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rayemu.hardware import Hardware
from rayemu.hardware.spec import BITS
from rayemu.model.spec import ModelSpec
from rayemu.units import format_bytes

LEAST_ACTIVATION_BITS = 16


class PricingError(ValueError):
    """What cannot be priced: says what, why, and the remedy."""


@dataclass(frozen=True, eq=False)
class MemoryMap:
    """Bytes of each of M modules at the precision of the hardware's experts; capacity None: not known."""

    experts: np.ndarray  # [M] routed experts
    common: int  # what every module holds: gates, norms, shared and dense FFNs
    activations: int
    capacity: float | None
    elsewhere: bool  # the weights are not in the module but fetched, and capacity is of where they are

    @property
    def total(self) -> np.ndarray:
        """Bytes of each module [M], without activations where they lie elsewhere than the weights."""
        return self.experts + self.common + (0 if self.elsewhere else self.activations)

    @property
    def fits(self) -> bool | None:
        """Whether every module holds its own; None where the capacity is not known."""
        return None if self.capacity is None else bool((self.total <= self.capacity).all())

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "expert_bytes": self.experts.tolist(),
            "common_bytes": self.common,
            "activation_bytes": self.activations,
            "total_bytes": self.total.tolist(),
            "capacity_bytes": self.capacity,
            "fetched": self.elsewhere,
            "fits": self.fits,
        }


def memory_map(hardware: Hardware, model: ModelSpec, held: np.ndarray, rows: int) -> MemoryMap:
    """Count the bytes of modules that hold `held` [M] expert copies and keep `rows` rows under way each."""
    full, module = model.full(), hardware.spec.module
    bits = BITS[module.compute.precision]
    routed = full.moe_layers * full.experts * full.expert_parameters()
    fetch = module.fetch
    return MemoryMap(
        experts=np.asarray(held, np.int64) * full.expert_bytes(bits),
        common=(full.parameters() - routed) * bits // 8,
        activations=full.activation_bytes(rows) * max(bits, LEAST_ACTIVATION_BITS) // 32,
        capacity=module.banks.capacity if fetch is None else getattr(fetch, "capacity", None),
        elsewhere=fetch is not None,
    )


def refuse_overfull(found: MemoryMap, hardware: Hardware) -> None:
    """Raise PricingError where a module cannot hold its own, naming the fullest."""
    if found.fits is not False:
        return
    most = int(found.total.argmax())
    count = int((found.total > (found.capacity or 0)).sum())
    raise PricingError(
        f"{hardware.name}: module {most} needs {format_bytes(found.total[most])} at full width, "
        f"{format_bytes(found.experts[most])} of it experts, and holds {format_bytes(found.capacity or 0)} "
        f"({count} of {len(found.experts)} modules are too full); run with more modules, fewer layers or "
        "placement.copies, or price it nevertheless with --allow-overfull"
    )
