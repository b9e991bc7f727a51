"""Token streams: what is fed through the model, as endless batches of activations.

A stream is a frozen dataclass with `tokens(batch_tokens, seed)` (ids, [T] int64) and
`batches(batch_tokens, d_model, seed)` (activations, [T, D] float32). The same arguments give the same bits,
and rows do not depend on where a stream is cut into batches, unless it changes `every` so many of them.
Some streams look at the model that they are fed to: see `rayemu.streams.aim`.
"""

from __future__ import annotations

from rayemu.streams.adversarial import Adversarial
from rayemu.streams.bursty import Bursty
from rayemu.streams.drift import Drift
from rayemu.streams.hot_switch import HotSwitch
from rayemu.streams.neighbour import Neighbour
from rayemu.streams.text import Text
from rayemu.streams.trace import Trace
from rayemu.streams.uniform import Uniform
from rayemu.streams.zipf import Zipf

STREAMS = {
    "zipf": Zipf,
    "uniform": Uniform,
    "text": Text,
    "bursty": Bursty,
    "drift": Drift,
    "hot_switch": HotSwitch,
    "neighbour": Neighbour,
    "adversarial": Adversarial,
    "trace": Trace,
}

__all__ = [
    "STREAMS",
    "Adversarial",
    "Bursty",
    "Drift",
    "HotSwitch",
    "Neighbour",
    "Text",
    "Trace",
    "Uniform",
    "Zipf",
]
