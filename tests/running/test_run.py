"""Scenarios run to their summaries on the `memory` transport: the same protocol in virtual time, no Ray."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rayemu.running.run
from rayemu.drivers.record import COMBINE, DECODE, DISPATCH, ENCODE, FORWARD, GEMM, REPLY, load_columns
from rayemu.emulator import Emulator
from rayemu.protocol.client import BatchResult
from rayemu.report.progress import Progress
from rayemu.running.folder import RunError
from rayemu.running.journal import read_journal
from rayemu.running.run import run_scenario
from rayemu.scenario import Scenario


def scenario(**sections: Any) -> Scenario:
    """8 modules, every expert twice, 5 batches of 24 tokens."""
    data: dict[str, Any] = {
        "name": "small",
        "model": {"d_model": 16, "d_ff": 32, "experts": 8, "top_k": 2, "layers": 2},
        "cluster": {"nodes": 2, "modules_per_node": 4, "transport": "memory"},
        "stream": {"kind": "zipf", "vocabulary": 512},
        "placement": {"copies": 2},
        "run": {"batches": 5, "batch_tokens": 24, "seed": 3},
    }
    for name, section in sections.items():
        data[name] = {**data[name], **section} if isinstance(section, dict) and name in data else section
    return Scenario.from_dict(data)


def test_a_run_is_exact_complete_and_leaves_its_folder(tmp_path: Path) -> None:
    wanted = scenario()
    summary = run_scenario(wanted, tmp_path / "out")
    assert summary["passed"] and summary["exact"] is True
    assert (summary["tokens_in"], summary["tokens_out"]) == (120, 120)
    assert (summary["tokens_lost"], summary["tokens_duplicated"]) == (0, 0)
    chosen = np.array(summary["expert_tokens"])
    assert chosen.shape == (2, 8) and (chosen.sum(axis=1) == 2 * 120).all()
    assert summary["seed"] == 3 and summary["check"] == "exact" and summary["faults"] == []
    assert summary["tokens_per_wall_s"] == pytest.approx(120 / summary["wall_s"])
    assert summary["versions"]["numpy"] == np.__version__
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    resolved = Scenario.load(tmp_path / "out" / "scenario.yaml")
    assert resolved == wanted
    assert not (tmp_path / "out" / "trace.json").exists()


def test_a_simulation_records_what_it_did_in_virtual_time(tmp_path: Path) -> None:
    codecs = {"module": "raw", "node": "int8"}
    summary = run_scenario(scenario(exchange={"codec": codecs}, placement={"copies": 1}), tmp_path / "out")
    record = load_columns(tmp_path / "out" / "record.npz")
    assert (np.diff(record["start_virtual_s"]) >= 0).all()
    assert not [name for name in record.dtype.names or () if "wall" in name]
    gemms = record[record["kind"] == GEMM]
    rows = np.zeros((2, 8), np.int64)  # [L, E]
    np.add.at(rows, (gemms["layer"], gemms["expert"]), gemms["rows"])
    assert rows.tolist() == summary["expert_tokens"]
    assert summary["flops"] == gemms["flops"].sum() == 3 * 2 * 16 * 32 * gemms["rows"].sum()  # SwiGLU
    took = gemms["end_virtual_s"] - gemms["start_virtual_s"]
    assert (took >= gemms["flops"] / 1e9).all() and took.sum() == pytest.approx(
        sum(summary["module_busy_virtual_s"]), abs=1e-5
    )
    assert record["rows"][record["kind"] == COMBINE].sum() == 2 * 120
    between = record[np.isin(record["kind"], [DISPATCH, FORWARD, REPLY])]
    assert between["raw_bytes"].tolist() == (between["rows"] * 16 * 4).tolist()
    assert sum(map(sum, summary["traffic_bytes"])) == between["sent_bytes"].sum() == summary["bytes_sent"]
    across = between[between["src"] // 4 != between["dst"] // 4]  # 4 modules per node
    assert summary["bytes_by_level"]["node"]["sent"] == across["sent_bytes"].sum() > 0
    assert summary["bytes_by_level"]["node"]["codec"] == "int8"
    encoded, decoded = record[record["kind"] == ENCODE], record[record["kind"] == DECODE]
    assert encoded["rows"].sum() == decoded["rows"].sum() == across["rows"].sum()


@pytest.mark.parametrize("codec", ["raw", "int8+zstd"])
def test_a_killed_module_loses_nothing(tmp_path: Path, codec: str) -> None:
    wanted = scenario(
        exchange={"codec": {"module": "raw", "node": codec}, "micro_batches": 2, "min_slice_rows": 2},
        faults=[{"kind": "kill", "module": 5, "at": {"batch": 2}}],
    )
    summary = run_scenario(wanted, tmp_path / "out", trace=True)
    assert summary["passed"], summary["checks"]
    (fault,) = summary["faults"]
    assert (fault["kind"], fault["module"], fault["at"]) == ("kill", 5, {"batch": 2})
    assert fault["detected_virtual_s"] == pytest.approx(0.006, abs=0.005)  # when the simulator says so
    assert fault["recovered_virtual_s"] >= fault["detected_virtual_s"]
    events = read_journal(tmp_path / "out" / "events.jsonl")
    kinds = [event["kind"] for event in events]
    assert kinds.index("started") < kinds.index("fault") < kinds.index("dead") < kinds.index("finished")
    dead = events[kinds.index("dead")]
    assert (dead["module"], dead["signal"]) == (5, "process") and dead["epoch"] > 0
    assert "traceEvents" in json.loads((tmp_path / "out" / "trace.json").read_text())


def test_random_modules_come_from_the_seed(tmp_path: Path) -> None:
    faults = [{"kind": "hang", "module": "random", "at": {"batch": 1}, "for": "10 ms"}] * 6
    hit = []
    for seed in (3, 3, 4):
        plan = rayemu.running.run._plan(scenario(faults=faults, run={"seed": seed}))
        hit.append([injected.module for injected in plan])
    assert hit[0] == hit[1] != hit[2]
    assert all(module in range(8) for module in hit[0]) and len(set(hit[0])) > 1


def test_faults_begin_by_batch_or_by_time_and_late_ones_are_reported(tmp_path: Path) -> None:
    wanted = scenario(
        run={"in_flight": 1},
        faults=[
            {"kind": "hang", "module": 1, "at": {"time": 0.001}, "for": "5 ms"},
            {"kind": "hang", "module": 2, "at": {"batch": 4}, "for": "5 ms"},
            {"kind": "kill", "module": 3, "at": {"batch": 5}},
            {"kind": "kill", "module": 3, "at": {"time": "1 h"}},
        ],
    )
    summary = run_scenario(wanted, tmp_path / "out")
    began = [fault["began_virtual_s"] for fault in summary["faults"]]
    assert 0.001 <= began[0] < began[1]
    assert began[2:] == [None, None]
    late = [e for e in read_journal(tmp_path / "out" / "events.jsonl") if e["kind"] == "fault_never_due"]
    assert [event["due"] for event in late] == [{"batch": 5}, {"time_s": 3600.0}]
    assert summary["passed"]


ALL_COPIES = [{"kind": "kill", "module": module, "at": {"batch": 2}} for module in (0, 4)]


def test_an_expert_without_copies_fails_its_batches_by_name(tmp_path: Path) -> None:
    # The copies of expert 0 are on modules 0 and 4, and so are those of expert 4.
    wanted = scenario(cluster={"replace": False}, faults=ALL_COPIES, run={"in_flight": 1})
    summary = run_scenario(wanted, tmp_path / "out")
    assert not summary["passed"]
    assert summary["failed_batches"] and all(f["expert"] in (0, 4) for f in summary["failed_batches"])
    assert summary["tokens_lost"] == 24 * len(summary["failed_batches"])
    assert summary["tokens_in"] == 120 == summary["tokens_out"] + summary["tokens_lost"]
    assert summary["tokens_out"] == 2 * 24
    assert summary["exact"] is True, "what came out is right"
    kinds = [event["kind"] for event in read_journal(tmp_path / "out" / "events.jsonl")]
    assert kinds.count("failed") == len(summary["failed_batches"])


def test_an_expert_without_copies_can_be_dropped_and_the_rest_is_exact(tmp_path: Path) -> None:
    wanted = scenario(cluster={"replace": False}, faults=ALL_COPIES, run={"on_lost_expert": "drop"})
    summary = run_scenario(wanted, tmp_path / "out")
    assert summary["passed"] and summary["dropped_choices"] > 0 and summary["tokens_lost"] == 0


def test_a_wrong_bit_is_found_and_the_run_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(self: Emulator, batches: Any, **_: Any) -> Any:
        for number, x in enumerate(batches):
            counts = np.zeros((2, 8), np.int64)
            result = BatchResult(number, self.reference(x), counts, np.ones(24, np.int32))
            if number == 3:
                result.y.view(np.uint32)[7, 5] ^= 1
            yield result

    monkeypatch.setattr(Emulator, "stream", stream)
    summary = run_scenario(scenario(), tmp_path / "out")
    assert summary["exact"] is False and not summary["passed"]
    mismatches = [e for e in read_journal(tmp_path / "out" / "events.jsonl") if e["kind"] == "mismatch"]
    assert [(e["batch"], e["tokens"], e["first_token"]) for e in mismatches] == [(3, 1, 7)]


def test_a_stream_that_changes_meanwhile_is_not_called_exact(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five")

    def change(progress: Progress) -> None:
        if progress.phase == "run" and progress.done == 5:
            text.write_text("something else entirely")

    wanted = scenario(stream={"kind": "text", "path": str(text)})
    summary = run_scenario(wanted, tmp_path / "out", change)
    assert summary["exact"] is False
    mismatches = [e for e in read_journal(tmp_path / "out" / "events.jsonl") if e["kind"] == "mismatch"]
    assert mismatches and all("other tokens" in event["why"] for event in mismatches)


def test_without_a_check_nothing_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Emulator, "reference", lambda *_: pytest.fail("compared"))
    summary = run_scenario(scenario(run={"check": "none"}), tmp_path / "out")
    assert summary["exact"] is None and summary["passed"]


def test_progress_is_told_in_order(tmp_path: Path) -> None:
    told: list[Progress] = []
    faults = [{"kind": "kill", "module": 5, "at": {"batch": 1}}]
    run_scenario(scenario(faults=faults), tmp_path / "out", told.append)
    assert [p.phase for p in told if p.phase == "start"] == ["start"]
    checks = [p.done for p in told if p.phase == "check"]
    assert checks == sorted(checks) and checks[-1] == 5
    assert [p.done for p in told if p.phase == "run"] == [0, 1, 2, 3, 4, 5]
    assert told[6].tokens == 120 and told[6].wall_s > 0
    kinds = [event["kind"] for progress in told for event in progress.events]
    assert "fault" in kinds and "dead" in kinds


def test_the_default_folder_is_named_after_the_scenario_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_scenario(scenario())
    before = (tmp_path / "runs/small/summary.json").read_bytes()
    with pytest.raises(RunError, match="runs/small holds a finished run"):
        run_scenario(scenario())
    assert (tmp_path / "runs/small/summary.json").read_bytes() == before
    run_scenario(scenario(name="other"))
    run_scenario(scenario(), overwrite=True)
    assert (tmp_path / "runs/small/summary.json").read_bytes() != before


def test_a_run_that_breaks_says_so_and_has_no_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(self: Emulator, batches: Any, **_: Any) -> Any:
        yield from islice(batches, 0)
        raise OSError("the network is gone")

    monkeypatch.setattr(Emulator, "stream", stream)
    with pytest.raises(OSError, match="the network is gone"):
        run_scenario(scenario(), tmp_path / "out")
    last = read_journal(tmp_path / "out" / "events.jsonl")[-1]
    assert (last["kind"], last["error"]) == ("ended", "OSError: the network is gone")
    assert not (tmp_path / "out" / "summary.json").exists()


def test_what_does_not_fit_the_memory_is_refused_with_sizes_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("rayemu.machine.available_bytes", lambda: 10 << 30)
    large = Scenario.from_dict({"name": "large", "model": {"preset": "mixtral-8x7b", "layers": 1}})
    # 8 experts of 3 * 4096 * 14336 float32 weights are 5.25 GiB; the modules need room for activations too.
    with pytest.raises(
        RunError, match=r"5\.63 GiB for the modules, 5\.25 GiB for the reference.*10\.0 GiB are free.*scale"
    ):
        run_scenario(large, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rayemu.running.run.refuse_too_large(large.with_overrides(["run.check=none"]))
    rayemu.running.run.refuse_too_large(large.with_overrides(["cluster.address=elsewhere:6379"]))
    monkeypatch.setattr("rayemu.machine.available_bytes", lambda: None)
    rayemu.running.run.refuse_too_large(large)


def test_a_stream_that_aims_is_aimed_in_the_run_and_read_again_alike(tmp_path: Path) -> None:
    shares = np.array([4, 3, 3, 2, 1, 1, 1, 1]) / 16
    np.save(tmp_path / "trace.npy", 1000 * shares[None, None])
    run = {"batches": 4, "batch_tokens": 256}
    wanted = {
        "adversarial": {"kind": "adversarial"},
        "trace": {"kind": "trace", "path": f"{tmp_path}/trace.npy"},
    }
    for name, stream in wanted.items():
        found = scenario(placement={"copies": 1}, run=run).model_dump(by_alias=True, exclude_none=True)
        summary = run_scenario(Scenario.from_dict({**found, "stream": stream}), tmp_path / name)
        assert summary["passed"] and summary["exact"] is True
        load = np.array(summary["expert_tokens"][0]) / (4 * 256 * 2)
        if name == "trace":
            assert np.abs(load - shares).max() < 0.04
        else:
            assert load.max() == 0.5, "one expert a module: every token goes to it"


def test_a_trace_that_the_candidates_cannot_follow_is_refused_before_anything_starts(tmp_path: Path) -> None:
    np.save(tmp_path / "trace.npy", np.ones((1, 1, 8)))
    stream = {"kind": "trace", "path": f"{tmp_path}/trace.npy", "vocabulary": 3}
    found = scenario().model_dump(by_alias=True, exclude_none=True)
    with pytest.raises(RunError, match=r"stream\.path: .*raise stream\.vocabulary"):
        run_scenario(Scenario.from_dict({**found, "stream": stream}), tmp_path / "out")


def test_without_a_record_nothing_is_recorded_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    with_one = run_scenario(scenario(), tmp_path / "with")
    summary = run_scenario(scenario(run={"record": False}), tmp_path / "without", trace=True)
    assert summary["passed"] and len(load_columns(tmp_path / "without" / "record.npz")) == 0
    traffic = ("bytes_raw", "bytes_sent", "frames", "flops", "module_rows", "traffic_bytes", "balance")
    assert all(with_one[key] is not None and summary[key] is None for key in traffic)
    same = ("exact", "tokens_out", "expert_tokens", "batch_max_virtual_s")
    assert all(summary[key] == with_one[key] for key in same)
