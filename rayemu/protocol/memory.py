"""Memory for rows that will be sent, of which the driver may know a better place; mapped files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

NewRows = Callable[[int, int], np.ndarray]  # (n, D) -> float32 [n, D], its content is whatever was there
Lends = Callable[[int, np.ndarray], bool]  # (to, rows) -> whether `to` can read these rows where they lie


def fresh_rows(rows: int, width: int) -> np.ndarray:
    """Ordinary memory."""
    return np.empty((rows, width), np.float32)


def lends_nothing(to: int, rows: np.ndarray) -> bool:
    """No memory is shared."""
    return False


def rows_at(rows: np.ndarray, index: np.ndarray, new_rows: NewRows) -> np.ndarray:
    """Copy rows [index] of `rows` [n, D]; every index must be in range."""
    taken = new_rows(len(index), rows.shape[1])
    return np.take(rows, index, axis=0, out=taken, mode="clip")  # without a mode it would buffer


def open_with_room(path: Path, size: int) -> int:
    """Open a file that is to be mapped, with room on its disk for `size` bytes; return the descriptor.

    What is there stays; what is new reads as zero. Without room, SIGBUS ends whoever writes through a map of
    it. Raises OSError, which names the file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:  # macOS
            present = os.fstat(descriptor).st_size
            os.pwrite(descriptor, bytes(max(0, size - present)), present)
    except OSError as error:
        os.close(descriptor)
        raise OSError(error.errno, error.strerror, str(path)) from None
    return descriptor
