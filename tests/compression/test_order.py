"""How codecs are written, and which orders of stages are refused."""

from __future__ import annotations

import pytest

from rayemu.compression import Codec, CodecError, make_codec


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("raw", "raw"),
        ("zstd", "raw+zstd"),
        ("fp16", "fp16"),
        ("fp16+raw", "fp16"),
        ("fp16+int8", "fp16+int8"),
        ("bf16+zstd", "bf16+zstd"),
        (" int8 ( group = 128 ) + zstd ( 3 ) ", "int8(group=128)+zstd(level=3)"),
        ("int8(0)", "int8"),
        ("zstd(1)", "raw+zstd"),
        ("sparse(0.0)+int8(group=128)+zstd(1)", "sparse+int8(group=128)+zstd"),
        ("sparse(1e-3)", "sparse(threshold=0.001)"),
        ("sparse(1e+1)+raw", "sparse(threshold=10.0)"),
        ("sparse(2)", "sparse(threshold=2.0)"),
        ({"int8": None, "zstd": 3}, "int8+zstd(level=3)"),
        ({"int8": {"group": 64}, "zstd": {}}, "int8(group=64)+zstd"),
    ],
)
def test_spec_and_canonical_name(spec, name) -> None:
    assert make_codec(spec).name == name


@pytest.mark.parametrize(
    ("spec", "follow"),
    [
        ("int8+fp16", "zstd"),
        ("raw+int8", "zstd"),
        ("int8+sparse", "zstd"),
        ("int8+int8", "zstd"),
        ("sparse+bf16", "raw, int8, int4, fp8, planes, zstd"),
        ("sparse+sparse", "raw, int8, int4, fp8, planes, zstd"),
        ("fp16+bf16", "raw, int8, int4, fp8, sparse, blocks, planes, zstd"),
        ("fp16+fp16", "raw, int8, int4, fp8, sparse, blocks, planes, zstd"),
        ("zstd+int8", "nothing"),
        ("zstd+zstd", "nothing"),
    ],
)
def test_wrong_order_says_what_may_follow(spec, follow) -> None:
    with pytest.raises(CodecError, match="cannot come after") as caught:
        make_codec(spec)
    listed = str(caught.value).split("what may follow: ")[1]
    assert sorted(listed.split(", ")) == sorted(follow.split(", "))
    with pytest.raises(CodecError):
        make_codec(dict.fromkeys(spec.split("+"))) if len(set(spec.split("+"))) > 1 else Codec(())


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("foo", "known are fp16, bf16, delta, project, raw, int8, int4, fp8, sparse, blocks, planes, zstd"),
        ("int8+foo", "unknown codec stage 'foo'"),
        ("", "unreadable"),
        ("int8+", "unreadable"),
        ("+int8", "unreadable"),
        ("int8 zstd", "unreadable"),
        ("int8(group=128", "unreadable"),
        ("int8(grp=1)", "allowed: group"),
        ("raw(1)", "allowed: none"),
        ("int8(1,2)", "unknown parameter 2"),
        ("int8(128,group=128)", "given twice"),
        ("int8(group=128,group=64)", "given twice"),
        ("int8(group=x)", "not a number"),
        ("int8(group=1.5)", "allowed is 0"),
        ("int8(group=15)", "allowed is 0"),
        ("int8(group=-128)", "allowed is 0"),
        ("zstd(0)", "from 1 to 19"),
        ("zstd(20)", "from 1 to 19"),
        ("sparse(-1)", "finite number from 0"),
        ("sparse(nan)", "finite number from 0"),
        ("sparse(inf)", "finite number from 0"),
        ({"int8": {"group": "128"}}, "allowed is 0"),
        ({"zstd": True}, "from 1 to 19"),
        ({"sparse": "0.5"}, "finite number from 0"),
        ({1: None}, "unknown codec stage 1"),
        ({}, "at least one stage"),
        (None, "not NoneType"),
        (3, "not int"),
    ],
)
def test_bad_specs_say_what_is_allowed(spec, says) -> None:
    with pytest.raises(CodecError) as caught:
        make_codec(spec)
    assert says in str(caught.value)
