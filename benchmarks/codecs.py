"""Speed and size of every codec on one core: `python -m benchmarks.codecs`.

Speeds are relative to `np.copyto` of the same rows, taken in turns with it, so that the machine's mood
cancels: 1.0 is memory speed. Encoding writes into a given buffer, decoding into given rows. Beside a figure
stands its goal; with blosc2 installed, its usual setting joins the table.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rayemu.compression import decode_frame, encode_frame, make_codec

from .output import machine, noise_warning, results_file, show_ratio, show_time, write

CODECS = (
    "raw",
    "fp16",
    "bf16",
    "int8",
    "int8(group=128)",
    "int4",
    "fp8",
    "sparse",
    "sparse+int8",
    "blocks",
    "blocks+int8",
    "planes",
    "planes+zstd",
    "bf16+planes+zstd",
    "int8+zstd",
    "delta+int8",
)
# Encode and decode relative to a copy, and size against float32.
GOALS: dict[str, tuple[float | None, float | None, float | None]] = {
    "int8": (0.30, 0.25, None),
    "bf16": (0.30, 0.40, None),
    "sparse": (0.12, 0.12, None),
    "int8(group=128)": (None, None, 3.88),
    "int4": (None, None, 6.9),
    "sparse+int8": (None, None, 9.0),
    "bf16+planes+zstd": (None, None, 2 * 1.45),
    "planes+zstd": (None, None, 1.17),
}
ZEROS = 0.7  # of the rows that sparse and blocks get
SMALL = (16, 1024)
SMALL_GOAL_S = 60e-6
MSE_GOALS = {"int8": 8e-5, "int8(group=128)": 4.5e-5}


def turns(calls: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Times of each call, taken in turns until the time is up, after one round to warm up."""
    for call in calls:
        call()
    samples: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples[0]) < 5:
        for call, taken in zip(calls, samples, strict=True):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return samples


def gaussian(rows: int, width: int) -> np.ndarray:
    """Rows of N(0, 1)."""
    return np.random.default_rng(0).standard_normal((rows, width), dtype=np.float32)


