"""Traces of every format: files by its rules come in, and what goes out is read by those rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayemu.traces import FORMATS, NO_EXPERT, Trace, TraceError, read, read_trace, write
from tests.traces.files import LOADS, history, small, statistics, tensors, torch_file


def test_a_trace_counts_its_choices() -> None:
    assert small().loads.tolist() == [[[2, 2, 1], [2, 2, 2]], [[0, 1, 1], [1, 1, 0]]]
    assert small().total.tolist() == [[2, 3, 2], [3, 3, 2]]
    assert not small().loads.flags.writeable


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_what_it_wrote_and_recognises_it(tmp_path: Path, name: str) -> None:
    if name == "flame":
        pytest.importorskip("pyarrow", reason="pip install 'rayemu[traces]'")
    trace = small()
    path = tmp_path / f"x{FORMATS[name].suffix if name != 'trtllm' else ''}"
    write(path, name, trace)
    found = read_trace(path)
    assert found.source == {"eplb": "vllm", "rayemu": ""}.get(name, name), "the history is vLLM's"
    assert read_trace(path, name).source == found.source.replace("vllm", name)
    alike = found.total if name == "flame" else found.loads
    assert np.array_equal(alike, trace.total if name == "flame" else trace.loads)
    if name in ("rayemu", "flame"):
        assert found.choices is not None and np.array_equal(found.choices, trace.choices)
    if name in ("rayemu", "flame", "trtllm"):
        assert found.layers.tolist() == [3, 4]
    if name == "rayemu":
        assert np.array_equal(found.borders, trace.borders)


def test_fractions_survive_where_a_format_has_them(tmp_path: Path) -> None:
    trace = Trace(LOADS + 0.25)
    for name in ("rayemu", "eplb", "vllm", "sglang", "npy"):
        write(tmp_path / name, name, trace)
        assert np.array_equal(read_trace(tmp_path / name, name).loads, LOADS + 0.25)
    with pytest.raises(TraceError, match="trtllm holds whole numbers"):
        write(tmp_path / "trtllm", "trtllm", trace)


@pytest.mark.parametrize("name", ["eplb", "vllm"])
def test_a_load_history(tmp_path: Path, name: str) -> None:
    path = history(tmp_path / "expert-load.json", LOADS)
    assert np.array_equal(read_trace(path).loads, LOADS)
    assert np.array_equal(read_trace(path, name).loads, LOADS)
    write(tmp_path / "out.json", name, Trace(LOADS))
    entries = json.loads((tmp_path / "out.json").read_text())["load_history"]
    assert [entry["logical_expert_load"] for entry in entries] == LOADS.tolist()


@pytest.mark.parametrize("content", [LOADS[0].tolist(), LOADS.tolist(), {"weight": LOADS[0].tolist()}])
def test_weights_as_eplb_takes_them(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "w.json"
    path.write_text(json.dumps(content))
    assert np.array_equal(read_trace(path).loads[0], LOADS[0])


def test_sglang_counts_from_pt_and_json(tmp_path: Path) -> None:
    """The recorder's buffer has room for more steps than were run."""
    buffer = np.concatenate([LOADS, np.zeros((3, 2, 3), np.int64)]).astype(np.int32)
    dump = {"rank": 0, "logical_count": buffer, "average_utilization_rate_over_window": None}
    found = read_trace(torch_file(tmp_path / "x.pt", dump))
    assert np.array_equal(found.loads, LOADS) and "3 unused steps" in found.notes[0]
    (tmp_path / "x.json").write_text(json.dumps({"logical_count": LOADS.sum(axis=0).tolist()}))
    assert np.array_equal(read_trace(tmp_path / "x.json").total, LOADS.sum(axis=0))
    write(tmp_path / "out.json", "sglang", Trace(LOADS))
    assert json.loads((tmp_path / "out.json").read_text()) == {"logical_count": LOADS.tolist()}


def recorder(rank: int, topk: list[list[list[int]]], counts: list[list[int]], number: int) -> dict[str, Any]:
    return {
        "forward_pass_id": number,
        "rank": rank,
        "gatherer_key": "primary",
        "input_ids": [1, 2],
        "extend_seq_lens": None,
        "topk_ids_of_layer": np.array(topk, np.int32),
        "misc_objects": [],
        "global_physical_count": np.array(counts, np.int32),
    }


