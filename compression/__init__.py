"""rayemu.compression: rows of floats to bytes and back, by codecs composed of typed stages.

    codec = make_codec("sparse(0.01)+int8(group=128)+zstd")
    meta, segments = codec.encode(x)                      # x float32 [n, D]
    x = codec.decode(meta, segments, x.shape)

    frame = pack(header, segments)                        # one checksummed buffer
    header, segments = unpack(frame)

`STAGES` is the table of every stage, by the three types in the order in which they follow each other.
"""

from __future__ import annotations

if __name__ == "compression":
    # Python 3.14 has a standard package of this name. Where the repository's root is on the path, as with
    # `python -m` from there, its modules look for it here, and are sent on.
    import os

    __path__ = [os.path.join(os.path.dirname(os.__file__), "compression")]
else:
    from .family import *  # noqa: F403
    from .family import __all__  # noqa: F401
