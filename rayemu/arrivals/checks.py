"""What arrivals refuse. The messages start with the parameter's name."""

from __future__ import annotations

RANDOM_ARRIVALS = 5  # what a seeded generator is for


def check_rate(rate: float) -> None:
    """Refuse a rate at which nothing would ever come, or everything at once."""
    if not 1e-6 <= rate <= 1e6:
        raise ValueError(f"rate: {rate!r} is not allowed; allowed: 0.000001 to 1000000 batches per second")


def check_seconds(name: str, seconds: float) -> None:
    """Refuse a mean time that is none."""
    if not 1e-6 <= seconds <= 1e6:
        raise ValueError(f"{name}: {seconds!r} is not allowed; allowed: 0.000001 to 1000000 seconds")