SLOTS = np.array([[0, 1, 2, 1], [2, 0, 1, 2]])  # of two layers: copies of expert 1, of expert 2
# two tokens by layer, three places for choices of which two are used; slots, not experts
TOPK = [[[0, 3, -1], [1, 2, -1]], [[0, 1, -1], [3, 2, -1]]]
COUNTS = [[1, 1, 1, 1], [1, 1, 1, 1]]


def test_sglang_records_per_token_name_slots(tmp_path: Path) -> None:
    dump = {"records": [recorder(0, TOPK, COUNTS, 7)], "last_physical_to_logical_map": SLOTS}
    found = read_trace(torch_file(tmp_path / "x.pt", dump))
    assert found.loads.tolist() == [[[1, 2, 1], [1, 1, 2]]]
    assert found.choices is not None
    assert found.choices.tolist() == [[[0, 1], [2, 0]], [[1, 2], [2, 1]]]  # [T, L, K]


def test_sglang_ranks_of_a_folder_are_one_trace(tmp_path: Path) -> None:
    for rank in (0, 1):
        records = [recorder(rank, TOPK, COUNTS, number) for number in (4, 5)]
        dump = {"records": records, "last_physical_to_logical_map": SLOTS}
        torch_file(tmp_path / f"expert_distribution_recorder_171.5_{rank}.pt", dump)
    found = read_trace(tmp_path)
    assert found.loads.tolist() == [[[2, 4, 2], [2, 2, 4]]] * 2
    assert found.borders is not None and found.borders.tolist() == [0, 4, 8]
    torch_file(tmp_path / "expert_distribution_recorder_999.5_0.pt", dump)
    with pytest.raises(TraceError, match="not one per rank; name one"):
        read_trace(tmp_path)


@pytest.mark.parametrize(
    ("dump", "words"),
    [
        ({"records": []}, "no forward pass was recorded"),
        ({"records": {}}, "records: expected a list"),
        ({"records": [3]}, "found int; expected a dictionary"),
        ({"records": [{}]}, "records, entry 0: global_physical_count: found NoneType"),
        ({"records": [{"forward_pass_id": "x"}]}, "records, entry 0: forward_pass_id is 'x'"),
        (
            {"records": [{"global_physical_count": [[1, 2]]}]},
            r"entry 0: counts of shape \[1, 2\], a map of \[2, 4\]",
        ),
        ({"records": [recorder(0, [[[0, 4]]] * 2, COUNTS, 1)]}, "records, entry 0: choice .* names expert 4"),
        ({"records": [recorder(0, [[[0]]], COUNTS, 1)]}, r"entry 0: topk_ids_of_layer has shape \[1, 1, 1\]"),
        (
            {"records": [recorder(0, TOPK, COUNTS, 1), recorder(0, [[[0]]] * 2, COUNTS, 2)]},
            r"passes with \[1, 3\] choices per token",
        ),
        ({"records": [], "last_physical_to_logical_map": 5}, "last_physical_to_logical_map: found int"),
        ({"rank": 3}, "no logical_count, records or physical_to_logical_map in it; found rank"),
    ],
)
def test_sglang_dumps_that_do_not_fit(tmp_path: Path, dump: dict[str, Any], words: str) -> None:
    whole = {"last_physical_to_logical_map": SLOTS, **dump} if "records" in dump else dump
    with pytest.raises(TraceError, match=words):
        read(torch_file(tmp_path / "x.pt", whole))


def test_sglang_ranks_with_different_maps_are_no_one_trace(tmp_path: Path) -> None:
    for rank, slots in enumerate((SLOTS, SLOTS[::-1])):
        dump = {"records": [recorder(rank, TOPK, COUNTS, 1)], "last_physical_to_logical_map": slots}
        torch_file(tmp_path / f"expert_distribution_recorder_171.5_{rank}.pt", dump)
    with pytest.raises(
        TraceError, match="the ranks' last_physical_to_logical_map differ; read them one by one"
    ):
        read(tmp_path)


