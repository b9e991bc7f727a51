"""What the benchmark of streams says of loads that are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayemu.benchmarks import streams
from rayemu.model.spec import ModelSpec
from rayemu.streams import STREAMS, Uniform


def test_one_token_loads_its_experts_only() -> None:
    spec = ModelSpec("one", 16, 1, experts=8, top_k=2, seed=1)
    found = streams.measure(Uniform(vocabulary=1), spec, batches=3)
    assert found["expert"] == found["module"] == found["all"] == 4.0  # two of eight have all the rows
    assert (found["step"], found["largest"], found["neighbours"]) == (0.0, 0.0, 1.0)


def test_the_command_measures_every_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(streams, "MODELS", {"small": (8, 2)})
    assert streams.main(["--batches", "2", "--out", str(tmp_path / "s.json")]) == 0
    data = json.loads((tmp_path / "s.json").read_text())
    assert list(data["streams"]["small"]) == list(STREAMS)
    assert all(line["module"] >= 1 for line in data["streams"]["small"].values())
    assert "adversarial" in capsys.readouterr().out
