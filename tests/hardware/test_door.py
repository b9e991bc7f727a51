"""What the door takes and refuses: a ValueError that names the argument, the value and what is allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rayemu.hardware import HardwareError, load_hardware

H100 = load_hardware("h100-sxm")
EXPERT: dict[str, Any] = dict(d_model=4096, d_ff=14336)
EVEN = np.full((4, 4), 1e6)
METHODS: list[Any] = [
    lambda rows: H100.expert_seconds(4096, 14336, rows),
    lambda rows: H100.expert_joules(4096, 14336, rows),
    lambda rows: H100.route_seconds(4096, 8, rows),
    lambda rows: H100.combine_seconds(4096, 2, rows),
]
NO_ROWS = [
    None,
    64.0,
    float("nan"),
    "64",
    True,
    -1,
    10**30,
    [1, -1],
    [True],
    np.array([1.0]),
    [[1], [1, 2]],
    {},
]


@pytest.mark.parametrize("ask", METHODS)
@pytest.mark.parametrize("rows", NO_ROWS, ids=repr)
def test_what_are_no_rows(ask: Any, rows: Any) -> None:
    with pytest.raises(ValueError, match=r"^rows: [^\n]* is not allowed; ") as refused:
        ask(rows)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("ask", METHODS)
def test_rows_of_any_integer_type_and_shape(ask: Any) -> None:
    assert isinstance(ask(64), float) and isinstance(ask(np.uint8(64)), float)
    assert ask(np.int8(64)) == ask(64) == ask(np.array(64, np.uint64)) == ask([64])[0]
    assert ask([]).shape == (0,) and ask(np.zeros((2, 0), np.int32)).shape == (2, 0)
    assert np.allclose(ask([[1, 2], [3, 4]]), [[ask(1), ask(2)], [ask(3), ask(4)]], rtol=1e-14)


@pytest.mark.parametrize("name", ["d_model", "d_ff", "weight_bits"])
@pytest.mark.parametrize("value", [0, -1, 4096.0, "4096", True, [4096], 10**30, float("inf")], ids=repr)
def test_what_are_no_sizes(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: .* is not allowed; allowed: whole numbers from 1 to "):
        H100.expert_seconds(**{**EXPERT, "rows": 1, name: value})
    if name != "weight_bits":
        with pytest.raises(ValueError, match=rf"^{name}: None is not allowed"):
            H100.expert_joules(**{**EXPERT, "rows": 1, name: None})


def test_a_gate_is_there_or_not() -> None:
    with pytest.raises(ValueError, match=r"^gated: 'no' is not allowed; allowed: True or False"):
        H100.expert_seconds(**EXPERT, rows=1, gated="no")  # type: ignore[arg-type]
    assert H100.expert_seconds(**EXPERT, rows=1, gated=np.False_) < H100.expert_seconds(**EXPERT, rows=1)


NO_BYTES = [None, EVEN[:3], EVEN[0], EVEN * 1j, EVEN > 0, EVEN.astype(str), EVEN.astype("m8[s]"), -EVEN]
NO_BYTES += [EVEN * np.nan, EVEN * np.inf, [[1], [1, 2]], 5, []]


@pytest.mark.parametrize("sizes", NO_BYTES, ids=range(len(NO_BYTES)))
def test_what_is_no_exchange(sizes: Any) -> None:
    for ask in (H100.all_to_all_seconds, lambda sizes: H100.bandwidth_needed(sizes, 1.0)):
        with pytest.raises(ValueError, match=r"^bytes_between[: ][^\n]*$"):
            ask(sizes)


NO_NODES = [0, [0, 1], [[0]] * 4, [0.5, 1, 1, 0], list("abcd"), [None] * 4, [np.nan] * 4, [0, 0, 0, -1]]
NO_NODES += [[0, 0, 0, 10**9], [0, 0, 0, 10**12], [True, False, True, False]]


@pytest.mark.parametrize("nodes", NO_NODES, ids=repr)
def test_what_are_no_nodes(nodes: Any) -> None:
    with pytest.raises(ValueError, match=r"^module_to_node: [^\n]* is not allowed; [^\n]*$"):
        H100.all_to_all_seconds(EVEN, nodes)
    assert H100.all_to_all_seconds(EVEN, [0, 0, 1, 1]) > H100.all_to_all_seconds(EVEN)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "deadline", [None, "1 ms", float("nan"), float("inf"), True, [1.0], 1e-9, -1], ids=repr
)
def test_what_is_no_deadline(deadline: Any) -> None:
    with pytest.raises(ValueError, match=r"^deadline: .* is not allowed; "):
        H100.bandwidth_needed(EVEN, deadline)


@pytest.mark.parametrize(
    "held", [None, ["80 GB"], [np.nan, 1], [np.inf], [-1, 5], [True], [[1], [1, 2]]], ids=repr
)
def test_what_nobody_can_hold(held: Any) -> None:
    with pytest.raises(ValueError, match=r"^held: "):
        H100.check_fits(held)
    H100.check_fits([])
    H100.check_fits(np.array([80e9, 1], np.float32))
    with pytest.raises(HardwareError, match="module 1 would hold 90 GB"):
        H100.check_fits([1, 90 * 10**9])


def test_levels_that_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"^level: 'rack' is not allowed; allowed: bank, module, node, cluster"
    ):
        H100.level("rack")
