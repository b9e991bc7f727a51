"""What the benchmark of products compares, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayemu.benchmarks import products
from rayemu.numerics import way


def test_the_command_says_the_way_and_writes_every_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(products, "SHAPES", {"tiny": (16, 24)})
    monkeypatch.setattr(products, "ROWS", (1, 30))
    assert products.main(["--rounds", "2", "--out", str(tmp_path / "p.json")]) == 0
    assert way().name in capsys.readouterr().out
    data = json.loads((tmp_path / "p.json").read_text())
    assert data["way"] == way().name and data["machine"]["products"]["way"] == way().name
    assert set(data["ffn"]["tiny"]) == {"1", "30"}
    assert all(timed["exact_s"] > 0 < timed["plain_s"] for timed in data["ffn"]["tiny"].values())
