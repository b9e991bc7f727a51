"""A scenario as a user writes it, and a tiny one, for tests that change them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from rayemu.scenario import Scenario, ScenarioError

TINY: dict[str, Any] = {"model": {"d_model": 8, "d_ff": 16, "experts": 4, "top_k": 2}}

# As a user writes it; the same keys as in the documentation.
EXAMPLE = """
name: laptop
model: {preset: mixtral-8x7b, scale: 8, layers: 2}
cluster: {nodes: 2, modules_per_node: 4, transport: zmq}
stream: {kind: text, path: stdlib, context: 0.5}
routing: {kind: softmax_topk, place: coordinator}
placement: {kind: linear, copies: 2}
replicas: {kind: least_loaded}
exchange: {kind: hierarchical, micro_batches: 2, codec: {module: raw, node: int8+zstd}}
faults:
  - {kind: kill, module: 5, at: {batch: 3}}
run: {batches: 50, batch_tokens: 512, seed: 7, check: exact, on_lost_expert: fail}
"""


def problems(*assignments: str, base: str = EXAMPLE) -> list[str]:
    """The lines with which the example, so changed, is refused."""
    scenario = Scenario.from_dict(yaml.safe_load(base))
    with pytest.raises(ScenarioError) as refusal:
        scenario.with_overrides(assignments)
    assert str(refusal.value) == "\n".join(refusal.value.problems)
    return list(refusal.value.problems)
