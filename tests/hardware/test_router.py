"""Routing priced: trees against sorting and counting, silicon and places against sums by hand."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from rayemu.cli import app
from rayemu.hardware import load_hardware
from rayemu.hardware.router import (
    PLACES,
    Work,
    accelerator,
    grouped_cycles,
    merge_comparators,
    pair_winner_cycles,
    pair_winners_right,
    places,
    saved_by_choices,
    serial_cycles,
    tree_comparators,
    tree_cycles,
)

PIM = load_hardware("text-pim")  # links of 200 GB/s and 100 ns inside a node of eight
TEXT = Work(64, 8192, 32, 2, 8)
NS = 1e-9


def merged(one: list[float], other: list[float], top_k: int) -> tuple[list[float], int]:
    """Two sorted lists merged at once, by the comparators that count alone."""
    best = min(top_k, len(one) + len(other))
    pairs = {
        (i, j): one[i] > other[j]
        for i in range(len(one))
        for j in range(len(other))
        if (i + 1) + (j + 1) <= best + 1
    }
    places: dict[int, float] = {}
    for i, value in enumerate(one):
        places.setdefault(i + sum(not won for (a, _), won in pairs.items() if a == i), value)
    for j, value in enumerate(other):
        at = j + sum(won for (_, b), won in pairs.items() if b == j)
        if at < best:
            places[at] = value
    return [places[at] for at in range(best)], len(pairs)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("experts", [8, 13, 32, 64])
def test_the_tree_finds_the_best_in_its_cycles(experts: int, top_k: int) -> None:
    rng = np.random.default_rng(experts + top_k)
    for _ in range(20):
        scores = rng.permutation(experts).astype(float)
        lists, cycles, widest = [[score] for score in scores.tolist()], 0, 0
        while len(lists) > 1:
            compared, after = 0, []
            for one, other in zip(lists[::2], lists[1::2], strict=False):
                found, count = merged(one, other, top_k)
                after.append(found)
                compared += count
            lists = after + ([lists[-1]] if len(lists) % 2 else [])
            cycles, widest = cycles + 1, max(widest, compared)
        assert lists[0] == sorted(scores, reverse=True)[:top_k]
        assert cycles == tree_cycles(experts, top_k) == int(np.ceil(np.log2(experts)))
        assert widest <= tree_comparators(experts, top_k)


def test_comparators_of_a_merge_by_hand() -> None:
    assert [merge_comparators(1, k) for k in (1, 2, 8)] == [1, 1, 1]
    assert merge_comparators(2, 2) == 3  # best with best, and each best with the other's second
    assert merge_comparators(2, 4) == 4  # all pairs: the whole order is wanted
    assert merge_comparators(4, 4) == 10


def test_the_texts_four_against_thirty_two_cycles() -> None:
    """Text 000, 11.3.2: log2(32 / 2) = 4, but a second best in the best's group of eight is lost."""
    assert pair_winner_cycles(32, 2) == 4
    assert serial_cycles(32) == 32
    assert tree_cycles(32, 2) == 5  # 11.3.6 has five stages
    assert grouped_cycles(32, 2, 4) == 16  # its pim_parallel_topk: 8 in each group, then 4 x 2
    apart = [a // 8 != b // 8 for a, b in itertools.permutations(range(32), 2)]
    assert pair_winners_right(32, 2, 4) == pytest.approx(np.mean(apart)) == pytest.approx(24 / 31)
    triples = [len({a // 4, b // 4, c // 4}) == 3 for a, b, c in itertools.permutations(range(16), 3)]
    assert pair_winners_right(16, 3, 4) == pytest.approx(np.mean(triples))


def test_few_comparators_take_more_cycles() -> None:
    assert tree_comparators(32, 2) == 24  # levels of 16, 24, 12, 6 and 3
    assert tree_cycles(32, 2, comparators=32) == 5
    assert tree_cycles(32, 2, comparators=8) == 2 + 3 + 2 + 1 + 1


def test_the_texts_silicon() -> None:
    """Text 000, 11.3.6: 32 x 256 multiply-adders at 1 GHz take 32 cycles, so 31 million tokens/s, not 1."""
    found = accelerator(PIM.spec.router, 8192, 32, 2)
    assert (found.score_cycles, found.select_cycles) == (32, 5)
    assert found.latency == pytest.approx(37 * NS)
    assert found.rate == pytest.approx(1e9 / 32)
    assert found.joules == pytest.approx(0.5 * 32 * NS)
    assert found.rate_per_area == pytest.approx(1e9 / 32 / 0.8e-6)
    assert found.seconds(np.array([0, 1, 10])) == pytest.approx([0, 37 * NS, (37 + 9 * 32) * NS])
    narrow = load_hardware("text-pim", "router.comparators.value=4").spec.router
    assert accelerator(narrow, 256, 32, 2).rate == pytest.approx(1e9 / 6)  # 24 comparisons by four at once


def test_places_by_hand() -> None:
    found = {(one.place, one.precision): one for one in places(PIM, TEXT)}
    assert len(found) == len(PLACES) * 4
    choices = 64 * 2 * 8

    rows = found["coordinator, rows", "fp32"]
    up = 64 * 8192 * 4
    host = max(2 * 64 * 8192 * 32 / 1e12, (64 + 32) * 8192 * 4 / 200e9) + 1e-4
    assert rows.link_bytes == up + choices
    assert rows.seconds == pytest.approx(up / 200e9 + 1e-7 + host + choices / 200e9 + 1e-7)
    sent = (up + choices) * 8 * 10e-12
    read = (64 + 32) * 8192 * 4 * 8 * 3.2e-12
    assert rows.joules == pytest.approx(sent + read + 2 * 64 * 8192 * 32 * 0.5e-12)

    scores = found["coordinator, scores", "int8"]
    silicon = (37 + 7 * 32) * NS  # eight tokens in each module
    assert scores.link_bytes == 64 * 32 + choices
    select = 64 * 32 / 200e9 + 1e-4
    assert scores.seconds == pytest.approx(silicon + scores.link_bytes / 200e9 + 2e-7 + select)

    whole = found["modules, whole gate", "fp16"]
    assert (whole.link_bytes, whole.seconds) == (0, pytest.approx(silicon))
    assert whole.joules == pytest.approx(64 * 0.5 * 32 * NS)

    parts = found["modules, gate in parts", "fp16"]
    out, back = 8 * 8192 * 2, 8 * 2 * (4 + 2)  # to each of seven others; two candidates of four experts
    assert parts.link_bytes == 56 * (out + back)
    mine = (4 + 2 + 63 * 4) * NS  # four experts: four cycles of scores, two levels
    assert parts.seconds == pytest.approx(7 * (out + back) / 200e9 + 2e-7 + mine)

    hybrid = found["hybrid", "fp32"]
    up, picks, last = 64 * 8192 * 4, 64 * 2 * 8, 56 * 64 * 2 / 64 * 2 * 8
    coarse = (64 + 8) * 8192 * 4 / 200e9 + 1e-4
    fine = (6 + 15 * 4) * NS  # 128 rows for eight groups: sixteen each
    assert hybrid.link_bytes == up + picks + last
    expected = (up + picks + last / 8) / 200e9 + 3e-7 + coarse + fine
    assert hybrid.seconds == pytest.approx(expected)


def test_a_module_without_silicon_computes_scores_as_it_computes_experts() -> None:
    hardware = load_hardware("hbm2-pim")  # one row for each reading of the gate
    found = {(one.place, one.precision): one for one in places(hardware, TEXT)}
    gate = 8192 * 32 * 2
    whole = found["modules, whole gate", "fp16"]
    assert whole.seconds == pytest.approx(max(8 * gate / 1228.8e9, 2 * 8 * 8192 * 32 / 1.2288e12))
    assert whole.joules == pytest.approx(64 * gate * 8 * 0.55e-12 + 2 * 64 * 8192 * 32 * 0.32e-12)
    assert found["coordinator, rows", "fp16"].joules is None  # its links' energy is not known

    # A GPU reads its gate once, however many rows it has: eight gates; of three tokens, three.
    gpu = load_hardware("h100-sxm")
    for tokens, readings in ((64, 8), (3, 3)):
        work = Work(tokens, 8192, 32, 2, 8)
        whole = next(
            p for p in places(gpu, work) if (p.place, p.precision) == ("modules, whole gate", "fp16")
        )
        energy = gpu.spec.energy
        operations = 2 * tokens * 8192 * 32 * energy.compute
        assert whole.joules == pytest.approx(operations + readings * gate * 8 * energy.weights)


def test_modules_with_fewer_experts_than_choices_send_what_they_have() -> None:
    work = Work(64, 8192, 32, 8, 16)  # two experts in each module, eight choices
    parts = next(p for p in places(PIM, work) if (p.place, p.precision) == ("modules, gate in parts", "int8"))
    assert parts.link_bytes == 16 * 15 * 4 * (8192 + 2 * (4 + 1))


@pytest.mark.parametrize("name", ["text-pim", "hbm2-pim", "h100-sxm", "upmem", "gddr6-aim"])
def test_fewer_bits_are_fewer_bytes_and_never_slower(name: str) -> None:
    found = places(load_hardware(name), Work(256, 4096, 128, 8, 16))
    for wide, narrow in itertools.pairwise(found):
        if wide.place == narrow.place:
            assert narrow.link_bytes < wide.link_bytes or wide.link_bytes == 0
            assert narrow.seconds <= wide.seconds * (1 + 1e-12)


def test_choices_save_what_the_text_says_at_fp32_only() -> None:
    assert saved_by_choices(32, 2, 32) == 0.875
    assert [saved_by_choices(32, 2, bits) for bits in (16, 8, 4)] == [0.75, 0.5, 0]
    assert saved_by_choices(8, 2, 8) == -1  # eight scores of a byte are half of two choices


def test_the_command_prints_what_the_functions_say() -> None:
    run = CliRunner().invoke
    result = run(app, ["router", "--d-model", "8192", "--experts", "32", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    expected = {(one.place, one.precision): one.seconds for one in places(PIM, TEXT)}
    assert {(one["place"], one["precision"]): one["emu_s"] for one in found["places"]} == expected
    assert found["top_k_cycles"]["text_experts"]["tree"] == 5
    assert found["choices_save"]["fp32"]["text_experts_share"] == 0.875
    assert found["silicon"]["tokens_per_emu_s"] == pytest.approx(31.25e6)
    table = run(app, ["router", "deepseek-v3", "--hardware", "hbm2-pim", "--modules", "16"])
    assert table.exit_code == 0
    assert "modules, gate in parts" in table.output


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["deepseek"], "router: model.preset is 'deepseek'"),
        (["--top-k", "9"], "router: top_k: 9 is not allowed; allowed: 1 to experts = 8"),
        (["--hardware", "h100"], "h100: no such hardware or file"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], line: str) -> None:
    result = CliRunner().invoke(app, ["router", *arguments])
    assert result.exit_code == 2
    assert line in " ".join(result.output.split())
    for wrong in (lambda: grouped_cycles(8, 2, 9), lambda: pair_winners_right(32, 2, 5)):
        with pytest.raises(ValueError, match="is not allowed"):
            wrong()
    with pytest.raises(ValueError, match="tokens: 0"):
        Work(0, 8, 8, 2, 2)
