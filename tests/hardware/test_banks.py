"""Banks: against a memory that serves one access after another with a clock, and against sums by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rayemu.hardware import HardwareError, load_hardware
from rayemu.hardware.banks import (
    MAPPINGS,
    Layout,
    layout_of,
    locate,
    one_pass,
    pass_share,
    passes,
    row_share,
    serve,
    token_rows,
)
from rayemu.hardware.spec import RowBuffer
from rayemu.study.banks import TEXTS, study

NS = 1e-9


def timing(row: int = 256, burst: int = 32, active: float = 28) -> RowBuffer:
    times = {"activate": "12 ns", "precharge": "14 ns", "access": "18 ns", "gap": "2 ns"}
    return RowBuffer.model_validate(
        {"row": f"{row} B", "burst": f"{burst} B", **times, "active": f"{active} ns"}
    )


def step_by_step(bank, row, timing, banks, together=0, lookahead=1):
    """A clock for each bank: hits, busy time of every bank, and when all is done."""
    hits, seconds, work = 0, 0.0, 0.0
    size = together or max(len(bank), 1)
    for start in range(0, len(bank), size):
        ends = []
        for one in range(banks):
            queue = [int(row[i]) for i in range(start, min(start + size, len(bank))) if bank[i] == one]
            batches = [queue[at : at + lookahead] for at in range(0, len(queue), lookahead)]
            now, opened, since, end = 0.0, None, 0.0, 0.0
            for wanted in itertools.chain.from_iterable(sorted(batch) for batch in batches):
                if wanted == opened:
                    hits += 1
                else:
                    if opened is not None:
                        now = max(now, since + timing.active) + timing.precharge
                    opened, since = wanted, now
                    now += timing.activate
                end = now + timing.gap + timing.access
                now += timing.gap
            ends.append(end)
        seconds += max(ends)
        work += sum(ends)
    return hits, work, seconds


@pytest.mark.parametrize("together", [0, 7, 64])
@pytest.mark.parametrize("lookahead", [1, 3, 8])
@pytest.mark.parametrize("active", [0, 28, 60])
def test_served_as_one_access_after_another(together: int, lookahead: int, active: float) -> None:
    rng = np.random.default_rng(together + lookahead)
    bank, row = rng.integers(5, size=500), rng.integers(3, size=500)
    chosen = timing(active=active)
    served = serve(bank, row, chosen, 5, together=together, lookahead=lookahead)
    hits, work, seconds = step_by_step(bank, row, chosen, 5, together, lookahead)
    assert served.hit_rate == pytest.approx(hits / 500)
    assert served.seconds == pytest.approx(seconds)
    assert served.parallelism == pytest.approx(work / seconds)
    assert served.share == pytest.approx(500 * chosen.gap / (5 * seconds))


def test_two_rows_of_one_bank_by_hand() -> None:
    served = serve(np.zeros(8, int), np.repeat([0, 1], 4), timing(), 2)
    # Row 0: 12 + 4 x 2 = 20, but it stays open for 28, then 14 to close it; row 1: 12 + 8, 18 for its data.
    assert served.seconds == pytest.approx((28 + 14 + 12 + 8 + 18) * NS)
    assert (served.activations, served.hit_rate, served.touched) == (2, 0.75, 1)
    assert served.parallelism == 1


def layout(mapping: str, **more: int) -> Layout:
    sizes = {"banks": 4, "bank": 1 << 16, "row": 256, "burst": 32, "expert": 4096, "pitch": 512} | more
    return Layout(mapping, **sizes)


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("unit", [0, 128])
def test_every_burst_has_a_place_of_its_own(mapping: str, groups: int, unit: int) -> None:
    chosen = layout(mapping, groups=groups, experts=8, unit=unit)
    address = np.arange(0, 8 * 4096, 32)
    bank, row = locate(chosen, address)
    held = np.bincount(bank * 1000 + row)
    assert held.max() <= 256 / 32
    assert held.sum() == len(address)
    if mapping != "linear":
        assert np.bincount(bank, minlength=4).tolist() == [len(address) / 4] * 4


def test_mappings_by_hand() -> None:
    at = np.array([0, 32, 256, 1024, 1280, 4096])
    expected = {
        "linear": ([0, 0, 0, 0, 0, 0], [0, 0, 1, 4, 5, 16]),
        "row": ([0, 0, 1, 0, 1, 0], [0, 0, 0, 1, 1, 4]),
        "burst": ([0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 4]),
        "block": ([0, 0, 2, 0, 2, 0], [0, 0, 0, 1, 1, 4]),  # a bank has 128 bytes of every matrix row of 512
        "hashed": ([0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 4]),
        "group": (
            [0, 0, 1, 0, 1, 2],
            [0, 0, 0, 2, 2, 0],
        ),  # two groups of two banks: expert 1 is in the second
        "staggered": ([0, 0, 1, 0, 1, 2], [0, 0, 0, 1, 1, 4]),  # expert 1 begins two banks later
    }
    for mapping, (banks, rows) in expected.items():
        bank, row = locate(layout(mapping, groups=2, experts=2), at)
        assert (bank.tolist(), row.tolist()) == (banks, rows), mapping


def test_columns_of_a_block_stay_in_their_bank() -> None:
    """Output neurons of a matrix whose rows are 512 bytes: each quarter of every row is in one bank."""
    bank, _ = locate(layout("block"), np.arange(0, 4096, 32))
    assert (bank.reshape(8, 4, 4) == np.arange(4)[:, None]).all()


def test_a_pass_hits_all_but_the_first_burst_of_each_row() -> None:
    for mapping in MAPPINGS:
        chosen = layout(mapping, groups=4, experts=4)
        served = serve(*locate(chosen, one_pass(chosen, 4096)), timing(), 4)
        touched = 1 if mapping in ("linear", "group") else 4
        assert served.hit_rate == pytest.approx(7 / 8), mapping
        assert served.touched == touched
        assert served.parallelism == pytest.approx(touched), mapping


def test_passes_keep_each_experts_order_and_take_turns() -> None:
    chosen = layout("row")
    sizes = np.array([64, 0, 128])
    assert (passes(chosen, sizes) // 32).tolist() == [256, 0, 257, 258, 1, 259]
    assert (passes(chosen, np.array([32, 96])) // 4096).tolist() == [1, 0, 1, 1]  # in the middle, not last
    drawn = passes(chosen, np.array([4096, 4096, 1024]), np.random.default_rng(0))
    for expert, count in enumerate([128, 128, 32]):
        own = drawn[drawn // 4096 == expert] % 4096
        assert own.tolist() == list(range(0, count * 32, 32))
    assert (np.diff(drawn // 4096) != 0).mean() > 0.5  # mixed


def test_token_rows_by_hand() -> None:
    assert token_rows(layout("row"), np.array([3, 0]), 64).tolist() == [192, 224, 0, 32]


def test_scattered_rows_touch_as_many_banks_as_chance_has_it() -> None:
    """n balls in B boxes leave B (1 - 1/B)^n of them empty: 22 rows at once find 12.1 of 16 banks."""
    chosen = layout("row", banks=16, bank=1 << 20)
    drawn = np.random.default_rng(1).integers(1 << 16, size=22 * 400)
    bank, _ = locate(chosen, token_rows(chosen, drawn, 32))
    touched = np.mean([len(set(batch)) for batch in bank.reshape(-1, 22).tolist()])
    assert touched == pytest.approx(16 * (1 - (15 / 16) ** 22), abs=0.15)


def test_share_of_a_pass_by_hand() -> None:
    """64 bursts of 2 ns a row, 12 ns to open it and 14 to close it."""
    hardware = load_hardware("text-pim").spec
    assert pass_share(hardware, d_model=8192, d_ff=32768) == pytest.approx(128 / (12 + 128 + 14), rel=1e-3)
    assert row_share(hardware.module.banks.rows) == pytest.approx(128 / 154)  # type: ignore[arg-type]
    short = timing(row=64)  # two bursts, so that tRAS keeps it open
    assert row_share(short) == pytest.approx(4 / (28 + 14))
    linear = pass_share(hardware, "linear", d_model=8192, d_ff=32768)
    assert linear == pytest.approx(128 / (12 + 128 + 14) / 16, rel=1e-3)
    samsung = load_hardware("hbm2-pim").spec  # 32 bursts of 4 ns, tRCD 14 and tRP 14
    assert pass_share(samsung, d_model=4096, d_ff=14336) == pytest.approx(128 / 156, rel=1e-3)


def test_experts_that_span_banks_are_read_from_all_of_them() -> None:
    hardware = load_hardware("text-pim", "module.banks.capacity.value=16 GiB").spec
    share = pass_share(hardware, "linear", d_model=1 << 16, d_ff=1 << 14)  # 2 GiB in banks of 1 GiB
    assert share == pytest.approx(2 / 16 * 128 / 154, rel=1e-3)


def test_what_cannot_be_is_refused() -> None:
    for change, name in (
        ({"mapping": "diagonal"}, "mapping"),
        ({"mapping": "row", "burst": 48}, "burst"),
        ({"mapping": "block", "pitch": 100}, "pitch"),
        ({"mapping": "hashed", "banks": 6}, "banks"),
        ({"mapping": "group", "groups": 3}, "groups"),
        ({"mapping": "row", "unit": 40}, "unit"),
    ):
        with pytest.raises(ValueError, match=f"^{name}:"):
            layout(**change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"address: .* the banks hold"):
        locate(layout("row"), np.array([4 << 16]))
    with pytest.raises(ValueError, match=r"module\.banks\.rows is missing"):
        layout_of(load_hardware("h100-sxm").spec, "row", 1 << 20)
    with pytest.raises(ValueError, match="lookahead"):
        serve(np.zeros(1, int), np.zeros(1, int), timing(), 1, lookahead=0)


def test_the_texts_mapping_by_its_own_batch() -> None:
    """Text 000, 11.2.2: bank 2 (e mod 8) + layer mod 2; 64 tokens of top-2 of 32 keep about 12 of 16 busy.

    By tokens alone: the fullest bank has as much as all, shared by that many.
    """
    rng = np.random.default_rng(0)
    busy = []
    for _ in range(300):
        banks = np.zeros(16)
        for layer in range(2):
            for _token in range(64):
                for expert in rng.choice(32, 2, replace=False):
                    banks[2 * (expert % 8) + layer] += 1
        busy.append(banks.sum() / banks.max())
    assert 10.5 < np.mean(busy) < 12.5


def test_study_finds_the_texts_row_hits_where_half_the_experts_are_at_work() -> None:
    """45 % under its mapping, 70 to 81 % interleaved its way (rows of 2 and 4 KiB), 18 % by plain rows."""
    found = {}
    for size in ("2 KiB", "4 KiB"):
        hardware = load_hardware("text-pim", f"module.banks.rows.row.value={size}")
        lines = study(hardware)
        found[size] = {line.mapping: line for line in lines if line.reading == "experts"}
        alone = {line.mapping: line.hit_rate for line in lines if line.reading == "pass"}
        assert min(alone.values()) > 0.95  # no mapping spoils a pass by itself
    assert found["2 KiB"]["the texts', one bank each"].hit_rate == pytest.approx(0.46, abs=0.03)
    assert found["2 KiB"]["the texts', interleaved"].hit_rate == pytest.approx(0.70, abs=0.03)
    assert found["4 KiB"]["the texts', interleaved"].hit_rate == pytest.approx(0.81, abs=0.03)
    assert found["2 KiB"]["row"].hit_rate < 0.3


@pytest.mark.parametrize("name", ["hbm2-pim", "text-pim"])
def test_study_on_the_parts_that_say_how_their_rows_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayemu.study.banks.BATCHES", 2)
    lines = study(load_hardware(name), lookahead=8)
    count = load_hardware(name).spec.module.banks.count
    assert {line.reading for line in lines} == {"pass", "experts", "batch", "tokens"}
    assert all(
        0 <= line.hit_rate < 1 and 0 < line.parallelism <= line.touched + 1e-9 <= count + 1 for line in lines
    )


def test_study_without_rows_is_refused() -> None:
    with pytest.raises(HardwareError, match=r"h100-sxm: module\.banks\.rows: is missing"):
        study(load_hardware("h100-sxm"))
    with pytest.raises(HardwareError, match=r"module\.banks\.rows: burst: 32"):
        study(load_hardware("text-pim", "module.banks.rows.row.value=100 B"))
    with pytest.raises(HardwareError, match=r"module\.banks\.capacity: 1 MB is too little"):
        study(load_hardware("text-pim", "module.banks.capacity.value=1 MB"))


def test_study_of_odd_banks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six banks have no hash, one has nothing to deal to; tRAS and rows of one burst change no count."""
    monkeypatch.setattr("rayemu.study.banks.BATCHES", 1)
    mappings = {line.mapping for line in study(load_hardware("text-pim", "module.banks.count.value=6"))}
    assert mappings == {*MAPPINGS, *TEXTS} - {"hashed"}
    alone = study(load_hardware("text-pim", "module.banks.count.value=1"))
    assert {line.parallelism for line in alone} == {1.0}
    short = study(load_hardware("text-pim", "module.banks.rows.row.value=32 B"))
    assert {line.hit_rate for line in short if line.reading == "pass"} == {0.0}
