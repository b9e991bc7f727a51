"""The frame of the validation on made-up figures, and what it says today of the packaged hardware."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fit_experts, validation
from benchmarks.checks import Check, Row
from benchmarks.validation_experts import MEASURED
from rayemu.hardware import load_hardware


def test_errors_by_hand() -> None:
    assert Row("", 110, "100").error == pytest.approx(0.1)
    assert Row("", 90, "100").error == pytest.approx(-0.1)
    assert Row("", 50, "48-80").error == 0
    assert Row("", 24, "48-80").error == pytest.approx(-0.5)
    assert Row("", 88, "48-80").error == pytest.approx(0.1)
    assert Row("", float("nan"), "1").error == float("inf")


def test_exact_is_to_the_digits_that_were_published() -> None:
    assert Row("", 6.0336, "6.03").same_digits
    assert not Row("", 6.04, "6.03").same_digits
    assert Row("", 1228.8, "1229").same_digits
    assert not Row("", float("nan"), "1").same_digits


def test_a_check_holds_by_row_and_by_mean() -> None:
    rows = (Row("a", 110, "100"), Row("b", 100, "100"))
    assert Check("", "", "", rows, bound=0.1001).passed
    assert not Check("", "", "", rows, bound=0.09).passed
    assert Check("", "", "", rows, bound=0.2, mean=0.05001).passed
    assert not Check("", "", "", rows, bound=0.2, mean=0.04).passed
    assert not Check("", "", "", rows).passed, "no bound: exact"
    assert not Check("", "", "", (), bound=1.0).passed, "nothing was checked"
    assert not Check("", "", "", (Row("", float("inf"), "1"),), bound=1.0).passed


def test_the_exit_code_says_whether_all_hold(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Check("good", "made up", "us", (Row("a", 110, "100"),), bound=0.2)
    bad = Check("bad", "made up", "us", (Row("b", 150, "100"), Row("c", float("nan"), "1")), bound=0.2)
    monkeypatch.setattr(validation, "PARTS", {"good": lambda: [good], "bad": lambda: [bad]})
    out = tmp_path / "v.json"
    assert validation.main(["good"]) == 0
    assert validation.main(["--out", str(out)]) == 1
    assert "outside the bound: bad" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert not written["passed"] and written["checks"][1]["rows"][0]["error"] == pytest.approx(0.5)
    with pytest.raises(SystemExit) as refused:
        validation.main(["none"])
    assert refused.value.code == 2


def test_the_packaged_hardware_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """Section by section: each figure of the H100 within 15 %, 8 % on average; the parts exact."""
    assert validation.main(["experts", "parts"]) == 0
    assert "Mixtral-8x7B, 256 rows" in capsys.readouterr().out


def test_the_fit_finds_constants_that_made_the_figures() -> None:
    """Times made with known constants give them back; the preset's are those of the measured times."""
    spec = load_hardware("h100-sxm").spec
    known = (0.6, 20e-6, 5e-6)
    made = {
        model: " ".join(repr(float(t) * 1e6) for t in fit_experts.predicted(spec, known, model))
        for model in MEASURED
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_experts, "MEASURED", made)
        assert fit_experts.fit(spec, made) == pytest.approx(known, rel=0.02)
    compute = spec.module.compute
    preset = (compute.share, compute.launch, compute.overhead)
    assert fit_experts.fit(spec, MEASURED) == pytest.approx(preset, rel=0.01)


def test_each_model_predicts_the_other() -> None:
    spec = load_hardware("h100-sxm").spec
    one, other = MEASURED
    for seen, unseen in ((one, other), (other, one)):
        off = np.abs(fit_experts.errors(spec, fit_experts.fit(spec, [seen]), unseen))
        assert np.nanmean(off) < 0.08 and np.nanmax(off) < 0.15
