"""Token streams: what is fed through the model, as endless batches of activations.

A stream is a frozen dataclass with `tokens(batch_tokens, seed)` (ids, [T] int64) and
`batches(batch_tokens, d_model, seed)` (activations, [T, D] float32). The same arguments give the same bits.
"""

from __future__ import annotations

from rayemu.streams.text import Text
from rayemu.streams.uniform import Uniform
from rayemu.streams.zipf import Zipf

STREAMS = {"zipf": Zipf, "uniform": Uniform, "text": Text}

__all__ = ["STREAMS", "Text", "Uniform", "Zipf"]
