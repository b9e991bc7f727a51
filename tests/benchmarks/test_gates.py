"""The study of gates' precision, small: what it prints and keeps, and that it tells precisions apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rayemu.benchmarks import gates
from tests.model.checkpoints import MIXTRAL, mixtral_tensors, save


def _run(tmp_path: Path, *args: str) -> dict[str, dict[str, dict[str, float]]]:
    out = tmp_path / "gates.json"
    assert gates.main(["--tokens", "400", "--json", str(out), *args]) == 0
    sources = json.loads(out.read_text(encoding="utf-8"))["sources"]
    return {name: {line["way"]: line for line in lines} for name, lines in sources.items()}


def test_seeded_gates_on_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _run(tmp_path, "--width", "64", "--steps", "5")
    assert [name.split(",")[0] for name in found] == ["text"] * 3 + ["gates that learned to foretell words"]
    for lines in list(found.values())[:3]:
        assert lines["fp16"]["top1"] > 0.99 and lines["int4"]["top1"] < lines["int8"]["top1"]
        divergence = [lines[way]["divergence"] for way in ("fp16", "bf16", "int8", "int4")]
        assert 0 < divergence[0] < divergence[2] < divergence[3] and divergence[0] < divergence[1]
        assert lines["int4"]["divergence"] < lines["int4, rows too"]["divergence"]
    assert "91.3 95.7 0.042" in capsys.readouterr().out


def test_gates_that_were_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kept = {"weight_0": rng.integers(-7, 8, (16, 4)) * 1.0, "rows_0": rng.standard_normal((50, 16))}
    kept["weight_0"][0] = 7  # so that 15 levels hold it
    path = tmp_path / "kept.npz"
    np.savez(path, **{name: value.astype(np.float32) for name, value in kept.items()})
    lines = _run(tmp_path, "--gates", str(path))["kept.npz, layer 0"]
    assert lines["int4"]["divergence"] == 0 and lines["int4"]["sets"] == 1


def test_gates_of_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MIXTRAL))
    save(folder / "model.safetensors", mixtral_tensors())
    assert _run(tmp_path, "--checkpoint", str(folder)).keys() == {"tiny, layer 0", "tiny, layer 1"}
