"""`rayemu profile`, once on a real cluster; what it refuses, and what its tables say."""

from __future__ import annotations

import errno
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from rayemu.benchmarks import profile as benchmark
from rayemu.cli import app
from rayemu.drivers.record import RECORD
from rayemu.profiling.processes import processor_times
from rayemu.protocol.client import BatchResult
from rayemu.protocol.messages import Notice
from rayemu.report.profiled import markdown, print_profile
from rayemu.running.folder import RunError
from rayemu.running.journal import read_journal
from rayemu.running.profile import left_out, profile_scenario
from rayemu.scenario import Scenario

from .test_account import check_speedscope

SMALL = {
    "name": "small",
    "model": {"d_model": 64, "d_ff": 128, "experts": 4, "top_k": 2, "layers": 2},
    "cluster": {"nodes": 1, "modules_per_node": 2},
    "faults": [{"kind": "kill", "module": 1, "at": {"batch": 2}}],
    "run": {"batches": 25, "batch_tokens": 512},
}


def test_a_profile_on_real_ray(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    command = ["profile", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out"), "--warm-up", "5"]
    done = CliRunner().invoke(app, command, env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    figures = json.loads((tmp_path / "out" / "profile.json").read_text())
    check_speedscope(json.loads((tmp_path / "out" / "profile.speedscope.json").read_text()))
    assert (figures["batches"], figures["layers"], figures["warm_up"]) == (20, 2, 5)
    assert figures["queues"]["batches"] == 20
    assert "not known" not in figures["queues"]["spans"]
    assert "left out: 1 of its faults" in done.output
    assert "The measured part is short" in done.output
    assert {"receive", "send", "plan", "settle", "combine", "record"} <= set(figures["phases"]["modules"])
    calls = {(f["function"].rpartition(":")[2], f["phase"]): f["calls"] for f in figures["functions"]}
    assert calls["Ledger.submit", "batches"] == 20 and calls["_taken", "stream"] == 21
    assert all(len(line) <= 80 for line in done.output.splitlines() if not line.startswith("small:"))
    if sys.platform == "linux":
        assert set(figures["processes"]) == {"module 0", "module 1", "coordinator", "driver", "Ray"}
        assert 0.9 < figures["phases_to_processes"] < 1.1
        assert figures["processor_to_products"] > 1
        assert {"loop", "heartbeat", "ZeroMQ"} <= set(figures["threads"]["modules"])
    narrow = Console(width=60, file=io.StringIO())
    print_profile(figures, narrow)
    shown = narrow.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown and all(len(line) <= 60 for line in shown.splitlines())
    long = Console(width=80, file=io.StringIO())
    print_profile({**figures, "window_wall_s": 60.0, "batches": 1, "layers": 1}, long)
    told = long.file.getvalue()  # type: ignore[attr-defined]
    assert "1 batch of 1 layer in" in told and "is short" not in told
    table = markdown({"small": figures, "again": figures}).splitlines()
    assert {line.count("|") for line in table} == {4}
    assert "| phase products |" in "\n".join(table)
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2 and "--overwrite" in again.output


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cluster.transport=memory", "use --set cluster.transport=zmq"),
        ("run.batches=3", "raise run.batches or lower --warm-up"),
        ("run.batch=3", "run.batch"),
    ],
)
def test_refusals_name_the_remedy(setting: str, message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["profile", "laptop", "--set", setting, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2 and message in done.output
    assert not (tmp_path / "out").exists()


def test_an_interrupt_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rayemu.running.profile.Emulator", interrupted)
    done = CliRunner().invoke(app, ["profile", "laptop", "--out", str(tmp_path / "out")])
    assert done.exit_code == 130 and "interrupted" in done.output


class _Lost:
    """An emulator whose module 1 dies while a measured batch is under way."""

    now, totals = 5.0, {}

    def __init__(self, scenario: Scenario, profile: bool) -> None:
        self.notices = []
        assert profile and scenario.run.check == "none"

    def __enter__(self) -> _Lost:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stream(self, batches: Iterator[np.ndarray]) -> Iterator[BatchResult]:
        for number, x in enumerate(batches):
            if number == 10:
                facts = {"module": 1, "epoch": 3, "signal": "process", "reason": ""}
                self.notices.append(Notice("dead", time.monotonic(), facts))
            yield BatchResult(number, x, np.zeros((2, 4), np.int64), np.ones(len(x), np.int64))

    def take_notices(self) -> list[Notice]:
        taken, self.notices = self.notices, []
        return taken

    def meters(self) -> list[object]:
        return []

    processor_times = meters

    def record(self) -> np.ndarray:
        return np.zeros(0, RECORD)


def test_a_module_that_dies_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rayemu.running.profile.Emulator", _Lost)
    told: list[str] = []
    scenario = Scenario.from_dict({**SMALL, "faults": []})
    figures = profile_scenario(
        scenario, tmp_path, lambda progress: told.extend(str(event["kind"]) for event in progress.events)
    )
    assert told == ["dead"]
    assert [event["kind"] for event in read_journal(tmp_path / "events.jsonl")] == ["dead"]
    assert len(figures["left_out"]) == 1 and "module 1 died" in figures["left_out"][0]


def test_a_profile_that_the_disk_cut_short_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("rayemu.running.profile.Emulator", _Lost)
    scenario, whole = Scenario.from_dict(SMALL), Path.write_text

    def cut(path: Path, text: str, **keywords: str) -> int:
        if not path.name.startswith("profile.json"):
            return whole(path, text, **keywords)
        whole(path, text[:100], **keywords)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", cut)
        with pytest.raises(RunError, match="is full"):
            profile_scenario(scenario, tmp_path)
    profile_scenario(scenario, tmp_path)  # what there is now is no profile to be kept
    assert json.loads((tmp_path / "profile.json").read_text())["name"] == "small"
    assert not list(tmp_path.glob("*.part"))


def test_what_is_left_out_is_told() -> None:
    scenario = Scenario.from_dict({**SMALL, "arrivals": {"kind": "poisson", "rate": 10}})
    assert len(left_out(scenario)) == 2
    assert left_out(Scenario.from_dict({**SMALL, "faults": []})) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_kernel_s_seconds_of_another_process(tmp_path: Path) -> None:
    code = (
        "import time\nwhile time.process_time() < 0.2: pass\nprint(time.process_time(), flush=True)\ninput()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        (tmp_path / "profile-x").write_text(json.dumps({"process": "module 4", "pid": child.pid}))
        assert child.stdout is not None
        said = float(child.stdout.readline())
        time.sleep(0.05)
        used = next(u for u in processor_times(tmp_path) if u.pid == child.pid)
        child.communicate("\n")
    assert used.process == "module 4" and used.processor_s == pytest.approx(said, abs=0.02)
    assert sum(t.processor_s for t in used.threads.values()) == pytest.approx(used.processor_s, abs=0.02)


@pytest.mark.parametrize(
    "arguments", [["--size", "huge"], ["--modules", "3"], ["--modules", "x"], ["--batches", "0"]]
)
def test_the_benchmark_refuses_what_it_does_not_know(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(arguments)


def test_the_benchmark_profiles_each_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profiled = []

    def instead(scenario: Scenario, out: Path) -> dict[str, object]:
        profiled.append(
            (scenario.name, scenario.cluster.modules, scenario.run.batches, scenario.routing.place)
        )
        phases = {"all": {"products": 0.5}}
        processes = {"module 0": {"processor_s": 1.0}, "driver": {"processor_s": 0.25}}
        return {
            **{"batches": 5, "layers": 1, "window_wall_s": 2.0, "processor_s": 1.25, "processes": processes},
            **{"processor_to_products": 2.5, "phases": phases, "queues": {"batches": 0, "spans": {}}},
        }

    monkeypatch.setattr(benchmark, "profile_scenario", instead)
    told = ["--size", "small", "--modules", "2,4", "--batches", "5", "--place", "modules"]
    assert benchmark.main([*told, "--out", str(tmp_path / "p.json")]) == 0
    assert profiled == [("bench-small-hierarchical", m, 8, "modules") for m in (2, 4)]
    out = capsys.readouterr().out
    assert "| ms a batch and layer | small, 2 modules | small, 4 modules |" in out
    assert "| modules | 200.00 | 200.00 |" in out and "| driver | 50.00 | 50.00 |" in out
    assert len(json.loads((tmp_path / "p.json").read_text())["sizes"]) == 2
