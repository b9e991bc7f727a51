"""What this machine's processors do in how much time: expert passes, codecs, copies. One thread on each core.

Everything is measured while all cores do the same, as modules do: one core alone would be quicker.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from rayemu.compression import make_codec
from rayemu.model.expert import Expert, expert_forward

# Width D, F and rows of the passes that are measured: launch-bound, memory-bound, compute-bound.
SHAPES = tuple(
    (d, f, rows) for d, f in ((256, 512), (1024, 384), (1024, 2048)) for rows in (1, 8, 64, 256, 768)
)
FRAME = (256, 1024)  # rows and width of what codecs code
CODECS = ("int8", "int8+zstd", "bf16", "fp16", "fp8", "planes+zstd", "zstd")
CACHES = 64e6  # bytes of weights that are used in turn, so that no cache holds them all


def on_every_core(cores: int, seconds: float) -> dict[str, Any]:
    """Run `measured` in a process per core at once; return the median of what they found, key by key.

    Raises RuntimeError where such a process ends before it has told.
    """
    context = multiprocessing.get_context("spawn")
    # Ctrl-C goes to all processes of a terminal: this one ends the others, which have nothing to say of it.
    # They inherit what is blocked here; the start of the tracker, on its own, would unblock it.
    resource_tracker.ensure_running()
    running: list[tuple[Any, Connection]] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        try:
            for _ in range(cores):
                told, teller = context.Pipe(duplex=False)
                process = context.Process(target=_tell, args=(teller, seconds), daemon=True)
                process.start()
                running.append((process, told))
                teller.close()  # so that `told` ends with the process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        found = [told.recv() for _, told in running]
    except EOFError:
        raise RuntimeError(
            "a process that was started to measure this machine ended before it had. Such processes import "
            'the script that calls calibrate(): put the call under `if __name__ == "__main__":`'
        ) from None
    finally:
        for process, told in running:
            process.kill()
            process.join()
            told.close()
    return {key: float(np.median([one[key] for one in found])) for key in found[0]}


def _tell(teller: Connection, seconds: float) -> None:
    teller.send(_measured(seconds))


def _measured(seconds: float) -> dict[str, float]:
    with threadpool_limits(1):
        each = seconds / (len(SHAPES) + 2 * len(CODECS) + 1)
        found = {f"pass {d} {f} {rows}": _pass(d, f, rows, each) for d, f, rows in SHAPES}
        for name in CODECS:
            found |= _codec(name, each)
        found["copy"] = _copy(each)
        return found


def _pass(d_model: int, d_ff: int, rows: int, seconds: float) -> float:
    rng = np.random.default_rng([d_model, d_ff])
    count = max(2, int(CACHES / (3 * 4 * d_model * d_ff)))
    up = [rng.standard_normal((d_model, 2 * d_ff), dtype=np.float32) for _ in range(count)]
    down = [rng.standard_normal((d_ff, d_model), dtype=np.float32) for _ in range(count)]
    experts = [Expert(*both) for both in zip(up, down, strict=True)]
    x, y = rng.standard_normal((rows, d_model), dtype=np.float32), np.empty((rows, d_model), np.float32)
    return _best(lambda turn: expert_forward(experts[turn % count], x, y), seconds)


def _codec(name: str, seconds: float) -> dict[str, float]:
    """Seconds per byte of float32 rows, to encode and to decode."""
    rows = np.random.default_rng(0).standard_normal(FRAME, dtype=np.float32)
    codec = make_codec(name)
    coded = codec.encode(rows)
    return {
        f"encode {name}": _best(lambda _: codec.encode(rows), seconds) / rows.nbytes,
        f"decode {name}": _best(lambda _: codec.decode(*coded, rows.shape), seconds) / rows.nbytes,
    }


def _copy(seconds: float) -> float:
    """Seconds per byte to copy what no cache holds."""
    given, taken = np.ones(1 << 24, np.uint8), np.empty(1 << 24, np.uint8)
    return _best(lambda _: np.copyto(taken, given), seconds) / given.nbytes


def _best(call: Callable[[int], object], seconds: float) -> float:
    """Median seconds of a call that is repeated for so long, the first apart: it touches the memory."""
    call(0)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        call(len(times) + 1)
        times.append(time.perf_counter() - began)
    return float(np.median(times))
