"""A hardware of round numbers, on which a pass can be computed in the head."""

from __future__ import annotations

from pathlib import Path

from rayemu.hardware import Hardware, load_hardware

# An expert of D 2, F 3 with gate has 18 weights, 36 bytes; a row is 36 operations. So a pass over the weights
# takes 36 / (2 x 9) = 2 s, and the arithmetic of a row 36 / 36 = 1 s.
TOY = """
name: toy
about: round numbers
module:
  banks:
    count: {value: 2, source: made up}
    bandwidth: {value: 9 B/s, source: made up}
    capacity: {value: 100 B, source: made up}
  compute:
    precision: fp16
    rates:
      fp16: {value: 36 FLOP/s, source: made up}
modules_per_node: {value: 2, source: made up}
links:
  module:
    latency: {value: 1 s, source: made up}
    bandwidth: {value: 1 B/s, source: made up}
host:
  rate: {value: 1 FLOP/s, source: made up}
  bandwidth: {value: 1 B/s, source: made up}
  overhead: {value: 1 s, source: made up}
energy:
  weights: {value: 1 mJ/bit, source: made up}
  compute: {value: 0.5 mJ/FLOP, source: made up}
"""


def number(path: str, value: object) -> str:
    """An assignment that sets a number with a source."""
    return f"{path}={{value: {value}, source: a test}}"


def toy(folder: Path, *changes: str) -> Hardware:
    """The toy with changes."""
    file = folder / "toy.yaml"
    file.write_text(TOY, encoding="utf-8")
    return load_hardware(file, *changes)
