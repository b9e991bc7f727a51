"""A trigger by the number of batches."""

from __future__ import annotations

from dataclasses import dataclass

from rayemu.balance.triggers.history import History


@dataclass(frozen=True)
class Every:
    """Every `batches` batches, whatever the loads."""

    batches: int = 20

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError(f"batches: {self.batches!r} is not allowed; allowed: 1 and above")

    def looks_back(self) -> int:
        """It does not."""
        return 0

    def fires(self, history: History) -> str | None:
        """Fires when that many have passed."""
        return f"{history.since} batches have passed" if history.since >= self.batches else None
