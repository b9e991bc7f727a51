"""The `rayemu` command as a user meets it. Most runs use the `memory` transport, which needs no Ray."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

import rayemu
from rayemu import cli
from rayemu.cli_errors import plain_errors
from rayemu.cluster.client_runtime import ClusterError
from rayemu.doctor import OK, WRONG, Finding
from rayemu.drivers.record import load_columns

SMALL = ["smoke", "--set", "cluster.transport=memory", "--set", "run.batches=3"]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rayemu.cli", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


def test_help_explains_and_is_quick() -> None:
    shown = process("--help")
    assert shown.returncode == 0
    for command in ("run", "list", "doctor", "bench"):
        assert re.search(rf"^.*\b{command}\b +\w", shown.stdout, re.MULTILINE), command
    script = (
        "import sys, rayemu.cli\n"
        "heavy = {'numpy', 'ray', 'pydantic', 'yaml', 'rayemu.running.run', 'rich.live'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    "arguments",
    [
        *(f"rayemu.cli {line}" for line in ("--help", "list", "hardware --json", "model olmoe", "reproduce")),
        "benchmarks.validation parts",
    ],
)
def test_output_that_nobody_reads_ends_a_command_quietly(arguments: str) -> None:
    """As `| head -1` leaves it: no line, no traceback, and not the exit code of a failed check."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", *arguments.split()]
    try:
        ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=120, check=False)
    finally:
        os.close(write)
    assert (ended.returncode, ended.stderr) == (141, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the disk that is always full is Linux's")
@pytest.mark.parametrize("arguments", ["--version", "hardware --json"])
def test_output_that_finds_no_room_is_one_line(arguments: str) -> None:
    command = [sys.executable, "-m", "rayemu.cli", *arguments.split()]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=120, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1 and b"No space left" in ended.stderr


def test_the_version_is_the_package_s() -> None:
    assert invoke("--version").stdout.strip() == f"rayemu {rayemu.__version__}"


def test_a_run_prints_its_summary_and_exits_with_0(tmp_path: Path) -> None:
    result = invoke("run", *SMALL, "--out", str(tmp_path / "out"))
    assert result.exit_code == 0
    assert "exact, nothing lost, nothing duplicated" in result.stdout
    assert "192 in, 192 out, 0 lost, 0 duplicated" in result.stdout
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["passed"] is True
    assert not (tmp_path / "out" / "trace.json").exists()


def test_a_file_settings_and_a_trace(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "model: {d_model: 16, d_ff: 16, experts: 4, top_k: 2}\ncluster: {transport: memory}\n"
        "run: {batches: 2, batch_tokens: 8}\n"
    )
    out = str(tmp_path / "out")
    result = invoke("run", str(file), "--set", "model.top_k=3", "--out", out, "--trace", "--quiet")
    assert result.exit_code == 0
    assert re.fullmatch(
        r"scenario: exact, nothing lost, nothing duplicated; 16 tokens, .* tokens/s; .*out\n", result.stdout
    )
    assert sum(json.loads((tmp_path / "out" / "summary.json").read_text())["expert_tokens"][0]) == 3 * 16
    assert (tmp_path / "out" / "trace.json").exists()


def test_a_scenario_from_a_pipe_and_a_tilde_in_out(tmp_path: Path) -> None:
    text = (
        "model: {d_model: 16, d_ff: 16, experts: 4, top_k: 2}\ncluster: {transport: memory}\n"
        "run: {batches: 2, batch_tokens: 8}\n"
    )
    command = [sys.executable, "-m", "rayemu.cli", "run", "/dev/stdin", "-q", "--out=~/run"]
    env = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=120, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(f"; {tmp_path}/run")
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_tilde_is_expanded_in_the_folder_of_codecs_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert invoke("codecs", "smoke", "--tokens", "8", "--codec", "raw", "--out=~/c").exit_code == 0
    assert sorted(os.listdir(tmp_path / "c")) == ["codecs.json", "codecs.svg"]


def test_a_failed_check_exits_with_1(tmp_path: Path) -> None:
    kill = "faults=[{kind: kill, module: 1, at: {batch: 1}}]"
    settings = ["--set", kill, "--set", "cluster.replace=false"]
    result = invoke("run", *SMALL, *settings, "--out", str(tmp_path / "out"), "--quiet")
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith("smoke: FAILED: tokens lost; ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], r"nowhere\.yaml: no such file; .*laptop"),
        (["run", "smoke", "--set", "model.topk=4"], r"model\.topk: unknown key; .*did you mean top_k"),
        (["run", "smoke", "--set", "model.top_k=9"], r"model\.top_k: 9 is not allowed; .*experts = 4"),
        (["run", "smoke", "--set", "placement.copies=3"], r"placement\.copies: 3 is not allowed; .*1 to 2"),
        (
            ["run", "smoke", "--set", "exchange.codec.node=int9"],
            r"exchange\.codec\.node: .*int9.*raw.*int8.*zstd",
        ),
        (
            ["run", "smoke", "--set", "routing.kind=dice"],
            r"routing\.kind: 'dice' is not a router; known: soft",
        ),
        (
            ["run", "smoke", "--set", "stream={kind: text, path: /no/text}"],
            r"stream\.path: '/no/text' does not",
        ),
        (["run", "smoke", "--set", "model={checkpoint: /no/model}"], r"model\.checkpoint: .*/no/model"),
        (["run", "smoke", "--set", "run.seed=!!int x"], r"run\.seed:1:1: 'x' cannot be read as !!int"),
        (["run", "smoke", "--set", "name=" + "9" * 5000], r"name:1:1: '999.* cannot be read as !!int"),
        (["run", "~/no.yaml"], r"~/no\.yaml: no such file; "),
        (["run", "/"], r"/: cannot be read: Is a directory"),
        (["run", "smoke", "--set", "top_k"], r"top_k: is not an assignment"),
        (["run", "smoke", "--out", "/proc/nope"], r"the run folder /proc/nope cannot be written: .*--out"),
        (["list", "dice"], r"dice is not a family; known: scenarios, model\.preset"),
    ],
)
def test_refusals_are_one_clear_line_and_exit_with_2(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and re.match(f"rayemu: {message}", lines[0]), result.stderr
    assert "Traceback" not in result.output


def test_every_problem_of_a_scenario_has_its_line(tmp_path: Path) -> None:
    result = invoke("run", "smoke", "--set", "run.batches=0", "--set", "model.colour=red")
    assert result.exit_code == 2
    assert sorted(line.split(":")[1].strip() for line in result.stderr.strip().splitlines()) == [
        "model.colour",
        "run.batches",
    ]


def test_a_second_run_with_the_same_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke("run", *SMALL, "--quiet").exit_code == 0
    again = invoke("run", *SMALL, "--quiet")
    assert again.exit_code == 2
    assert "runs/smoke holds a finished run" in again.stderr
    for remedy in ("--out", "--overwrite", "--set name="):
        assert remedy in again.stderr
    assert invoke("run", *SMALL, "--quiet", "--overwrite").exit_code == 0
    assert invoke("run", *SMALL, "--quiet", "--set", "name=second").exit_code == 0
    assert sorted(os.listdir("runs")) == ["second", "smoke"]


def test_a_typing_mistake_is_a_usage_error() -> None:
    assert invoke("run").exit_code == 2
    assert invoke("run", "smoke", "--ouT", "x").exit_code == 2
    assert invoke("rum").exit_code == 2


@pytest.mark.parametrize(
    "error", [ClusterError("the coordinator died;\nrun again"), PermissionError(13, "no", "x")]
)
def test_ends_that_are_no_bugs_print_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("rayemu.running.run.run_scenario", fail)
    result = invoke("run", *SMALL, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert result.stderr == f"rayemu: {' '.join(str(error).split())}\n"


def test_bugs_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("rayemu.running.run.run_scenario", fail)
    with pytest.raises(ZeroDivisionError):
        invoke("run", *SMALL, "--out", str(tmp_path / "out"))


def test_an_interrupt_says_so_and_exits_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rayemu.running.run._compare", interrupt)
    result = invoke("run", *SMALL, "--out", str(tmp_path / "out"))
    assert result.exit_code == 130
    assert result.stderr == "rayemu: interrupted\n"
    assert not (tmp_path / "out" / "summary.json").exists()
    assert '"interrupted"' in (tmp_path / "out" / "events.jsonl").read_text()
    monkeypatch.undo()
    assert invoke("run", *SMALL, "--out", str(tmp_path / "out"), "--quiet").exit_code == 0


def test_the_list_has_every_table() -> None:
    shown = invoke("list")
    assert shown.exit_code == 0
    for name in ("laptop", "mixtral-8x7b", "softmax_topk", "round_robin", "least_loaded", "hierarchical"):
        assert name in shown.stdout
    for name in ("int8", "zstd", "spread", "memory", "text", "reorder"):
        assert name in shown.stdout
    one = invoke("list", "placement.kind")
    assert "round_robin" in one.stdout and "laptop" not in one.stdout


def test_the_benchmark_gets_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    for code, name in ((3, "step"), (4, "recovery")):
        module = types.ModuleType(f"rayemu.benchmarks.{name}")
        main = lambda arguments, code=code: seen.append(arguments) or code  # noqa: E731
        monkeypatch.setattr(module, "main", main, raising=False)
        monkeypatch.setitem(sys.modules, f"rayemu.benchmarks.{name}", module)
    assert invoke("bench", "--size", "small", "--help").exit_code == 3
    assert invoke("bench", "step", "--quick").exit_code == 3
    assert invoke("bench", "recovery", "--kills", "5").exit_code == 4
    assert seen == [["--size", "small", "--help"], ["--quick"], ["--kills", "5"]]


def test_the_doctor_prints_findings_and_exits_with_1_if_one_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [Finding("cores", OK, "2 cores"), Finding("ports", WRONG, "closed [x]", "open them")]
    asked = []
    monkeypatch.setattr("rayemu.doctor.examine", lambda fix, ray: asked.append((fix, ray)) or findings)
    result = invoke("doctor", "--fix", "--no-ray")
    assert result.exit_code == 1 and asked == [(True, False)]
    assert "ok       cores: 2 cores" in result.stdout
    assert "wrong    ports: closed [x]" in result.stdout and "open them" in result.stdout
    findings.pop()
    assert invoke("doctor").exit_code == 0


@pytest.mark.timeout(120)
def test_a_killed_module_on_real_ray(tmp_path: Path) -> None:
    """Four modules, every expert twice; one module is killed in mid-stream. Needs some seconds for Ray."""
    out = tmp_path / "out"
    done = process(
        "run",
        "smoke",
        "--set=run.batches=12",
        "--set=cluster.modules_per_node=2",
        "--set=replicas.kind=hash",
        "--set=placement.copies=2",
        "--set=faults=[{kind: kill, module: 1, at: {batch: 4}}]",
        "--out",
        str(out),
        "--trace",
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["exact"] is True and summary["tokens_out"] == 12 * 64
    (fault,) = summary["faults"]
    assert fault["signal"] in ("disconnect", "process", "actor")
    assert 0 < fault["detected_wall_s"] <= fault["recovered_wall_s"] < 30
    traffic = np.array(summary["traffic_bytes"])  # [M, M]
    assert 0 < traffic.sum() == summary["bytes_sent"] and not traffic.diagonal().any()
    assert traffic[:2, 2:].sum() + traffic[2:, :2].sum() == summary["bytes_by_level"]["node"]["sent"]
    assert sum(summary["module_rows"]) >= 2 * 2 * 12 * 64  # layers x choices x tokens, and what was repeated
    categories = {e.get("cat") for e in json.loads((out / "trace.json").read_text())["traceEvents"]}
    assert {"dispatch", "gemm", "reply", "combine", "event"} <= categories


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rayemu.cli", "run", "smoke", "--set", "cluster.transport=memory"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "o")], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "o" / "summary.json").read_text())["passed"]


def test_a_record_that_is_refused_is_a_line_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "record.npz", kind=np.zeros(1, np.uint8))
    with pytest.raises(typer.Exit) as end, plain_errors():
        load_columns(tmp_path / "record.npz")
    assert end.value.exit_code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"rayemu: {tmp_path}") and "version 1" in told and "run the scenario again" in told


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "rayemu.cli", "router", "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writing)
    assert ended.stderr == ""