def test_sglang_records_per_pass(tmp_path: Path) -> None:
    record = recorder(0, TOPK, COUNTS, 7)
    del record["topk_ids_of_layer"]
    dump = {"records": [record], "last_physical_to_logical_map": SLOTS}
    found = read_trace(torch_file(tmp_path / "x.pt", dump))
    assert found.loads.tolist() == [[[1, 2, 1], [1, 1, 2]]] and found.choices is None


def test_trtllm_adds_its_ranks_up(tmp_path: Path) -> None:
    rank = {f"{i}_{layer}": LOADS[i - 100, layer - 3] for i in (100, 101) for layer in (3, 4)}
    found = read_trace(statistics(tmp_path / "s", [rank, rank], experts=3))
    assert np.array_equal(found.loads, 2 * LOADS) and found.layers.tolist() == [3, 4]
    for name in ("meta_info.json", "rank1.safetensors"):
        assert np.array_equal(read_trace(tmp_path / "s" / name).loads, 2 * LOADS)


def test_trtllm_raw_choices(tmp_path: Path) -> None:
    trace = small()
    assert trace.choices is not None
    raw = {f"1_{layer}": trace.choices[:, place].astype(np.int32) for place, layer in enumerate((3, 4))}
    counted = {f"1_{layer}": trace.total[place].astype(np.int64) for place, layer in enumerate((3, 4))}
    folder = statistics(tmp_path / "s", [counted], experts=3)
    tensors(folder / "rank0_raw.safetensors", raw)
    found = read_trace(folder)
    assert found.choices is not None and np.array_equal(found.choices, trace.choices)
    assert np.array_equal(found.total, trace.total), "the raw file's tensors are no counts"


def test_trtllm_raw_choices_of_an_idle_rank_and_of_layers_that_differ(tmp_path: Path) -> None:
    counted = {f"{i}_{layer}": LOADS[0, 0] for i in (1, 2) for layer in (3, 4)}
    folder = statistics(tmp_path / "s", [counted, counted], experts=3)
    tensors(folder / "rank0_raw.safetensors", {key: np.array([[0, 2]]) for key in counted})
    tensors(folder / "rank1_raw.safetensors", {f"2_{layer}": np.array([[1, 0]] * 3) for layer in (3, 4)})
    found = read_trace(folder)
    assert found.choices is not None and found.choices.shape == (5, 2, 2)
    assert found.borders is not None and found.borders.tolist() == [0, 1, 5]
    tensors(folder / "rank1_raw.safetensors", {"2_3": np.array([[1, 0]] * 3)})
    spoilt = read_trace(folder)
    assert spoilt.choices is None and "rank 1, iteration 2 has not one shape" in spoilt.notes[0]


def test_a_large_configuration_is_known_by_its_end(tmp_path: Path) -> None:
    text = "# comment\n" * 1000 + "initial_global_assignments:\n  0: [0, 1]\n" + "# more\n" * 100
    (tmp_path / "x").write_text(text)
    assert read(tmp_path / "x").source == "trtllm"


