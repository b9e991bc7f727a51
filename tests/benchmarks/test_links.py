"""auto against raw, on a cluster of each and streams as short as they come."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rayemu.benchmarks import links
from rayemu.benchmarks.workload import SIZES, Workload


def test_it_measures_both_and_what_crossed_between_nodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "links.json"
    argv = "--size small --streams 2 --batches 3 --rates".split()
    assert links.main([*argv, "none,50 MB/s", "--out", str(out)]) == 0
    results = json.loads(out.read_text())["results"]
    assert [r["node_link"] for r in results] == [None, "50 MB/s"]
    least, most = _bytes_between_nodes()
    for result in results:
        assert result["exact"]
        assert len(result["speedups"]) == 2
        assert all(seconds > 0 for taken in result["seconds_per_batch"].values() for seconds in taken)
        raw = result["node_bytes_per_batch"]["raw"]
        assert least <= raw < 1.1 * most  # frames have headers, and one may be sent twice on a busy machine
        assert 0 < result["node_bytes_per_batch"]["auto"] < 1.1 * raw
    shown = capsys.readouterr().out
    assert "unpaced" in shown and "exact" in shown


def _bytes_between_nodes() -> tuple[float, float]:
    """Bytes per batch if all homes were on the node that sends least, and if on the one that sends most.

    A token crosses once however many of its experts are over there; each expert's output comes back.
    """
    size = SIZES["small"]
    rng = np.random.default_rng(0)  # as the benchmark draws them
    inputs = [rng.standard_normal((size.tokens, size.d_model), dtype=np.float32) for _ in range(3)]
    gate = Workload(size).model.layers[0].gate
    assert gate is not None
    totals = []
    for x in inputs:
        chosen = np.argsort(-(x @ gate.weight), axis=1)[:, : size.top_k]
        node_of = chosen // (size.experts // 2)  # experts lie in order, one per module
        rows = [((node_of == node).any(axis=1).sum() + (node_of == node).sum()) for node in (0, 1)]
        totals.append([4.0 * size.d_model * int(n) for n in rows])
    per_node = np.array(totals)
    return float(per_node.min(axis=1).mean()), float(per_node.max(axis=1).mean())
