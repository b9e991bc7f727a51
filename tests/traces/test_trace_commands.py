"""`rayemu trace` as a user meets it."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from rayemu import cli
from rayemu.running.folder import FILES
from rayemu.running.run import run_scenario
from rayemu.scenario import Scenario
from rayemu.study.traces import of_plan, of_trace, target
from rayemu.traces import Plan, TraceError, from_choices, make_plan, read, read_trace, write, write_plan
from rayemu.traces.arrays import RUN_LOADS
from tests.traces.files import history, pickled

LOADS = np.arange(24).reshape(2, 3, 4)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["trace", *map(str, arguments)], catch_exceptions=False)


def test_import_and_export(tmp_path: Path) -> None:
    path = history(tmp_path / "expert-load.json", LOADS)
    result = invoke("import", path)
    assert result.exit_code == 0
    assert "expert-load.npz: loads of 2 windows, 3 layers, 4 experts" in result.stdout
    assert np.array_equal(read_trace(tmp_path / "expert-load.npz").loads, LOADS)
    for name in ("eplb", "vllm", "sglang", "trtllm", "npy"):
        out = tmp_path / f"out-{name}"
        assert invoke("export", tmp_path / "expert-load.npz", "--format", name, "--out", out).exit_code == 0
        assert np.array_equal(read_trace(out, name).loads, LOADS)
    again = invoke("import", path)
    assert again.exit_code == 2 and "is there already; choose another name with --out" in again.stderr


def test_a_plan_goes_from_one_system_to_another(tmp_path: Path) -> None:
    slots = np.array([[0, 1, 2, 0], [2, 1, 0, 2]])
    write_plan(tmp_path / "p.yaml", "trtllm", slots, 3, 2, layers=[3, 4])
    assert invoke("import", tmp_path / "p.yaml", "--devices", 2).exit_code == 0
    result = invoke("export", tmp_path / "p.npz", "--format", "vllm", "--out", tmp_path / "p.json")
    assert result.exit_code == 0 and "a plan of 2 layers, 4 slots on 2 devices, 3 experts" in result.stdout
    found = read(tmp_path / "p.json")
    assert isinstance(found, Plan) and np.array_equal(found.phy2log, slots) and found.layer_numbers == [3, 4]
    shown = invoke("stats", tmp_path / "p.json")
    assert re.search(r"most copies of an expert +2\b", shown.stdout)
    (tmp_path / "bare.json").write_text(json.dumps(slots.tolist()))
    assert "a plan" in invoke("stats", tmp_path / "bare.json", "--plan").stdout
    assert "loads" in invoke("stats", tmp_path / "bare.json").stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_statistics_of_choices(tmp_path: Path, as_json: bool) -> None:
    choices = (np.arange(64)[:, None, None] + np.arange(2)) % 8  # every token: two neighbours of a ring of 8
    write(tmp_path / "x.npz", "rayemu", from_choices(choices, np.array([0, 32, 64]), 8, np.array([5])))
    result = invoke("stats", tmp_path / "x.npz", *(["--json"] if as_json else []))
    assert result.exit_code == 0
    if not as_json:
        assert "loads of 2 windows, 1 layer, 8 experts, 2 choices of 64 tokens" in result.stdout
        assert re.search(r"^ +5 +1\.00 +7\.00 +8\.00 +8\.00 +- +0\.50 +0\.25 *$", result.stdout, re.MULTILINE)
        assert re.search(r"^ +5 +1\.00 +0\.00 +0 +0\.00 ", result.stdout, re.MULTILINE)
        return
    facts = json.loads(result.stdout)
    assert (facts["kind"], facts["windows"], facts["layers"], facts["experts"]) == ("trace", 2, [5], 8)
    assert (facts["tokens"], facts["choices_per_token"], facts["rows"]) == (64, 2, 128)
    (line,) = facts["per_layer"]
    assert (line["layer"], line["rows"], line["max_over_mean"], line["zipf_exponent"]) == (5, 128, 1, 0)
    assert line["neighbour_similarity"] == 0.5 and line["neighbour_by_chance"] == pytest.approx(2 / 8)
    assert line["working_sets"] == {"16": 8, "64": 8, "256": None}
    assert facts["pairs"][0]["tokens"] == 8 and facts["transitions"] == []


def test_statistics_have_no_nan_in_json() -> None:
    empty = from_choices(np.full((4, 2, 2), -1), np.array([0, 4]), 3)
    assert "NaN" not in json.dumps(of_trace(empty))
    plan = of_plan(make_plan([[0, 1, 0, 0]], 2, 2))
    assert plan["copies_beside_each_other"] == 1 and plan["experts_with_copies"] == [1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file or folder"),
        (b"hello", "its format is not known; name it with --format, one of rayemu, eplb"),
        (b'[["a"]]', "weight: found text; expected nested lists of numbers"),
        (b"\x80\x02", "format is not known"),
    ],
)
@pytest.mark.parametrize("command", ["import", "export", "stats"])
def test_what_cannot_be_read_is_one_line_and_exit_code_2(
    tmp_path: Path, command: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    more = ["--format", "npy", "--out", tmp_path / "y"] if command == "export" else []
    result = invoke(command, tmp_path / "x", *more)
    assert result.exit_code == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "y").exists()


def test_a_hostile_torch_file_is_one_line(tmp_path: Path) -> None:
    path = pickled(tmp_path / "x.pt", b"cposix\nsystem\n(X\x04\x00\x00\x00truetR.")
    result = invoke("import", path)
    assert (
        result.exit_code == 2
        and "names posix.system, which is no data; nothing of it was run" in result.stderr
    )


def test_a_format_that_is_none(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", LOADS)
    result = invoke("stats", tmp_path / "x.npy", "--format", "hdf5")
    assert result.exit_code == 2 and "hdf5 is no format; allowed: rayemu, eplb, vllm" in result.stderr


def scenario(**run: object) -> Scenario:
    return Scenario.from_dict(
        {
            "name": "small",
            "model": {
                "d_model": 16,
                "d_ff": 16,
                "experts": 8,
                "top_k": 2,
                "layers": 2,
                "dense_layers": 1,
                "dense_d_ff": 16,
            },
            "cluster": {"nodes": 1, "modules_per_node": 2, "transport": "memory"},
            "run": {"batches": 3, "batch_tokens": 24, "seed": 3, **run},
        }
    )


def test_a_run_leaves_its_loads_batch_by_batch(tmp_path: Path) -> None:
    summary = run_scenario(scenario(), tmp_path / "run")
    found = read_trace(tmp_path / "run")
    assert found.loads.shape == (3, 2, 8) and (found.loads.sum(axis=2)[:, 1] == 48).all()
    assert found.total.tolist() == summary["expert_tokens"]
    assert RUN_LOADS in FILES, "an interrupted run's are replaced"
    assert invoke("import", tmp_path / "run").exit_code == 0
    assert np.array_equal(read_trace(tmp_path / "run.npz").loads, found.loads)
    (tmp_path / "run" / RUN_LOADS).unlink()
    older = read_trace(tmp_path / "run")
    assert older.loads.shape == (1, 2, 8) and "one window" in older.notes[0]
    assert older.total.tolist() == summary["expert_tokens"] and older.source == "rayemu"
    (tmp_path / "run" / "summary.json").write_text('{"expert_tokens": [["a"]]}')
    assert "summary.json: expert_tokens: found text" in invoke("stats", tmp_path / "run").stderr
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert "summary.json: no expert_tokens" in invoke("stats", tmp_path / "run").stderr


def test_what_is_written_takes_the_place_of_files_only(tmp_path: Path) -> None:
    loads, pipe, link, real = (tmp_path / name for name in ("loads.npy", "pipe", "link.npy", "real.npy"))
    np.save(loads, np.ones((1, 4)))
    os.mkfifo(pipe)
    with pytest.raises(TraceError, match="pipe: neither a file nor a folder, so it would be lost"):
        write(pipe, "npy", read(loads))
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    link.symlink_to(real)
    write(link, "npy", read(loads))
    assert link.is_symlink() and np.load(real).shape == (1, 1, 4)
    for folder in (".", "..", "/"):
        with pytest.raises(TraceError, match="a folder; name what to write in it"):
            write(folder, "npy", read(loads))


def test_a_folder_without_a_name_of_its_own_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "in").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run" / "in")
    assert target(Path("."), None, ".npz") == tmp_path / "run" / "in.npz"
    assert target(Path(".."), None, ".npz") == tmp_path / "run.npz"
    with pytest.raises(TraceError, match="name one with --out"):
        target(Path("/"), None, ".npz")
