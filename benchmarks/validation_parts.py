"""PIM parts: what their makers and papers state of them, derived again from the figures of the presets."""

from __future__ import annotations

from .checks import Check, Row


def checks() -> list[Check]:
    """Bandwidths and energies: to the digits that were published."""
    rows = (Row("HBM2-PIM, inside", 128 * 32 * 300e6 / 1e9, "1229"),)
    return [Check("PIM parts", "vendors' figures", "GB/s", rows)]
