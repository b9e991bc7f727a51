"""Pricing: the events of a run as a graph, scheduled on modelled hardware. See docs/pricing.md."""

from rayemu.pricing.graph import EventGraph
from rayemu.pricing.schedule import Schedule, schedule

__all__ = ["EventGraph", "Schedule", "schedule"]
