"""Expert placement from load alone, with the signature and the rules of DeepSeek's EPLB.

Shapes: L layers, E experts, R slots ("replicas", "physical experts"), X copies of the expert that has most.
Device d ("GPU") has the slots from d * R / devices on; node n has the devices from n * devices / nodes on.
"""

from __future__ import annotations

import numbers
import sys
from typing import Any

import numpy as np

from rayemu.placement.groups import groups_to_nodes
from rayemu.placement.packed import pack_experts


def rebalance_experts(
    weight: Any, num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> tuple[Any, Any, Any]:
    """Choose copies and places of experts so that the fullest device has the least load.

    Args:
        weight: load of every expert [L, E], zero and up, a NumPy array or a torch tensor.
        num_replicas: slots R of a layer, at least E, a multiple of `num_gpus`.
        num_groups: groups of consecutive experts, a divisor of E. Where it is a multiple of `num_nodes`, the
            experts of a group stay on one node (hierarchical); else experts go anywhere (global).
        num_nodes: nodes, a divisor of `num_gpus`.
        num_gpus: devices of all nodes.

    Returns:
        phy2log [L, R], the expert in every slot; log2phy [L, E, X], the slots of every expert in ascending
        order, then -1; logcnt [L, E], its number of copies. All int64 and of the kind that `weight` is. The
        copies of an expert share its load evenly. No device holds two copies of one expert unless it has more
        slots than there are experts for it.

    The same call gives the same plan everywhere: of equal experts, groups, devices or swaps the one with the
    lower number comes first. Slots of a device are sorted by expert.

    Raises:
        ValueError: an argument cannot work; the text begins with its name.

    See https://github.com/deepseek-ai/EPLB for the interface. The plan is another, better one: groups go to
    nodes by trying all partitions, copies by bisection, and devices are evened out by swaps.
    """
    torch: Any = sys.modules.get("torch")  # who has a tensor has imported it
    is_tensor = torch is not None and isinstance(weight, torch.Tensor)
    loads = checked_weight(_of_tensor(torch, weight) if is_tensor else weight)
    _check_counts(loads.shape[1], num_replicas, num_groups, num_nodes, num_gpus)
    plan = phy2log(loads, int(num_replicas), int(num_groups), int(num_nodes), int(num_gpus))
    found: Any = (plan, *slots_of_experts(plan, loads.shape[1]))
    if is_tensor:
        found = tuple(torch.from_numpy(array).to(weight.device) for array in found)
    return found


def phy2log(weight: np.ndarray, slots: int, groups: int, nodes: int, devices: int) -> np.ndarray:
    """The expert of every slot [L, R], as `rebalance_experts` has it, without checks."""
    layers, experts = weight.shape
    if not layers:
        return np.zeros((0, slots), np.int64)
    if groups % nodes:
        groups = nodes = 1
    scale = weight.max(1, keepdims=True)
    weight = weight / np.where(scale > 0, scale, 1.0)  # so that no sum overflows
    member, bound = groups_to_nodes(weight, groups, nodes, slots, devices)  # [L, N, E / N]
    member = member.reshape(layers * nodes, experts // nodes)
    by_node = weight[np.repeat(np.arange(layers), nodes)[:, None], member]
    placed = pack_experts(by_node, slots // nodes, devices // nodes, np.repeat(bound, nodes))
    plan = np.take_along_axis(member, placed.reshape(len(member), slots // nodes), 1)
    return np.sort(plan.reshape(layers, devices, slots // devices), axis=2).reshape(layers, slots)


def slots_of_experts(phy2log: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """The slots of every expert in ascending order, padded with -1 [L, E, X], and their number [L, E]."""
    layers, slots = phy2log.shape
    row = np.arange(layers)[:, None]
    count = np.zeros((layers, experts), dtype=np.int64)
    np.add.at(count, (row, phy2log), 1)
    order = np.argsort(phy2log, axis=1, kind="stable")
    expert = np.take_along_axis(phy2log, order, 1)
    rank = np.arange(slots) - np.take_along_axis(count.cumsum(1) - count, expert, 1)
    log2phy = np.full((layers, experts, int(count.max(initial=1))), -1, dtype=np.int64)
    log2phy[row, expert, rank] = order
    return log2phy, count


def _of_tensor(torch: Any, weight: Any) -> np.ndarray:
    """A tensor's values, whatever its layout and device."""
    if weight.is_complex() or weight.is_meta:
        what = "a tensor on the meta device" if weight.is_meta else f"dtype {weight.dtype}"
        raise ValueError(f"weight: {what} is not allowed; allowed: real numbers")
    loads: np.ndarray = weight.detach().to_dense().to("cpu", torch.float64).numpy()
    return loads


def checked_weight(weight: Any) -> np.ndarray:
    try:
        array = np.asarray(weight)
    except ValueError:  # of lists that are not equally long
        raise ValueError(
            "weight: rows of unequal lengths are not allowed; allowed: [layers, experts]"
        ) from None
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(
            f"weight: shape {array.shape} is not allowed; allowed: [layers, experts] with an expert at least"
        )
    if array.dtype.kind not in "iufb":
        raise ValueError(f"weight: dtype {array.dtype} is not allowed; allowed: real numbers")
    array = array.astype(np.float64)
    wrong = ~(np.isfinite(array) & (array >= 0))
    if wrong.any():
        layer, expert = np.argwhere(wrong)[0]
        raise ValueError(
            f"weight: {array[layer, expert]} of layer {layer}, expert {expert} is not allowed; "
            "allowed: finite numbers from 0 on"
        )
    return array


def _check_counts(experts: int, replicas: int, groups: int, nodes: int, devices: int) -> None:
    given = {"num_replicas": replicas, "num_groups": groups, "num_nodes": nodes, "num_gpus": devices}
    for name, value in given.items():
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: {value!r} is not allowed; allowed: whole numbers from 1 on")
    for name, fits, allowed in (
        ("num_groups", experts % groups == 0, f"divisors of the {experts} experts of weight"),
        ("num_gpus", devices % nodes == 0, f"multiples of num_nodes, {nodes}"),
        ("num_replicas", replicas >= experts, f"{experts} and more, a slot for every expert of weight"),
        ("num_replicas", replicas % devices == 0, f"multiples of num_gpus, {devices}"),
    ):
        if not fits:
            raise ValueError(f"{name}: {given[name]} is not allowed; allowed: {allowed}")
