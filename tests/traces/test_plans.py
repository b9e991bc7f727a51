"""Plans of every format: written by their rules, read back, and refused with the layer and the expert."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rayemu.traces import Plan, TraceError, make_plan, read, read_plan, write_plan
from tests.traces.files import torch_file

SLOTS = np.array([[0, 1, 2, 3, 0, 1], [3, 3, 1, 0, 2, 2]])  # [L 2, R 6] of 4 experts on 2 or 3 devices
WRITES_PLANS = ("rayemu", "eplb", "vllm", "sglang", "trtllm", "npy")
NAMES = {"rayemu": "p.npz", "trtllm": "p.yaml", "npy": "p.npy"}


@pytest.mark.parametrize("name", WRITES_PLANS)
def test_a_plan_comes_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / NAMES.get(name, "p.json")
    write_plan(path, name, SLOTS, 4, 3, layers=[1, 2])
    for found in (read_plan(path), read_plan(path, name, num_experts=4)):
        assert found.source == name or (found.source, name) == ("sglang", "vllm")
        assert np.array_equal(found.phy2log, SLOTS) and found.num_experts == 4 and found.shared == 0
        assert found.num_devices == (3 if name in ("rayemu", "eplb", "vllm") else None)
        assert found.layer_numbers == ([0, 1] if name in ("sglang", "npy") else [1, 2])
    if name not in ("npy",):
        assert isinstance(read(path), Plan), "import knows it for a plan"


def test_eplb_gets_its_three_tables(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.json", "eplb", SLOTS, 4, 2)
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["phy2log"] == SLOTS.tolist() and content["num_gpus"] == 2
    assert content["logcnt"] == [[2, 2, 1, 1], [1, 1, 2, 2]]
    assert content["log2phy"] == [[[0, 4], [1, 5], [2, -1], [3, -1]], [[3, -1], [2, -1], [4, 5], [0, 1]]]


def test_vllm_gets_its_map_and_the_expert_map_of_its_plugin(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.json", "vllm", SLOTS, 4, 3)
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["physical_to_logical_map"] == SLOTS.tolist()
    assert content["moe_layer_count"] == 2
    assert content["layer_list"][1] == {
        "layer_id": 1,
        "device_count": 3,
        "device_list": [
            {"device_id": 0, "device_expert": [3, 3]},
            {"device_id": 1, "device_expert": [1, 0]},
            {"device_id": 2, "device_expert": [2, 2]},
        ],
    }


def test_trtllm_gets_yaml_and_sglang_json(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.yaml", "trtllm", SLOTS, 4, 2, layers=[3, 60])
    assert yaml.safe_load((tmp_path / "p.yaml").read_text()) == {
        "num_slots": 6,
        "initial_global_assignments": {3: SLOTS[0].tolist(), 60: SLOTS[1].tolist()},
        "layer_updates_per_iter": 0,
    }
    write_plan(tmp_path / "p.json", "sglang", SLOTS, 4, 2)
    assert json.loads((tmp_path / "p.json").read_text()) == {"physical_to_logical_map": SLOTS.tolist()}


@pytest.mark.parametrize(
    "content",
    [
        SLOTS.tolist(),
        {"physical_to_logical_map": SLOTS.tolist()},
        {"phy2log": SLOTS.tolist()},
        {"model_maps": {"DeepseekV3ForCausalLM": {"physical_to_logical_map": SLOTS.tolist()}}},
        {"num_slots": 6, "initial_global_assignments": {"0": SLOTS[0].tolist(), "1": SLOTS[1].tolist()}},
        {
            "moe_layer_count": 2,
            "layer_list": [
                {"layer_id": n, "device_count": 1, "device_list": [{"device_id": 0, "device_expert": row}]}
                for n, row in enumerate(SLOTS.tolist())
            ],
        },
    ],
)
def test_plans_of_others_in_json(tmp_path: Path, content: Any) -> None:
    (tmp_path / "p.json").write_text(json.dumps(content))
    assert np.array_equal(read_plan(tmp_path / "p.json").phy2log, SLOTS)


def test_an_expert_location_in_pt(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "p.pt", {"physical_to_logical_map": SLOTS.astype(np.int64)})
    assert np.array_equal(read_plan(path).phy2log, SLOTS)


def by_format(folder: Path, name: str, slots: list[list[int]]) -> Path:
    """A plan with faults, written by hand, since `write_plan` refuses it."""
    rows = {"initial_global_assignments": dict(enumerate(slots)), "num_slots": len(slots[0])}
    path = folder / NAMES.get(name, "p.json")
    if name == "trtllm":
        path.write_text(yaml.safe_dump(rows, default_flow_style=None))
    elif name == "npy":
        np.save(path, np.array(slots))
    elif name == "rayemu":
        facts = {"num_experts": 4, "num_devices": 0, "shared": 0, "layers": [0, 1], "rayemu_plan": 1}
        np.savez(path, phy2log=np.array(slots), **{k: np.array(v) for k, v in facts.items()})
    else:
        key = "phy2log" if name == "eplb" else "physical_to_logical_map"
        path.write_text(json.dumps({key: slots} if name != "vllm" else {"model_maps": {"m": {key: slots}}}))
    return path


@pytest.mark.parametrize("name", WRITES_PLANS)
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([3, 1, 1, 0, 0, 3], "layer 1 leaves expert 2 without a slot"),
        ([3, 1, 2, 9, 0, 3], "layer 1 names expert 9 in slot 3; the model's are 0 to 3"),
        ([3, 1, 2, 4, 0, 3], "layer 1 names expert 4 in slot 3|layer 0 leaves expert 4"),  # who can tell
        ([3, 1, 2, -7, 0, 3], "layer 1 names expert -7 in slot 3"),
        ([3, 1, 2, 2**40, 0, 3], "layer 1|damaged"),
    ],
)
@pytest.mark.parametrize("known", [None, 4])
def test_a_plan_without_an_expert_or_with_one_too_many_is_refused(
    tmp_path: Path, name: str, row: list[int], words: str, known: int | None
) -> None:
    path = by_format(tmp_path, name, [[0, 1, 2, 3, 0, 1], row])
    with pytest.raises(TraceError, match=words) as caught:
        read_plan(path, num_experts=known)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["eplb", "vllm", "sglang", "trtllm", "npy"])
def test_every_format_takes_what_the_caller_knows(tmp_path: Path, name: str) -> None:
    path = by_format(tmp_path, name, [[0, 1, 2, 1], [2, 0, 1, 2]])
    found = read_plan(path, num_experts=2, num_devices=4, shared=1)
    assert (found.num_experts, found.num_devices, found.shared, found.source) == (2, 4, 1, name)


def test_slots_of_shared_experts_are_accepted(tmp_path: Path) -> None:
    """Expert 4 is on each of two devices in both layers, beside the four that are routed to."""
    slots = [[0, 1, 2, 4, 3, 0, 1, 4], [3, 2, 1, 4, 0, 0, 2, 4]]
    path = by_format(tmp_path, "sglang", slots)
    for known in (read_plan(path, num_experts=4, num_devices=2), read_plan(path, num_experts=4)):
        assert (known.num_experts, known.shared) == (4, 1)
        assert known.logcnt.tolist() == [[2, 2, 1, 1], [2, 1, 2, 1]]
    assert read_plan(path, num_experts=4, shared=1).shared == 1
    assert read_plan(path).num_experts == 5, "nothing says which are shared"
    write_plan(tmp_path / "q.npz", "rayemu", np.array(slots), 4, 2, shared=1)
    assert read_plan(tmp_path / "q.npz").shared == 1
    with pytest.raises(TraceError, match="names expert 4 in slot 3"):
        read_plan(path, num_experts=4, num_devices=4)
    with pytest.raises(TraceError, match="names expert 4 in slot 3"):
        read_plan(path, num_experts=4, shared=0)


def test_several_shared_experts_and_none() -> None:
    both = make_plan([[0, 1, 2, 3], [1, 0, 3, 2]], 2, 1)
    assert both.shared == 2 and "2 shared experts, from id 2 on" in both.notes[0]
    assert make_plan([[0, 1, 1, 0]], 2, 2).shared == 0
    with pytest.raises(TraceError, match="layer 0 names expert 2 in slot 2"):
        make_plan([[0, 1, 2, 2], [0, 2, 1, 1]], 2)


def test_empty_slots_are_kept_where_a_format_has_them(tmp_path: Path) -> None:
    slots = np.array([[0, 1, -1, 1]])
    for name in ("rayemu", "eplb", "npy"):
        path = tmp_path / NAMES.get(name, "p.json")
        write_plan(path, name, slots, 2, 2)
        assert read_plan(path).phy2log.tolist() == slots.tolist()
    for name in ("vllm", "sglang", "trtllm"):
        with pytest.raises(TraceError, match=f"{name} has no empty slots; slot 2 of layer 0"):
            write_plan(tmp_path / "x.json", name, slots, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_devices": 4}, "6 slots cannot be shared out evenly to 4 devices"),
        ({"layers": [3]}, "layers: expected 2 different numbers"),
        ({"layers": [3, 3]}, "layers: expected 2 different numbers"),
        ({"phy2log": SLOTS + 0.5}, "expected integers"),
        ({"phy2log": []}, "expected integers"),
        ({"num_experts": 0}, "0 experts"),
        ({"num_experts": 5}, "layer 0 leaves expert 4 without a slot"),
    ],
)
def test_what_is_no_plan(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        make_plan(**{"phy2log": SLOTS, **arguments})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"phy2log": [[0, 1], [0]]}, "phy2log: entry 1 has 1 entries, entry 0 has 2"),
        ({"phy2log": [[0, 1.5]]}, "phy2log: found fractions"),
        ({"phy2log": "x"}, "phy2log: found str"),
        ({"phy2log": [[0, 1]], "logcnt": [[2, 1]]}, "1 slots of expert 0 in phy2log and 2 in logcnt"),
        ({"phy2log": [[0, 1]], "logcnt": [[1, 1], [1, 1]]}, "logcnt: shape"),
        ({"phy2log": [[0, 1]], "num_gpus": True}, "num_gpus: found True"),
        ({"model_maps": {}}, "expected the map of one model"),
        ({"model_maps": {"a": {}, "b": {}}}, "expected the map of one model"),
        ({"layer_list": []}, "expected a list of layers"),
        ({"layer_list": [{"layer_id": 0}]}, "entry 0 is no layer"),
        (
            {"layer_list": [{"layer_id": 5, "device_list": [{"device_expert": [0]}, {"device_expert": []}]}]},
            "layer 5: entry 1 has 0 entries",
        ),
        (
            {
                "layer_list": [
                    {"layer_id": n, "device_list": [{"device_expert": [0]}] * (n - 4)} for n in (5, 6)
                ]
            },
            "layer 6 has 2 devices, layer 5 1",
        ),
        (
            {"layer_list": [{"layer_id": n, "device_list": [{"device_expert": [0] * n}]} for n in (5, 6)]},
            "layer 6 has 6 slots, layer 5 5",
        ),
        ({"phy2log": [[0, 0, 3]]}, "leaves expert 1 and 1 more without a slot"),
        ({"initial_global_assignments": {"x": [0]}}, "'x' is no layer"),
        ({"initial_global_assignments": {"0": [0, True]}}, "layer 0: expected a list of experts"),
        (
            {"initial_global_assignments": {"0": [0, 1]}, "num_slots": 3},
            "layer 0 has 2 slots; expected num_slots, 3",
        ),
        ({"load_history": [{"logical_expert_load": [[1]]}]}, "loads of experts; expected a plan"),
    ],
)
def test_damaged_plans(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(TraceError, match=words):
        read_plan(tmp_path / "p.json")


def test_a_plan_is_picklable_and_read_only() -> None:
    plan = pickle.loads(pickle.dumps(make_plan(SLOTS)))
    assert np.array_equal(plan.phy2log, SLOTS)
    with pytest.raises(ValueError, match="read-only"):
        make_plan(SLOTS).phy2log[0, 0] = 1
