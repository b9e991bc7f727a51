"""Pricing: the events of a run as a graph, scheduled on modelled hardware. See docs/pricing.md."""

from rayemu.pricing.graph import EventGraph
from rayemu.pricing.recorded import graph_of

__all__ = ["EventGraph", "graph_of"]
