"""Modelled hardware: described as data with sources, asked for time and energy. See docs/hardware.md."""

from rayemu.hardware.door import Hardware, load_hardware
from rayemu.hardware.loading import HardwareError, packaged

__all__ = ["Hardware", "HardwareError", "load_hardware", "packaged"]