def test_trtllm_writes_what_the_official_package_reads(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write(tmp_path / "s", "trtllm", small())
    assert json.loads((tmp_path / "s" / "meta_info.json").read_text()) == {
        "num_experts": 3,
        "num_experts_per_token": 2,
    }
    found = load_file(tmp_path / "s" / "rank0.safetensors")
    header = int.from_bytes((tmp_path / "s" / "rank0.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0, "the data is aligned"
    assert {name: values.tolist() for name, values in found.items()} == {
        "0_3": [2, 2, 1],
        "0_4": [2, 2, 2],
        "1_3": [0, 1, 1],
        "1_4": [1, 1, 0],
    }


def parquet(path: Path, rows: list[list[int]], kind: str = "int16", fixed: bool = False) -> Path:
    pa = pytest.importorskip("pyarrow", reason="pip install 'rayemu[traces]'")
    import pyarrow.parquet as pq

    value = getattr(pa, kind)()
    lists = pa.list_(value, len(rows[0])) if fixed else pa.list_(value)
    scores = pa.array([[0.5] * len(row) for row in rows], pa.list_(pa.float32()))
    pq.write_table(pa.table({"scores": scores, "indices": pa.array(rows, lists)}), path)
    return path


@pytest.mark.parametrize("fixed", [False, True])
def test_flame_layers_of_a_folder(tmp_path: Path, fixed: bool) -> None:
    parquet(tmp_path / "layer_02.parquet", [[0, 1], [2, 3], [1, 0]], fixed=fixed)
    parquet(tmp_path / "layer_03.parquet", [[3, 1], [3, 2], [3, 0]], fixed=fixed)
    found = read_trace(tmp_path, experts=5, window=2)
    assert found.layers.tolist() == [2, 3] and found.experts == 5
    assert found.loads.tolist() == [[[1, 1, 1, 1, 0], [0, 1, 1, 2, 0]], [[1, 1, 0, 0, 0], [1, 0, 0, 1, 0]]]
    assert found.borders is not None and found.borders.tolist() == [0, 2, 3]
    assert read_trace(tmp_path / "layer_03.parquet").layers.tolist() == [3]
    assert len(read_trace(tmp_path, tokens=2).choices) == 2  # type: ignore[arg-type]


def test_flame_of_more_tokens_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "layer_02.parquet", [[0, 1]] * 1000)
    monkeypatch.setattr("rayemu.machine.available_bytes", lambda: 9000)
    with pytest.raises(TraceError, match=r"1000 tokens in 1 layers need .* keep fewer with --tokens"):
        read(tmp_path)
    assert read_trace(tmp_path, tokens=500).total.tolist() == [[500, 500]]


def test_flame_without_tokens_or_with_layers_that_differ(tmp_path: Path) -> None:
    parquet(tmp_path / "layer_02.parquet", [])
    with pytest.raises(TraceError, match=r": no tokens in it$"):
        read(tmp_path / "layer_02.parquet")
    parquet(tmp_path / "layer_03.parquet", [[0, 1]])
    with pytest.raises(TraceError, match="layers of different shapes"):
        read(tmp_path)
    parquet(tmp_path / "text.parquet", [["a"]], "string")
    with pytest.raises(TraceError, match=r"indices has type list<.*string>; expected lists of integers"):
        read(tmp_path / "text.parquet")


def test_minus_one_and_255_fill(tmp_path: Path) -> None:
    rows = [[0, 1], [2, 255], [255, 255]]
    uint8 = read_trace(parquet(tmp_path / "a.parquet", rows, "uint8"))
    assert uint8.choices is not None and uint8.choices[:, 0].tolist() == [[0, 1], [2, -1], [-1, -1]]
    assert read_trace(parquet(tmp_path / "b.parquet", rows), experts=3).total.tolist() == [[1, 1, 1]]
    assert read_trace(parquet(tmp_path / "c.parquet", [[0, -1], [2, 1]])).total.tolist() == [[1, 1, 1]]
    whole = read_trace(tmp_path / "a.parquet", experts=256)
    assert whole.total[0, 255] == 3, "with 256 experts, 255 is one of them"
    ragged = read_trace(parquet(tmp_path / "d.parquet", [[0, 1], [2], []]))
    assert ragged.choices is not None and ragged.choices[:, 0].tolist() == [[0, 1], [2, NO_EXPERT], [-1, -1]]


def test_uint8_with_more_than_256_experts_is_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [[0, 1]], "uint8")
    with pytest.raises(TraceError, match="257 experts in uint8, which holds 256; record them as int16"):
        read_trace(path, experts=257)
    signed = parquet(tmp_path / "b.parquet", [[0, 127, -1]], "int8")
    assert read_trace(signed, experts=128).experts == 128
    with pytest.raises(TraceError, match="129 experts in int8, which holds 128"):
        read_trace(signed, experts=129)
    wide = parquet(tmp_path / "c.parquet", [[0, 300]], "int32")
    assert read_trace(wide, experts=301).experts == 301
    with pytest.raises(TraceError, match="names expert 1; allowed: 0 to 0, or -1"):
        read_trace(path, experts=1)


def test_without_pyarrow_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(TraceError, match=r"pip install 'rayemu\[traces\]'"):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize("array", [LOADS, LOADS[0], LOADS.astype(np.float32), LOADS.astype(np.uint8)])
def test_bare_numpy_files(tmp_path: Path, array: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", array)
    assert np.array_equal(read_trace(tmp_path / "x.npy").loads, array if array.ndim == 3 else array[None])
