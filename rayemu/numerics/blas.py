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
