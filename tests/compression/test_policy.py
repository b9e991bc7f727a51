"""Policies: which codec rows get."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from rayemu.compression import CodecError, make_codec, make_policy


def chosen(spec: object, rows: int) -> str:
    policy = make_policy(spec)
    return str(policy.codecs[policy.chooser().choose(np.zeros((rows, 8), np.float32))])


def test_a_codec_is_the_simplest_policy() -> None:
    assert chosen("int8+zstd", 5) == chosen("int8+zstd", 0) == "int8+zstd"
    assert str(make_policy({"int8": {"group": 128}})) == "int8(group=128)"


def test_by_size_sends_few_rows_the_smallest() -> None:
    """C8: INT4 under 16 rows, INT8 under 64, FP16 above."""
    found = {rows: chosen("by_size", rows) for rows in (0, 15, 16, 63, 64, 5000)}
    assert found == {0: "int4", 15: "int4", 16: "int8", 63: "int8", 64: "fp16", 5000: "fp16"}
    steps = {"by_size": [[4, "int8+zstd"], "raw"]}
    assert (chosen(steps, 3), chosen(steps, 4)) == ("int8+zstd", "raw")
    assert chosen({"by_size": ["bf16"]}, 1) == "bf16"


@pytest.mark.parametrize("given", [[], [[4, "int8"]], 5, "int8", [[4], "raw"], [["4", "int8"], "raw"]])
def test_by_size_refuses_what_is_no_table(given: object) -> None:
    with pytest.raises(CodecError, match="by_size"):
        make_policy({"by_size": given})


def test_by_size_refuses_numbers_that_do_not_rise() -> None:
    for limits in ((8, 8), (8, 4), (0, 4)):
        with pytest.raises(CodecError, match="must rise"):
            make_policy({"by_size": [[limits[0], "int8"], [limits[1], "int4"], "raw"]})
    with pytest.raises(CodecError, match="unknown codec stage 'int9'"):
        make_policy({"by_size": [[8, "int9"], "raw"]})


@pytest.mark.parametrize("spec", ["int8", "by_size", "auto", {"deadline": {"within_ms": 2}}])
def test_policies_travel_to_other_processes(spec: str) -> None:
    policy = make_policy(spec)
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(make_policy(spec)) and str(policy)
    assert all(make_codec(str(codec)) == codec for codec in policy.codecs)
