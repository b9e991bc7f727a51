"""Denormal numbers are computed with, whatever mode the process is in.

A shared library that was linked with -ffast-math switches the thread that loads it to flush them to zero, and
threads inherit that. The same code then gives other bits (an fp8 code below 2^-6 is a denormal float32 on its
way), so whatever must agree with other processes asks for them. OpenBLAS starts its own threads as NumPy is
loaded, and nobody can switch those: where the mode had to be changed, products stay in their caller's thread.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rayemu.numerics.blas import one_thread

_SMALLEST_NORMAL = sys.float_info.min
_DENORMAL: float = struct.unpack("<d", b"\x01" + bytes(7))[0]  # by its bits: literals are computed
_FENV_BYTES = 256  # more than any platform's fenv_t
_NOTICE = (
    "this thread flushes denormal floats to zero (some library of this process was built with -ffast-math)"
)


class DenormalsFlushed(RuntimeError):
    """Denormals are flushed to zero, and the mode cannot be changed."""


def keeps_denormals() -> bool:
    """Whether this thread neither takes denormals for zero nor turns results into zero instead of them."""
    return _SMALLEST_NORMAL * 0.5 != 0.0 and _DENORMAL * 2.0**60 != 0.0


@contextmanager
def denormals_kept() -> Iterator[None]:
    """Compute with denormals inside, then give the thread its mode back. Raises DenormalsFlushed."""
    if keeps_denormals():
        yield
        return
    before = ctypes.create_string_buffer(_FENV_BYTES)
    ctypes.CDLL(None).fegetenv(before)
    keep_denormals()
    try:
        with one_thread():
            yield
    finally:
        ctypes.CDLL(None).fesetenv(before)


def keep_denormals() -> bool:
    """Let this thread, and those it starts, compute with denormals; tell whether that was news.

    Raises DenormalsFlushed.
    """
    if keeps_denormals():
        return False
    library = ctypes.CDLL(None)
    try:
        default = (
            ctypes.byref(ctypes.c_char.in_dll(library, "_FE_DFL_ENV"))
            if sys.platform == "darwin"
            else ctypes.c_void_p(-1)  # FE_DFL_ENV of glibc and musl
        )
        library.fesetenv(default)
    except (AttributeError, ValueError):  # a libc without it
        pass
    if not keeps_denormals():
        raise DenormalsFlushed(f"{_NOTICE}, and that cannot be changed here: start without that library")
    return True


def denormals_notice() -> str | None:
    """What to tell the user where this thread flushes denormals; None where it does not."""
    return None if keeps_denormals() else f"{_NOTICE}; rayemu computes with them, on one BLAS thread"
