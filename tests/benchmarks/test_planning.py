"""The benchmark of planning mode, on few modules."""

import json
from pathlib import Path

from benchmarks import planning


def test_it_writes_what_it_measured(tmp_path: Path) -> None:
    """Two tokens of DeepSeek-V3 on 32 modules: 58 layers of two tokens with eight choices each."""
    out = tmp_path / "planning.json"
    given = ["--rounds", "1", "--modules", "32", "--tokens", "2", "--out", str(out)]
    assert planning.main(given) in (0, 1)
    cases = json.loads(out.read_text(encoding="utf-8"))["cases"]
    assert list(cases) == list(planning.CASES)
    for found in cases.values():
        assert 58 * 2 < found["messages"] < 58 * 2 * 8 * 4 + 1000
        assert 0 < found["step_emu_s"] and 0 < found["wall_s"]
