"""The directory of a run's sockets and records: which it is, and whether sockets and Ray can live there."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from pathlib import Path

from rayemu.units import format_bytes

SOCKET_PATH_LIMIT = 107 if sys.platform == "linux" else 103  # bytes of a Unix socket's path
SOCKET_PATH = "/rayemu-01234567/coordinator.client"  # the longest of ours
SOCKET_PATH_OF_RAY = "/rayemu-01234567/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
FORBIDDEN = "#|'\\"  # the first two have a meaning in endpoints, Ray's command lines break with the others
LEAST_BYTES = 1 << 20  # with less not even Ray's own files fit


def temporary_directory() -> Path:
    """Return the directory for temporary files; on macOS /tmp, since its own is too long for sockets."""
    given = Path(tempfile.gettempdir())
    return Path("/tmp") if sys.platform == "darwin" and _size(given) > _room(True) else given


def new_directory() -> Path:
    """Name a directory for a run, below that for temporary files."""
    return temporary_directory() / f"rayemu-{uuid.uuid4().hex[:8]}"


def _size(path: Path) -> int:
    return len(os.fsencode(path))


def _room(with_ray: bool) -> int:
    """Bytes that the path of a directory may have so that sockets can lie below it."""
    longest = SOCKET_PATH_OF_RAY.format(pid=os.getpid()) if with_ray else SOCKET_PATH
    return SOCKET_PATH_LIMIT - len(longest)


def path_fault(temporary: Path, with_ray: bool) -> str:
    """Say why sockets, and Ray's own files if they are to lie there too, cannot live below this directory.

    Empty if they can. Ray cannot pass on characters that are not ASCII.
    """
    size, room = _size(temporary), _room(with_ray)
    if size > room:
        return (
            f"{temporary} is too long a path for sockets below it: {size} bytes; at most {room} can be used"
        )
    strange = "".join(c for c in dict.fromkeys(str(temporary)) if c in FORBIDDEN or not " " <= c <= "~")
    if strange:
        return f"{str(temporary)!r} has characters that Ray or sockets cannot take: {strange!r}"
    return ""


def room_fault(temporary: Path) -> str:
    """Say if the disk of this directory is full; OSError if it cannot be asked."""
    free = shutil.disk_usage(temporary).free
    if free < LEAST_BYTES:
        return f"{temporary} has {format_bytes(free)} free, {format_bytes(LEAST_BYTES)} is the least"
    return ""
