"""rayemu: a Mixture-of-Experts stack run for real over emulated processing-in-memory modules.

`Emulator` and `Scenario` are looked up on first use, so that an actor that only needs the model or the
protocol does not pay for pydantic, YAML or Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayemu.emulator import Emulator
    from rayemu.scenario import Scenario

__version__ = "0.1.0"
__all__ = ["Emulator", "Scenario", "__version__"]

_HOMES = {"Emulator": "rayemu.emulator", "Scenario": "rayemu.scenario"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rayemu' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
