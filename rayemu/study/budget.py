"""The error budget: what each codec saves and spoils on the activations of a stream, layer by layer.

One process runs the stack and keeps what every MoE layer is given; each codec then carries those rows to the
experts and the outputs back, as an exchange would.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rayemu.compression import Codec, CodecError, make_codec
from rayemu.model.model import Layer, Model
from rayemu.model.reference import expert_input, finish, moe_forward, prepare, route
from rayemu.numerics import F32

CODECS = (
    "raw",
    "fp16",
    "bf16",
    "fp8",
    "int8",
    "int8(group=128)",
    "int4",
    "sparse+int8",
    "blocks+int8",
    "planes+zstd",
    "bf16+planes+zstd",
    "int8+zstd",
    "int4+zstd",
    "delta+int8",
    "project",
    "project+int8",
)
REPEATS, LEAST_S = 3, 0.05  # timings of a codec: at least so many, for at least so long


@dataclass(frozen=True)
class Entry:
    """One codec on one layer's rows [T, D]. `refused` says why it cannot carry them; then the rest is 0."""

    codec: str
    layer: int
    lossless: bool
    row_local: bool
    bytes_per_value: float = 0.0
    ratio: float = 0.0  # of float32 to encoded bytes
    encode_gb_per_s: float = 0.0  # of float32 rows
    decode_gb_per_s: float = 0.0
    row_error_mean: float = 0.0  # |x' - x| / |x|, Euclidean, of each row
    row_error_max: float = 0.0
    output_error: float = 0.0  # |y' - y| / |y| of the layer's output, Frobenius, rows coded both ways
    pays_below_gb_per_s: float = 0.0  # link speed under which coding is quicker than sending float32
    refused: str = ""


class _Both:
    """Replay for `moe_forward`: the codec on the way to the experts and back."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def routing(self, layer: Layer, x: F32) -> None:
        return None

    def kept(self, layer: int, choices: int) -> None:
        return None

    def dispatch(self, layer: int, tokens: np.ndarray, choice: np.ndarray, rows: F32) -> F32:
        return self.codec.roundtrip(rows)

    combine = dispatch


def budget(model: Model, x: F32, codecs: Sequence[str] = CODECS) -> Iterator[Entry]:
    """Measure every codec on what each MoE layer gets from rows x [T, D]."""
    for layer in model.layers:
        given = prepare(layer, x)
        y = moe_forward(layer, given)
        if layer.has_experts:
            for name in codecs:
                yield measure(make_codec(name), layer, given, y)
        x = finish(layer, x, y)


def measure(codec: Codec, layer: Layer, x: F32, y: F32) -> Entry:
    """One codec on the rows x [T, D] of a layer whose output is y [T, D]."""
    sent, _ = expert_input(layer, x, route(layer, x).weights)
    entry = Entry(str(codec), layer.index, codec.lossless, codec.row_local)
    try:
        encoded = codec.encode(sent)
        seen = codec.decode(*encoded, x.shape)
        output = moe_forward(layer, x, _Both(codec))
    except CodecError as error:
        return replace(entry, refused=str(error))
    memory, rows = np.zeros(codec.buffer_bytes(x.shape), np.uint8), np.empty_like(sent)
    encode_s = _time(lambda: codec.encode(sent, memory))
    decode_s = _time(lambda: codec.decode(*encoded, x.shape, rows))
    ratio, whole = x.nbytes / max(1, encoded.nbytes), y.astype(np.float64)
    errors = _norms(seen.astype(np.float64) - sent) / np.maximum(_norms(sent.astype(np.float64)), 1e-300)
    return replace(
        entry,
        bytes_per_value=encoded.nbytes / x.size,
        ratio=ratio,
        encode_gb_per_s=x.nbytes / encode_s / 1e9,
        decode_gb_per_s=x.nbytes / decode_s / 1e9,
        row_error_mean=float(errors.mean()),
        row_error_max=float(errors.max()),
        output_error=float(np.linalg.norm(output - whole) / max(np.linalg.norm(whole), 1e-300)),
        pays_below_gb_per_s=max(0.0, (1 - 1 / ratio) * x.nbytes / (encode_s + decode_s) / 1e9),
    )


def over_layers(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One line per codec: sizes, speeds and mean errors averaged over the layers, maxima and output errors
    the worst of them."""
    lines: list[dict[str, Any]] = []
    for name in dict.fromkeys(e.codec for e in entries):
        of = [e for e in entries if e.codec == name]
        refused = next((f"layer {e.layer}: {e.refused}" for e in of if e.refused), "")
        if refused:
            lines.append({"codec": name, "refused": refused})
            continue
        keys = ("bytes_per_value", "ratio", "encode_gb_per_s", "decode_gb_per_s", "row_error_mean")
        lines.append(
            {
                "codec": name,
                "lossless": of[0].lossless,
                **{key: statistics.fmean(getattr(e, key) for e in of) for key in keys},
                "row_error_max": max(e.row_error_max for e in of),
                "output_error": max(e.output_error for e in of),
                "pays_below_gb_per_s": statistics.fmean(e.pays_below_gb_per_s for e in of),
            }
        )
    return lines


def _norms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows))


def _time(call: Callable[[], object]) -> float:
    samples: list[float] = []
    end = time.perf_counter() + LEAST_S
    while len(samples) < REPEATS or time.perf_counter() < end:
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples)
