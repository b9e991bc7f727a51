"""Pricing: the events of a run as a graph, scheduled on modelled hardware. See docs/pricing.md."""

from rayemu.pricing.graph import EventGraph

__all__ = ["EventGraph"]
