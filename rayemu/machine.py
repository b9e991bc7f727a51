"""What this machine and its libraries are: for summaries, and to refuse what cannot fit."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import rayemu

PACKAGES = ("ray", "numpy", "scipy", "pyzmq", "msgpack", "zstandard", "xxhash")


def package_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def usable_cores() -> set[int]:
    """Numbers of the processor cores that this process may use, where the system tells; else all."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cores() -> int:
    """How many cores this process may use: its affinity, and its control group's share of time."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        share = -(-int(quota) // int(period))
    except (OSError, ValueError):  # no limit ("max"), or another kind of control group
        share = os.cpu_count() or 1
    return max(1, min(len(usable_cores()), share))


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def available_bytes() -> int | None:
    """Memory that can still be taken, of the machine or of this container; None where it cannot be told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        free = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no limit ("max"), or another kind of control group
        pass
    return max(free, 0)


def versions() -> dict[str, Any]:
    """Versions that can change a result or its speed, with the BLAS kernels that were chosen."""
    from rayemu.numerics import blas_info, cost, way

    blas = [{key: entry[key] for key in ("internal_api", "version", "architecture")} for entry in blas_info()]
    return {
        "rayemu": rayemu.__version__,
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
        "blas": blas,
        "products": {"way": way().name, "time_against_plain": round(cost(), 3)},
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE"),
        "platform": platform.platform(),
        "cores": cores(),
    }
