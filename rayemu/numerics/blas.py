"""The BLAS libraries of this process: what they are, and how many threads they use.

A library with threads of its own has one number for the process, one of OpenMP a number for every thread that
calls it. threadpoolctl sets them, but leaves a number for the process to the first thread that asked; here
whoever multiplies must be obeyed.
"""

from __future__ import annotations

import contextlib
import os
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
_inside: set[object] = set()  # those that are within `one_thread` now
_before: list[int] = []  # threads of each library, to be restored


def set_blas_threads(count: int) -> None:
    """Have BLAS use so many threads from now on (with OpenMP: for the products of this thread)."""
    global _before
    with _lock:
        if _inside:
            _before = [count] * len(_before)
        for library in _libraries():
            if not _inside or _by_caller(library):
                _set(library, count)


def thread_count() -> int:
    """The threads that BLAS uses for a product now; 1 where that cannot be known."""
    return max((library.get_num_threads() for library in _libraries()), default=1)


@contextlib.contextmanager
def blas_threads(count: int) -> Iterator[None]:
    """Have BLAS use so many threads for a while."""
    before = thread_count()
    set_blas_threads(count)
    try:
        yield
    finally:
        set_blas_threads(before)


@contextlib.contextmanager
def one_thread() -> Iterator[int]:
    """Make BLAS use one thread for a while; yields how many threads it would have used.

    Where the setting is the process's, whoever comes while others are within shares it, and the last one
    restores it.
    """
    global _before
    me = object()
    own = {each: each.get_num_threads() for each in _libraries() if _by_caller(each)}
    try:  # from here on, since Ctrl-C may come at any place
        with _lock:
            if not _inside:
                _before = [library.get_num_threads() for library in _libraries()]
            _inside.add(me)
            for library in _libraries():
                _set(library, 1)
            allowed = max(_before, default=1)
        yield allowed
    finally:
        with _lock:
            if me in _inside:
                _inside.remove(me)
                for library, count in zip(_libraries(), _before, strict=True):
                    if not _inside or library in own:
                        _set(library, own.get(library, count))


def _by_caller(library: Any) -> bool:
    """Whether each thread that calls a library has its own number of threads."""
    return getattr(library, "threading_layer", None) == "openmp"


def _set(library: Any, count: int) -> None:
    free = getattr(library, "clear_controlling_thread", None)
    for _ in range(100):  # another user of threadpoolctl may come between
        if library.get_num_threads() == count:
            return
        if free is not None:
            free(force=True)
        library.set_num_threads(count)


def _after_fork() -> None:
    """A child has none of the threads that may be within, or hold the lock."""
    global _lock
    _lock = threading.Lock()
    if _inside:
        _inside.clear()
        for library, count in zip(_libraries(), _before, strict=True):
            _set(library, count)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
