"""Time and energy of a pass against calculations by hand; the toy's numbers are explained beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rayemu.hardware import load_hardware

from .toy import number, toy

EXPERT = dict(d_model=2, d_ff=3)
COMPUTE = "module.compute"


def seconds(folder: Path, rows: int, *changes: str, **how: object) -> float:
    return float(toy(folder, *changes).expert_seconds(**EXPERT, rows=rows, **how))  # type: ignore[arg-type]


def test_the_longer_of_memory_and_arithmetic(tmp_path: Path) -> None:
    """2 s to read the weights once; a row is 1 s of arithmetic: they meet at two rows."""
    rows = np.array([0, 1, 2, 3, 4])
    assert toy(tmp_path).expert_seconds(**EXPERT, rows=rows).tolist() == [0, 2, 2, 3, 4]


def test_without_gate_two_matrices(tmp_path: Path) -> None:
    assert seconds(tmp_path, 1, gated=False) == pytest.approx(2 * 2 / 3)
    assert seconds(tmp_path, 9, gated=False) == pytest.approx(9 * 2 / 3)


def test_fewer_bits_are_read_quicker_and_computed_alike(tmp_path: Path) -> None:
    assert seconds(tmp_path, 1, weight_bits=8) == 1
    assert seconds(tmp_path, 1, weight_bits=4) == 1  # 0.5 s of memory, 1 s of arithmetic
    assert seconds(tmp_path, 1, weight_bits=32) == 4


def test_weights_are_read_again_for_every_so_many_rows(tmp_path: Path) -> None:
    changes = number(f"{COMPUTE}.inputs", 2)
    assert [seconds(tmp_path, rows, changes) for rows in (1, 2, 3, 4, 5)] == [2, 2, 4, 4, 6]


def test_the_power_limit_and_the_share(tmp_path: Path) -> None:
    assert seconds(tmp_path, 1, number("module.banks.limit", "12 B/s")) == 3
    assert seconds(tmp_path, 1, number("module.banks.share", 0.5)) == 4
    assert seconds(tmp_path, 8, number(f"{COMPUTE}.share", 0.5)) == 16


def test_whole_tiles_are_computed(tmp_path: Path) -> None:
    changes = number(f"{COMPUTE}.tile", 4)
    assert [seconds(tmp_path, rows, changes) for rows in (1, 4, 5)] == [4, 4, 8]


def test_overlap_is_a_norm_of_both_times(tmp_path: Path) -> None:
    """Each of the two products has two thirds and one third of both times: 3 s and 4 s, norm 2: 5 s."""
    three = number("module.banks.bandwidth", "6 B/s")
    assert seconds(tmp_path, 4, three, number(f"{COMPUTE}.overlap", 2.0)) == pytest.approx(5)
    assert seconds(tmp_path, 4, three, number(f"{COMPUTE}.overlap", 1.0)) == pytest.approx(7)
    assert seconds(tmp_path, 4, three, number(f"{COMPUTE}.overlap", 100.0)) == pytest.approx(4)
    assert seconds(tmp_path, 0, three, number(f"{COMPUTE}.overlap", 2.0)) == 0


def test_launching_is_a_floor_and_overhead_is_not(tmp_path: Path) -> None:
    floor = (number(f"{COMPUTE}.kernels", 4), number(f"{COMPUTE}.launch", "2 s"))
    over = number(f"{COMPUTE}.overhead", "3 s")
    assert [seconds(tmp_path, rows, *floor) for rows in (1, 8, 9)] == [8, 8, 9]
    assert [seconds(tmp_path, rows, *floor, over) for rows in (1, 5, 9)] == [8, 8, 12]


def test_activations_in_memory_are_moved_too(tmp_path: Path) -> None:
    """A row: 2 in, 6 out, 15 for silu and product, 3 in, 2 out: 28 values, 56 B at 18 B/s beside the 2 s.

    Arithmetic (1 s, then 0 with a rate out of reach) is hidden behind the memory.
    """
    changes = (f"{COMPUTE}.activations=memory", f"{COMPUTE}.rates.fp16.value=1 TFLOP/s")
    assert seconds(tmp_path, 1, *changes) == pytest.approx(2 + 56 / 18)
    # without gate: 2 in, 3 out, 6 for silu, 3 in, 2 out: 16 values
    assert seconds(tmp_path, 1, *changes, gated=False) == pytest.approx((24 + 32) / 18)


def test_weights_that_are_fetched_come_first(tmp_path: Path) -> None:
    fetch = "module.fetch={bandwidth: {value: 4 B/s, source: x}, latency: {value: 1 s, source: x}}"
    assert seconds(tmp_path, 1, fetch) == 1 + 36 / 4 + 2
    assert seconds(tmp_path, 0, fetch) == 0


def test_joules_of_reading_computing_and_waiting(tmp_path: Path) -> None:
    """288 bits at 1 mJ, 36 operations a row at 0.5 mJ; static power for 2 s and 3 s."""
    hardware = toy(tmp_path, number("energy.static", "1 W"))
    assert hardware.expert_joules(**EXPERT, rows=1, static=False) == pytest.approx(0.288 + 0.018)
    assert hardware.expert_joules(**EXPERT, rows=3, static=False) == pytest.approx(0.288 + 0.054)
    assert hardware.expert_joules(**EXPERT, rows=1) == pytest.approx(0.306 + 2)
    assert hardware.expert_joules(**EXPERT, rows=3) == pytest.approx(0.342 + 3)
    assert hardware.expert_joules(**EXPERT, rows=0) == 0


def test_joules_follow_what_is_read_again_moved_and_fetched(tmp_path: Path) -> None:
    again = toy(tmp_path, number("module.compute.inputs", 1))
    assert again.expert_joules(**EXPERT, rows=3) == pytest.approx(3 * 0.288 + 0.054)
    moved = toy(tmp_path, number("energy.activations", "1 mJ/bit"))  # 2 values in and out: 64 bits
    assert moved.expert_joules(**EXPERT, rows=1) == pytest.approx(0.306 + 0.064)
    memory = toy(tmp_path, number("energy.activations", "1 mJ/bit"), f"{COMPUTE}.activations=memory")
    assert memory.expert_joules(**EXPERT, rows=1) == pytest.approx(0.306 + 0.448)  # 56 bytes
    fetch = "module.fetch={bandwidth: {value: 4 B/s, source: x}, latency: {value: 1 s, source: x}}"
    fetched = toy(tmp_path, fetch, number("energy.fetch", "1 mJ/bit"))
    assert fetched.expert_joules(**EXPERT, rows=5) == pytest.approx(0.288 + 0.09 + 0.288)


def test_a_module_draws_no_more_than_its_limit(tmp_path: Path) -> None:
    hardware = toy(tmp_path, number("energy.static", "10 mW"), number("energy.busy", "110 mW"))
    assert hardware.expert_joules(**EXPERT, rows=1) == pytest.approx(0.11 * 2)
    assert hardware.expert_joules(**EXPERT, rows=1, static=False) == pytest.approx(0.1 * 2)


def test_one_number_gives_a_float_and_arrays_keep_their_shape(tmp_path: Path) -> None:
    hardware = toy(tmp_path)
    for ask in (hardware.expert_seconds, hardware.expert_joules):
        assert isinstance(ask(**EXPERT, rows=3), float)
        assert ask(**EXPERT, rows=np.ones((2, 3), int)).shape == (2, 3)
        assert ask(**EXPERT, rows=np.zeros(0, int)).shape == (0,)
        assert ask(**EXPERT, rows=[1, 2]).shape == (2,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (dict(d_model=0, d_ff=3, rows=1), "d_model: 0"),
        (dict(d_model=2, d_ff=-1, rows=1), "d_ff: -1"),
        (dict(d_model=2, d_ff=3, rows=-1), "rows: -1"),
        (dict(d_model=2, d_ff=3, rows=1.5), "rows: 1.5"),
        (dict(d_model=2, d_ff=3, rows=np.array([1.0])), "rows"),
        (dict(d_model=[2], d_ff=3, rows=1), "d_model"),
        (dict(d_model=True, d_ff=3, rows=1), "d_model: True"),
        (dict(d_model=2, d_ff=3, rows=1, weight_bits=0), "weight_bits: 0"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(tmp_path: Path, given: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        toy(tmp_path).expert_seconds(**given)


def test_sizes_of_any_integer_type(tmp_path: Path) -> None:
    """16,384 x 65,536 x 3 weights are more than an int32 holds."""
    small, plain = np.int32(16384), 16384
    hardware = toy(tmp_path)
    for ask in (hardware.expert_seconds, hardware.expert_joules):
        assert ask(small, 4 * small, np.int8(3)) == ask(plain, 4 * plain, 3)


def test_the_texts_module() -> None:
    """Mixtral's expert: 352,321,536 B at 256 GB/s; eight rows are 2.8186 GFLOP at 1 TFLOPS."""
    hardware = load_hardware("text-pim")
    assert hardware.expert_seconds(4096, 14336, 1) == pytest.approx(1.376256e-3)
    assert hardware.expert_seconds(4096, 14336, 8) == pytest.approx(2.818572288e-3)
    assert hardware.expert_joules(4096, 14336, 1) == pytest.approx(
        352321536 * 8 * 3.2e-12 + 352321536 * 0.5e-12
    )


