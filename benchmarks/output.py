"""What a benchmark leaves behind: facts of the machine, a JSON file, cells of tables."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from rayemu.machine import cores, processor
from rayemu.numerics import blas_info, cost, way


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, versions, BLAS, load by others at this moment."""
    versions = {"python": platform.python_version()}
    for name in ("rayemu", "ray", "numpy", "pyzmq", "torch", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    blas = [{k: v for k, v in library.items() if k != "filepath"} for library in blas_info()]
    return {
        "processor": processor(),
        "system": platform.platform(),
        "cores": cores(),
        "load_average": list(os.getloadavg()),
        "busy_share": busy_share(),
        "blas": blas,
        "products": {"way": way().name, "time_against_plain": cost()},
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE"),
        "versions": versions,
    }


def busy_share(seconds: float = 0.5) -> float | None:
    """Share of the machine's processor time that is in use while this process sleeps; None where unknown."""

    def ticks() -> list[int]:
        return [int(t) for t in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]

    try:
        before = ticks()
        time.sleep(seconds)
        spent = [b - a for a, b in zip(before, ticks(), strict=True)]
    except (OSError, ValueError):
        return None
    return 1.0 - (spent[3] + spent[4]) / sum(spent) if sum(spent) else None  # idle and waiting for disks


def noise_warning(facts: dict[str, Any]) -> str | None:
    """What to say when others keep the machine busy: they hurt one process more than many."""
    share = facts["busy_share"]
    if share is None or share < 0.1:
        return None
    return (
        f"Other work keeps {share:.0%} of the processors busy: figures will be poor, and ratios to what runs "
        "in one process (bare GEMMs, reference, torch) too good."
    )


def results_file(benchmark: str) -> Path:
    """Where results go by default: benchmarks/results in a checkout, else the working directory."""
    folder = Path("benchmarks/results") if Path("benchmarks").is_dir() else Path()
    return folder / f"{benchmark}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"


def write(path: Path, data: dict[str, Any]) -> None:
    """Write results as JSON, by a rename, so that no half file is ever seen."""
    path = path.expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=1, allow_nan=False, default=float) + "\n", encoding="utf-8")
    partial.replace(path)


def show_time(seconds: float | None) -> str:
    """A time with a unit and three figures: 1.23 s, 12.3 ms, 123 us; a dash for none."""
    if seconds is None:
        return "-"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        value = seconds * factor
        if value >= 0.9995 or unit == "us":
            break
    return f"{value:.0f} {unit}" if value >= 999.5 else f"{value:.3g} {unit}"


def show_ratio(value: float | None) -> str:
    """A ratio with enough figures to read it: 0.873, 1.25, 14.2; a dash for none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def pair(latency: str, stream: str) -> str:
    """Two figures of one cell: one batch at a time/in a stream."""
    return "-" if latency == stream == "-" else f"{latency}/{stream}"