def with_zeros(x: np.ndarray, run: int = 1) -> np.ndarray:
    """The rows with 70 % zeros, single or in runs."""
    rng = np.random.default_rng(1)
    keep = rng.random((len(x), -(-x.shape[1] // run))) >= ZEROS
    return np.where(np.repeat(keep, run, axis=1)[:, : x.shape[1]], x, np.float32(0))


def measure(name: str, x: np.ndarray, seconds: float) -> dict[str, Any]:
    """Speeds, size and error of one codec on rows x [n, D]."""
    codec = make_codec(name)
    copy, rows = np.empty_like(x), np.empty_like(x)
    memory = np.zeros(codec.buffer_bytes(x.shape), np.uint8)
    meta, segments = codec.encode(x)
    copying, encoding, decoding = turns(
        [
            lambda: np.copyto(copy, x),
            lambda: codec.encode(x, memory),
            lambda: codec.decode(meta, segments, x.shape, rows),
        ],
        seconds,
    )
    base, encode_s, decode_s = map(statistics.median, (copying, encoding, decoding))
    error = (rows.astype(np.float64) - x) ** 2
    return {
        "codec": name,
        "lossless": codec.lossless,
        "bits_per_value": 8 * codec.encode(x).nbytes / x.size,
        "ratio": x.nbytes / codec.encode(x).nbytes,
        "encode": base / encode_s,
        "decode": base / decode_s,
        "encode_gb_per_s": x.nbytes / encode_s / 1e9,
        "decode_gb_per_s": x.nbytes / decode_s / 1e9,
        "mean_square_error": float(error.mean()),
        "copy_gb_per_s": x.nbytes / base / 1e9,
    }


def zstd_overhead(x: np.ndarray, seconds: float) -> dict[str, float]:
    """How much longer int8+zstd takes than int8 and bare zstandard of the same bytes, one after the other."""
    plain, both = make_codec("int8"), make_codec("int8+zstd")
    compressor, decompressor = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    stored = [np.ascontiguousarray(s).tobytes() for s in plain.encode(x).segments]
    packed = [compressor.compress(s) for s in stored]
    meta, segments = both.encode(x)
    rows = np.empty_like(x)
    e8, ez, bare_e, d8, dz, bare_d = (
        statistics.median(t)
        for t in turns(
            [
                lambda: plain.encode(x),
                lambda: both.encode(x),
                lambda: [compressor.compress(s) for s in stored],
                lambda: plain.decode([], stored, x.shape, rows),
                lambda: both.decode(meta, segments, x.shape, rows),
                lambda: [decompressor.decompress(p) for p in packed],
            ],
            seconds,
        )
    )
    return {"encode": (ez - e8) / bare_e - 1, "decode": (dz - d8) / bare_d - 1}


def small_frame(name: str, seconds: float) -> float:
    """Seconds to encode and decode a frame of 16 x 1024 rows, checksum included."""
    codec, x = make_codec(name), gaussian(*SMALL)
    out = np.empty_like(x)
    (taken,) = turns([lambda: decode_frame(codec, encode_frame(codec, x), out)], seconds)
    return statistics.median(taken)


def blosc2(x: np.ndarray, seconds: float) -> dict[str, Any] | None:
    """blosc2 with a byte shuffle and zstd, its usual setting for floats; None where not installed."""
    if importlib.util.find_spec("blosc2") is None:
        return None
    import blosc2 as library  # type: ignore[import-not-found]

    library.set_nthreads(1)
    packed = library.compress2(x, typesize=4, clevel=1, codec=library.Codec.ZSTD)
    rows, copy = np.empty_like(x), np.empty_like(x)
    copying, encoding, decoding = turns(
        [
            lambda: np.copyto(copy, x),
            lambda: library.compress2(x, typesize=4, clevel=1, codec=library.Codec.ZSTD),
            lambda: library.decompress2(packed, dst=rows),
        ],
        seconds,
    )
    base = statistics.median(copying)
    return {
        "codec": "blosc2 (shuffle, zstd 1)",
        "lossless": True,
        "bits_per_value": 8 * len(packed) / x.size,
        "ratio": x.nbytes / len(packed),
        "encode": base / statistics.median(encoding),
        "decode": base / statistics.median(decoding),
        "mean_square_error": 0.0,
    }


def table(results: Sequence[dict[str, Any]]) -> Table:
    """What was measured, with the goals in brackets."""
    title = "One core, speeds relative to np.copyto (goal)"
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("codec", no_wrap=True)
    for heading in ("ratio", "encode", "decode", "MSE"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for r in results:
        encode, decode, ratio = GOALS.get(r["codec"], (None, None, None))
        goal = MSE_GOALS.get(r["codec"])
        shown.add_row(
            r["codec"],
            _with_goal(show_ratio(r["ratio"]), ratio),
            _with_goal(show_ratio(r["encode"]), encode),
            _with_goal(show_ratio(r["decode"]), decode),
            _with_goal("0" if r["lossless"] else f"{r['mean_square_error']:.2g}", goal),
        )
    return shown


def _with_goal(text: str, goal: float | None) -> str:
    return text if goal is None else f"{text} ({goal:g})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 unless it could not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codecs", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", type=int, default=4096, help="default: 4096")
    parser.add_argument("--width", type=int, default=2048, help="default: 2048")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each codec; default: 2")
    parser.add_argument("--only", metavar="A,B", help="these codecs, separated by semicolons or commas")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="default: benchmarks/results/codecs-TIME.json"
    )
    args = parser.parse_args(argv)
    if min(args.rows, args.width) < 1 or args.seconds <= 0:
        raise SystemExit("--rows, --width and --seconds must be more than 0")
    names = args.only.split(";" if ";" in args.only else ",") if args.only else CODECS
    console = Console()
    facts = machine()
    if warning := noise_warning(facts):
        Console(stderr=True).print(warning)
    x = gaussian(args.rows, args.width)
    results = []
    for name in names:
        rows = with_zeros(x) if name.startswith("sparse") else with_zeros(x, 16) if "blocks" in name else x
        results.append(measure(name, rows, args.seconds))
    if (other := blosc2(x, args.seconds)) is not None:
        results.append(other)
    overhead = zstd_overhead(x[: max(1, args.rows // 4)], args.seconds)
    small_s = small_frame("int8", min(args.seconds, 1.0))
    path = args.out or results_file("codecs")
    write(
        path,
        {
            "benchmark": "codecs",
            "machine": facts,
            "shape": [args.rows, args.width],
            "results": results,
            "zstd_overhead": overhead,
            "small_frame_s": small_s,
        },
    )
    console.print(table(results))
    console.print(
        f"zstd stage over bare zstandard on the same bytes: encode {overhead['encode']:+.1%}, "
        f"decode {overhead['decode']:+.1%} (goal 10%)",
        highlight=False,
    )
    console.print(
        f"a frame of {SMALL[0]} x {SMALL[1]} int8 rows, encode and decode with checksum: "
        f"{show_time(small_s)} (goal {show_time(SMALL_GOAL_S)})",
        highlight=False,
    )
    console.print(f"Written to {path}", highlight=False)
    return 0


if __name__ == "__main__":
    from rayemu.cli_errors import until_unread

    until_unread(main)
