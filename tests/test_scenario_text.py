"""Scenarios as text: YAML 1.2, settings, files, pipes, and whatever else is handed in as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayemu.scenario import Scenario, ScenarioError
from rayemu.scenario.loading import override, parse
from tests.test_scenario import EXAMPLE, TINY


def test_files_are_read_and_their_mistakes_located(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(EXAMPLE, encoding="utf-8")
    assert Scenario.load(file) == Scenario.load(str(file)) == Scenario.load("laptop")

    file.write_text("name: x\nmodel: {preset: olmoe\n", encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"mine\.yaml:3:1: "):
        Scenario.load(file)

    file.write_text("name: x\nmodel: {preset: olmoe}\nrun:\n  seed: 1\n  seed: 2\n", encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"mine\.yaml:5:3: the key 'seed' is given twice"):
        Scenario.load(file)

    file.write_bytes(b"name: \xff")
    with pytest.raises(ScenarioError, match=r"mine\.yaml: "):
        Scenario.load(file)

    file.write_text("name: !!python/object/apply:os.system [true]\n", encoding="utf-8")
    with pytest.raises(ScenarioError, match="could not determine a constructor"):
        Scenario.load(file)


@pytest.mark.parametrize(
    ("text", "value"),
    [  # by the core schema of YAML 1.2
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        (".5e-3", 0.0005),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("Off", "Off"),
        ("true", True),
        ("~", None),
        ("2026-02-30", "2026-02-30"),
        ("2026-02-03", "2026-02-03"),
        ("=", "="),
    ],
)
def test_scalars_are_read_as_yaml_1_2_says(text: str, value: Any) -> None:
    (read,) = parse(f"[{text}]", "here")
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize("name", ["1e3", "0o17", "010", "yes", "2026-02-30", "0x1F", "1_0"])
def test_names_that_look_like_numbers_stay_names(name: str) -> None:
    scenario = Scenario.from_dict(TINY).with_overrides([f"name='{name}'"])
    assert parse(scenario.to_yaml(), "here")["name"] == name  # our reader
    assert yaml.safe_load(scenario.to_yaml())["name"] == name  # and those of YAML 1.1


@pytest.mark.parametrize(
    ("given", "path"),
    [("txt #1", "txt #1"), ("#1", "#1"), ("'a #b'", "a #b"), ("a#b", "a#b"), (" a # b # c ", "a # b # c")],
)
def test_a_setting_has_no_comments(given: str, path: str) -> None:
    assert override({}, [f"stream.path={given}"]) == {"stream": {"path": path}}


def test_merge_keys_give_what_is_not_given() -> None:
    text = """
- &k {kind: kill, module: 1}
- &l {<<: *k, module: 2}
- {module: 3, <<: *l}
- {<<: [{module: 4}, *k]}
"""
    merged = parse(text, "here")
    assert [fault["module"] for fault in merged] == [1, 2, 3, 4]
    assert all(fault["kind"] == "kill" for fault in merged)
    for twice, key in (
        ("{<<: {a: 1}, b: 1, b: 2}", "b"),
        ("{<<: {a: 1, a: 2}}", "a"),
        ("{<<: {a: 1}, <<: {b: 1}}", "<<"),
    ):
        with pytest.raises(ScenarioError, match=f"the key '{key}' is given twice"):
            parse(twice, "here")


def test_a_few_aliases_do_not_make_an_endless_line() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 12)
    )
    with pytest.raises(ScenarioError) as refusal:
        Scenario.from_dict({"model": parse(text, "here")["a11"]})
    assert len(str(refusal.value)) < 300


def test_merges_of_merges_do_not_multiply() -> None:
    levels = "".join(
        f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], b{n}: {n}}}\n" for n in range(1, 13)
    )
    merged = parse("a0: &a0 {c: 1}\n" + levels, "here")["a12"]
    assert merged == {"c": 1, **{f"b{n}": n for n in range(1, 13)}}


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("faults: kill", "faults: 'kill' is not allowed; allowed: a list"),
        ("faults:", "faults: None is not allowed; allowed: a list"),
        ("run: {true: 4}", "run.1: the key True is not allowed; allowed: names"),
    ],
)
def test_refusals_speak_of_yaml_not_of_python(text: str, refusal: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        Scenario.from_dict({"model": {"preset": "olmoe"}, **parse(text, "here")})
    assert refusal in refused.value.problems


def test_a_scenario_is_read_from_a_pipe_and_from_standard_input() -> None:
    read, write = os.pipe()
    os.write(write, EXAMPLE.encode())
    os.close(write)
    assert Scenario.load(f"/dev/fd/{read}") == Scenario.load("laptop")
    os.close(read)
    script = "from rayemu import Scenario; print(Scenario.load('-').to_yaml())"
    command = [sys.executable, "-c", script]
    given = subprocess.run(command, input=EXAMPLE, capture_output=True, text=True, check=True, timeout=60)
    assert parse(given.stdout, "here") == parse(Scenario.load("laptop").to_yaml(), "here")
    closed = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *command], capture_output=True, text=True, timeout=60
    )
    assert "ScenarioError: -: cannot be read: " in closed.stderr


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text(EXAMPLE, encoding="utf-8")
    assert Scenario.load("~/mine.yaml") == Scenario.load("laptop")
    (tmp_path / "words").write_text("one two", encoding="utf-8")
    stream = {"kind": "text", "path": "~/words"}
    assert list(Scenario.from_dict(TINY | {"stream": stream}).stream.build().words()) == ["one", "two"]
    with pytest.raises(ScenarioError, match=f"{tmp_path}/none"):
        Scenario.from_dict({"model": {"checkpoint": "~/none"}})
    with pytest.raises(ScenarioError, match=r"stream\.path: '~nobody/x' does not exist"):
        Scenario.from_dict(TINY | {"stream": {"kind": "text", "path": "~nobody/x"}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "scenario: None is not allowed; it should be a mapping"),
        (b"- a\n", r"scenario: \['a'\] is not allowed; it should be a mapping"),
        (b"\xff\xfea\0", "mine.yaml: cannot be read: it is not UTF-8"),
        (b"a: \0", "mine.yaml: unacceptable character"),
        (b"1: 2\n", "1: "),
        (b"name: x\nmodel: {preset: olmoe}\n---\nname: y\n", "mine.yaml:3:1: "),
    ],
)
def test_strange_files_are_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ScenarioError, match=message) as refusal:
        Scenario.load(tmp_path / "mine.yaml")
    assert not any("\n" in line for line in refusal.value.problems)


def test_a_file_without_end_is_no_scenario() -> None:
    with pytest.raises(ScenarioError, match=r"^/dev/zero: cannot be read: it has more than 4.00 MiB"):
        Scenario.load("/dev/zero")


def test_a_folder_is_no_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ScenarioError, match="cannot be read: Is a directory"):
        Scenario.load(tmp_path)
    (tmp_path / "laptop").mkdir()  # a run's folder, say
    monkeypatch.chdir(tmp_path)
    assert Scenario.load("laptop").name == "laptop"


def test_a_missing_file_names_what_there_is() -> None:
    for name in ("no/such.yaml", "nonesuch", ""):
        with pytest.raises(
            ScenarioError, match=f"{name}: no such file; scenarios that come with rayemu: .*laptop"
        ):
            Scenario.load(name)
