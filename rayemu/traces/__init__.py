"""Routing traces: expert loads as other systems record them, in and out, and their statistics."""