def test_pim_of_one_input_takes_each_row_s_time() -> None:
    """HBM2-PIM: 352,321,536 B at 1,228.8 GB/s, as long as its arithmetic."""
    hardware = load_hardware("hbm2-pim")
    assert hardware.expert_seconds(4096, 14336, 1) == pytest.approx(286.72e-6)
    assert hardware.expert_seconds(4096, 14336, 100) == pytest.approx(28672e-6)


def test_a_gpu_that_fetches_is_slower_until_many_rows_share_the_fetch() -> None:
    fetching, holding = load_hardware("h100-offload"), load_hardware("h100-sxm")
    rows = np.array([1, 4096])
    fetched = fetching.expert_seconds(4096, 14336, rows) - holding.expert_seconds(4096, 14336, rows)
    assert fetched == pytest.approx([352321536 / 54.9e9] * 2, rel=0.01)


def test_a_power_limit_is_shared_out_like_the_banks_bandwidth(tmp_path: Path) -> None:
    """36 B at half of 12 B/s; not at half of the banks' 18 B/s, which the limit would not touch."""
    hw = toy(tmp_path, number("module.banks.limit", "12 B/s"), number("module.banks.share", 0.5))
    assert hw.expert_seconds(2, 3, 1) == pytest.approx(6.0)


def test_routing_and_combining_by_hand(tmp_path: Path) -> None:
    """Three rows of D 2 with four experts: 48 operations, (6 + 8) values of 4 B; K 2: 18 values of 2 B."""
    hw = toy(tmp_path)
    assert hw.route_seconds(2, 4, 3) == pytest.approx(56 + 1)  # more bytes than operations
    assert hw.route_seconds(2, 4, np.array([0, 100])).tolist() == pytest.approx([0, 1600 + 1])
    assert hw.combine_seconds(2, 2, 3) == pytest.approx(36 / 18)
    router = "router={macs: {value: 3, source: x}, comparators: {value: 3, source: x}, "
    hw = toy(tmp_path, router + "clock: {value: 2 Hz, source: x}}")
    assert hw.route_seconds(2, 4, 3) == pytest.approx(3 * (3 + 2) / 2)  # 8 MACs by threes, 4 scores by threes
