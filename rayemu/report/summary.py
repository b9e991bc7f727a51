"""Sums a run up: pure functions from its results and its record to what summary.json holds.

Shapes: M modules, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayemu.drivers.record import (
    DECODE,
    DISPATCH,
    ENCODE,
    FORWARD,
    GEMM,
    OFFER_REPLY,
    OFFER_REQUEST,
    REPLY,
    clock_of,
    ends,
    starts,
)
from rayemu.protocol.client import BatchResult
from rayemu.protocol.config import LEVELS
from rayemu.protocol.messages import DROPPED

FRAMES = (DISPATCH, FORWARD, REPLY, OFFER_REQUEST, OFFER_REPLY)
COUNTED = "from module to module; not those of the client and the coordinator"


def account_tokens(results: Sequence[BatchResult], layers: int, experts: int) -> dict[str, Any]:
    """Counts what went in and what came out, token by token.

    All tokens of a failed batch count as lost, and so does a token that no result delivered; each delivery
    of a token after its first counts as a duplicate. `expert_tokens` [L, E] counts the choices of finished
    batches, `dropped_choices` those that were left out because every copy of their expert was dead.
    """
    finished = [r for r in results if r.failure is None]
    delivered = np.concatenate([np.zeros(0, np.int32), *(r.delivered for r in finished)])  # [tokens]
    tokens_in = sum(len(r.delivered) for r in results)
    tokens_out = int((delivered > 0).sum())
    paths = [r.dispatch_paths for r in finished if r.dispatch_paths is not None]
    chosen = np.zeros((layers, experts), np.int64)  # [L, E]
    for result in finished:
        chosen += result.expert_tokens
    return {
        "batches": len(results),
        "tokens_in": tokens_in,
        "tokens_out": tokens_out,
        "tokens_lost": tokens_in - tokens_out,
        "tokens_duplicated": int(np.maximum(delivered - 1, 0).sum()),
        "dropped_choices": sum(int((p == DROPPED).sum()) for p in paths),
        "failed_batches": [
            {"batch": r.batch, "layer": r.failure.layer, "expert": r.failure.expert}
            for r in results
            if r.failure is not None
        ],
        "expert_tokens": chosen.tolist(),
    }


def account_traffic(record: np.ndarray, modules: int, codecs: Sequence[str]) -> dict[str, Any]:
    """Sums the frames and GEMMs of a record up; every value is None where nothing was recorded.

    Frames are those from one module to another that carry rows, or scores of them; what travels to and from
    the client and the coordinator is in the record, but not counted here (`frames_counted` says so).
    `bytes_raw` is what they carry in float32, `bytes_sent` the frames as they left; what was sent twice
    counts twice. `bytes_by_level` splits both by link level, with the codecs used on each (`codecs` are the
    run's, by number).
    `encode_wall_s` and `decode_wall_s` are what codecs took of the modules' loops, raw frames apart.
    `traffic_bytes` [M, M] is `bytes_sent` from module to module, `module_rows` [M] the rows of routed experts
    that each module computed, `module_busy_wall_s` [M] the time its GEMMs took. `balance` is how evenly: of
    every layer of every batch, which wait for their fullest module, the mean of the modules' rows over the
    maximum, and of these the mean; 1 when all modules always computed alike.
    Of a record in virtual time, the names of times say virtual in place of wall.
    """
    clock = clock_of(record)
    if not len(record):
        keys = (
            "frames_counted",
            "bytes_raw",
            "bytes_sent",
            "bytes_by_level",
            "traffic_bytes",
            "frames",
            "flops",
            f"encode_{clock}_s",
            f"decode_{clock}_s",
        )
        return dict.fromkeys((*keys, "module_rows", f"module_busy_{clock}_s", "balance"))
    between = (record["src"] >= 0) & (record["dst"] >= 0) & (record["src"] != record["dst"])
    frames = record[np.isin(record["kind"], FRAMES) & between]
    traffic = np.zeros((modules, modules), np.int64)  # [M, M]
    np.add.at(traffic, (frames["src"], frames["dst"]), frames["sent_bytes"])
    by_level = {
        name: {
            "codec": _codec_names(frames[frames["level"] == level], codecs),
            "frames": int((frames["level"] == level).sum()),
            "raw": int(frames["raw_bytes"][frames["level"] == level].sum()),
            "sent": int(frames["sent_bytes"][frames["level"] == level].sum()),
        }
        for level, name in enumerate(LEVELS)
        if name != "local"
    }
    took = ends(record) - starts(record)
    gemms = record[record["kind"] == GEMM]
    routed = gemms[gemms["expert"] >= 0]
    rows = np.bincount(routed["src"], routed["rows"], modules).astype(np.int64)  # [M]
    busy = np.bincount(gemms["src"], ends(gemms) - starts(gemms), modules)  # [M]
    return {
        "frames_counted": COUNTED,
        "bytes_raw": int(frames["raw_bytes"].sum()),
        "bytes_sent": int(frames["sent_bytes"].sum()),
        "bytes_by_level": by_level,
        "traffic_bytes": traffic.tolist(),
        "frames": len(frames),
        f"encode_{clock}_s": round(float(took[record["kind"] == ENCODE].sum()), 6),
        f"decode_{clock}_s": round(float(took[record["kind"] == DECODE].sum()), 6),
        "flops": float(gemms["flops"].sum()),
        "module_rows": rows.tolist(),
        f"module_busy_{clock}_s": [round(float(s), 6) for s in busy],
        "balance": _balance(routed, modules),
    }


def _balance(gemms: np.ndarray, modules: int) -> float | None:
    """Mean over the batches and layers of mean / max of the rows that modules computed; None without rows."""
    keys = np.stack([gemms["batch"], gemms["layer"]], axis=1)  # [n, 2]
    groups, number = np.unique(keys, axis=0, return_inverse=True)
    rows = np.zeros((len(groups), modules))  # [batches and layers, M]
    np.add.at(rows, (number.reshape(-1), gemms["src"]), gemms["rows"])
    rows = rows[rows.any(axis=1)]
    return float((rows.mean(axis=1) / rows.max(axis=1)).mean()) if len(rows) else None


def _codec_names(frames: np.ndarray, codecs: Sequence[str]) -> str:
    """The codecs that these frames used; "raw" for no frames."""
    return ", ".join(codecs[number] for number in np.unique(frames["codec"]).tolist()) or codecs[0]


def batch_times(results: Sequence[BatchResult], clock: str) -> dict[str, float]:
    """How long batches took from submission to their last row: p50, p99 and longest, on the named clock."""
    took = [r.finished_at - r.submitted_at for r in results if r.failure is None]
    return _percentiles("batch", took, clock, {"p50": 50, "p99": 99, "max": 100})


def latencies(results: Sequence[BatchResult], meant: Sequence[float], clock: str) -> dict[str, float]:
    """How long after they were meant to begin batches were finished: p50, p90, p99 and longest.

    Whoever has to wait until there is room for a batch waits for its result all that time; measured from
    when it was handed out, a stall would count for the few batches only that were under way. `meant` are the
    times of arrival on the named clock, as many as results, or none in a closed loop: then there is no
    latency but the time of a batch.
    """
    took = [r.finished_at - at for r, at in zip(results, meant, strict=bool(meant)) if r.failure is None]
    return _percentiles("latency", took, clock, {"p50": 50, "p90": 90, "p99": 99, "max": 100})


def _percentiles(what: str, took: Sequence[float], clock: str, names: dict[str, int]) -> dict[str, float]:
    if not took:
        return {}
    return {f"{what}_{name}_{clock}_s": float(np.percentile(took, q)) for name, q in names.items()}


def slow_batches(
    results: Sequence[BatchResult], factor: float = 3.0
) -> list[tuple[BatchResult, float, float]]:
    """Batches that took more than `factor` times the median: (result, its time, the median)."""
    took = np.array([r.finished_at - r.submitted_at for r in results])
    if len(took) < 3:
        return []
    median = float(np.median(took))
    return [(r, float(t), median) for r, t in zip(results, took, strict=True) if t > factor * median > 0]
