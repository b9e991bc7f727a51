"""The tables of all stages and policies, and how text becomes a codec or a policy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from .adaptive import Auto, Deadline
from .bf16 import Bf16
from .blocks import Blocks
from .codec import BFLOAT16, Codec, Encoded
from .delta import Delta
from .errors import CodecError, WireError
from .fp8 import Fp8
from .fp16 import Fp16
from .frames import decode_frame, encode_frame
from .gauge import Coders, Gauge
from .int4 import Int4
from .int8 import Int8
from .parse import parse_stages
from .planes import Planes
from .policy import BySize, CodecChange, Fixed, Policy
from .project import Project
from .raw import Raw
from .sparse import Sparse
from .stage import ArrayStage, ByteStage, PackStage, SelectStage, Stage
from .wire import pack, pack_pieces, unpack
from .zstd import Zstd

ARRAY_STAGES: dict[str, type[Stage]] = {"fp16": Fp16, "bf16": Bf16, "delta": Delta, "project": Project}
SEGMENT_STAGES: dict[str, type[Stage]] = {
    "raw": Raw,
    "int8": Int8,
    "int4": Int4,
    "fp8": Fp8,
    "sparse": Sparse,
    "blocks": Blocks,
    "planes": Planes,
}
BYTE_STAGES: dict[str, type[Stage]] = {"zstd": Zstd}
STAGES: dict[str, type[Stage]] = {**ARRAY_STAGES, **SEGMENT_STAGES, **BYTE_STAGES}
POLICIES: dict[str, Any] = {"by_size": BySize, "deadline": Deadline, "auto": Auto}


def make_codec(spec: str | Mapping[str, Any] | Codec) -> Codec:
    """A codec from text such as "int8(group=128)+zstd(3)", or from a mapping of stages to parameters.

    `raw` is filled in where no stage stores the values. Raises CodecError for an unknown stage or parameter,
    and for stages in a wrong order, naming what may follow.
    """
    if isinstance(spec, Codec):
        return spec
    return _from_text(spec) if isinstance(spec, str) else Codec(parse_stages(spec, STAGES))


@lru_cache(maxsize=256)
def _from_text(text: str) -> Codec:
    return Codec(parse_stages(text, STAGES))


def make_policy(spec: Any) -> Policy:
    """A policy of `POLICIES` by name or {name: parameters}, or the single codec that `spec` describes."""
    if isinstance(spec, str) and spec in POLICIES:
        return POLICIES[spec].build(None, make_codec)  # type: ignore[no-any-return]
    if isinstance(spec, Mapping) and len(spec) == 1 and next(iter(spec)) in POLICIES:
        ((name, given),) = spec.items()
        return POLICIES[name].build(given, make_codec)  # type: ignore[no-any-return]
    return Fixed(make_codec(spec))


__all__ = [
    "ARRAY_STAGES",
    "BFLOAT16",
    "BYTE_STAGES",
    "POLICIES",
    "SEGMENT_STAGES",
    "STAGES",
    "ArrayStage",
    "ByteStage",
    "Codec",
    "CodecChange",
    "CodecError",
    "Coders",
    "Encoded",
    "Gauge",
    "PackStage",
    "Policy",
    "SelectStage",
    "Stage",
    "WireError",
    "decode_frame",
    "encode_frame",
    "make_codec",
    "make_policy",
    "pack",
    "pack_pieces",
    "unpack",
]
