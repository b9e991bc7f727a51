"""The BLAS libraries of this process: what they are, and how many threads they use."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any


def blas_info() -> list[dict[str, Any]]:
    """The BLAS libraries in this process: name, version, kernel architecture and threads."""
    from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

    libraries = [entry for entry in threadpool_info() if entry.get("user_api") == "blas"]
    keys = ("internal_api", "version", "architecture", "num_threads", "filepath")
    return [{key: entry.get(key) for key in keys} for entry in libraries]


def kernels() -> str:
    """The BLAS in words, like "openblas 0.3.31 SkylakeX"; a name can stand for the machine's choice."""
    keys = ("internal_api", "version", "architecture")
    named = dict.fromkeys(
        " ".join(str(entry[key]) for key in keys if entry[key] is not None) for entry in blas_info()
    )
    return ", ".join(named) or "a BLAS that cannot be named"


def coretype() -> str | None:
    """The OPENBLAS_CORETYPE that gives a process the kernels of this one's NumPy; None for another BLAS."""
    named = {
        entry["architecture"]
        for entry in blas_info()
        if entry["internal_api"] == "openblas" and _numpys(entry)
    }
    return str(named.pop()) if len(named) == 1 else None


def _numpys(entry: dict[str, Any]) -> bool:
    """Whether a library is NumPy's own, where SciPy or others may have brought theirs."""
    return "scipy.libs" not in str(entry["filepath"]) and "torch" not in str(entry["filepath"])


_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
# What a processor must have (flags of /proc/cpuinfo) to run OpenBLAS's kernels of this name, oldest first.
NEEDS: dict[str, frozenset[str]] = {
    "Prescott": frozenset({"pni"}),
    "Nehalem": frozenset({"sse4_2"}),
    "Sandybridge": frozenset({"avx"}),
    "Haswell": frozenset({"avx2", "fma"}),
    "Zen": frozenset({"avx2", "fma"}),
    "SkylakeX": _AVX512,
    "Cooperlake": _AVX512 | {"avx512_bf16"},
    "SapphireRapids": _AVX512 | {"avx512_bf16"},
}


def runnable() -> set[str]:
    """Those of NEEDS that this processor can run; all where its flags cannot be read."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next(set(line.split(":")[1].split()) for line in file if line.startswith("flags"))
    except (OSError, StopIteration):
        return set(NEEDS)
    return {name for name, needed in NEEDS.items() if needed <= flags}


@cache
def _libraries() -> list[Any]:
    """Controllers of the BLAS libraries that are loaded; NumPy's is, since only its users ask."""
    from threadpoolctl import ThreadpoolController

    return [lib for lib in ThreadpoolController().lib_controllers if lib.user_api == "blas"]


_lock = threading.Lock()
_inside = 0  # how many are within `one_thread` now
_before: list[int] = []  # threads of each library, to be restored


@contextlib.contextmanager
def one_thread() -> Iterator[int]:
    """Make BLAS use one thread for a while; yields how many threads it would have used.

    The setting is the process's: whoever comes while others are within shares it, the last one restores it.
    """
    global _inside, _before
    with _lock:
        if not _inside:
            _before = [library.get_num_threads() for library in _libraries()]
            _set([1] * len(_before), _before)
        _inside += 1
        allowed = max(_before, default=1)
    try:
        yield allowed
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _set(_before, [1] * len(_before))


def _set(threads: list[int], now: list[int]) -> None:
    for library, wanted, present in zip(_libraries(), threads, now, strict=True):
        if wanted != present:
            library.set_num_threads(wanted)
