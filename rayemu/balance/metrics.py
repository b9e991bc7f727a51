"""How evenly devices are loaded: the field's measures, and what other systems print under their names.

W windows, L layers, G devices; loads are in any unit of work (rows, seconds). A layer is done when its
slowest device is, and layers run one after another, so every measure is taken per layer (and window) and then
averaged.
Loads are never summed over layers first: two layers that overload different devices would look balanced.

Without any load a layer is balanced: ratios are 1, CV and Gini 0. In averages such a (window, layer) is left
out, as a dense layer says nothing about experts; if nothing is left the average is that of a balanced layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rayemu.balance.loads import Plan, checked_loads, device_loads


def max_over_mean(loads: np.ndarray) -> np.ndarray:
    """Load of the busiest device over the mean [..., L] of loads [..., L, G]; 1 is even, G is all on one."""
    return _ratio(loads.max(axis=-1), loads.mean(axis=-1))


def mean_over_max(loads: np.ndarray) -> np.ndarray:
    """Mean over maximum [..., L]: the share of device time in use while all wait for the slowest one.

    Called balancedness, (effective) utilisation or load balance elsewhere; 1 is even, 1 / G is all on one.
    """
    return _ratio(loads.mean(axis=-1), loads.max(axis=-1))


def max_over_min(loads: np.ndarray) -> np.ndarray:
    """Busiest over idlest device [..., L]; infinite where a device has nothing while another has."""
    return _ratio(loads.max(axis=-1), loads.min(axis=-1))


def cv(loads: np.ndarray) -> np.ndarray:
    """Coefficient of variation [..., L]: the standard deviation of all G devices (ddof 0) over the mean."""
    return _ratio(loads.std(axis=-1), loads.mean(axis=-1), empty=0.0)


def gini(loads: np.ndarray) -> np.ndarray:
    """Gini coefficient [..., L]: mean difference of pairs over twice the mean; (G - 1) / G is all on one.

    Computed from sorted loads: sum over i of (2 i - G - 1) x_i over G sum x, i from 1.
    """
    devices = loads.shape[-1]
    weight = 2 * np.arange(1, devices + 1) - devices - 1
    return _ratio((np.sort(loads, axis=-1) * weight).sum(axis=-1), devices * loads.sum(axis=-1), empty=0.0)


def p99_load(loads: np.ndarray) -> np.ndarray:
    """The load that 99 % of a layer's (window, device) pairs stay within [L], in the loads' unit."""
    layers, devices = loads.shape[-2:]
    pooled = np.moveaxis(loads.reshape(-1, layers, devices), 1, 0).reshape(layers, -1)
    return np.percentile(pooled, 99, axis=-1)


def parallel_efficiency(loads: np.ndarray) -> float:
    """Speed-up over one device, divided by the devices: all work over G times the sum of layers' maxima.

    `mean_over_max` with every layer and window weighted by the time that it takes. 1.0 without load.
    """
    return float(_ratio(loads.sum(), loads.shape[-1] * loads.max(axis=-1).sum()))


def average(per_layer: np.ndarray, loads: np.ndarray, empty: float = 1.0) -> float:
    """Mean of a measure [..., L] over the layers and windows that have load; `empty` if none has."""
    busy = loads.any(axis=-1)
    return float(np.mean(per_layer[busy])) if busy.any() else empty


def vllm_balancedness(loads: np.ndarray | Sequence) -> float:
    """What vLLM logs as `balancedness` (`vllm/distributed/eplb/eplb_state.py`), per step averaged here.

    Sum over layers of the mean over ranks, over the sum over layers of the maximum: within a step it equals
    `parallel_efficiency`, so layers with many rows weigh more than in `mean_over_max`. 0.0 without load.
    """
    array = checked_loads(loads, (2, 3))
    return _vllm(array.mean(axis=-1).sum(axis=-1), array.max(axis=-1).sum(axis=-1))


def vllm_balancedness_across_layers(loads: np.ndarray | Sequence) -> float:
    """What vLLM logged as `balancedness` in between, from its pull request 22167 (August 2025) on.

    The array had become [layers, ranks] while mean and maximum were still taken over its first axis: it says
    how alike the *layers* of a rank are, not the ranks of a layer (vLLM pull requests 36305 and 39178). Later
    versions have the definition of `vllm_balancedness` again. Here to compare with logs of those versions.
    """
    array = checked_loads(loads, (2, 3))
    return _vllm(array.mean(axis=-2).sum(axis=-1), array.max(axis=-2).sum(axis=-1))


def sglang_balancedness(loads: np.ndarray | Sequence) -> float:
    """What SGLang logs as `current_pass_balancedness`, its `utilization_rate`, averaged over passes.

    (mean + 1e-5) / (max + 1e-5) per layer, then the mean over *all* layers of the model: dense layers count
    as 1 and raise it, where `mean_over_max` leaves them out. (`srt/eplb/expert_distribution.py`)
    """
    array = checked_loads(loads, (2, 3))
    return float(np.mean((array.mean(axis=-1) + 1e-5) / (array.max(axis=-1) + 1e-5)))


def trtllm_load_statistics(loads: np.ndarray | Sequence) -> dict[str, float]:
    """TensorRT-LLM's `mean`, `std` and `imbalance-ratio` of `ep_load_balancer/report_load_statistics.py`.

    Per iteration, averaged over iterations, then over layers. The imbalance ratio is max / mean - 1, so 0 is
    even. `std` is in the loads' unit and that of a sample (ddof 1), not divided by the mean: not the CV. An
    iteration without load makes theirs NaN; it is left out here, as are layers without any.
    """
    array = checked_loads(loads, (2, 3))
    array = array.reshape(-1, *array.shape[-2:])  # [W, L, G]
    busy = array.any(axis=-1)  # [W, L]
    layers = busy.any(axis=0)
    if not layers.any():
        return {"mean": 0.0, "std": 0.0, "imbalance-ratio": 0.0}
    std = array.std(axis=-1, ddof=1) if array.shape[-1] > 1 else np.zeros(busy.shape)
    excess = max_over_mean(array) - 1
    per_layer = {"mean": array.mean(axis=-1), "std": std, "imbalance-ratio": excess}
    count = busy.sum(axis=0)[layers]
    return {
        name: float(np.mean(np.where(busy, value, 0.0).sum(axis=0)[layers] / count))
        for name, value in per_layer.items()
    }


def balance_report(
    loads: np.ndarray | Sequence, plan: Plan | None = None, devices: int | None = None
) -> dict[str, float]:
    """Every measure of device loads [L, G] or [W, L, G]; or of expert loads [.., L, E] under a plan.

    Ratios have no unit; `mean_load`, `p99_load` and `trtllm_std` have the loads' unit. `max_over_min` is
    infinite as soon as one device has nothing in a layer; `idle` is the share of such (layer, device) pairs.
    `utilisation` is `mean_over_max` by its other name: while all wait for the slowest, they are the same.
    """
    if plan is not None:
        if devices is None:
            raise ValueError("devices: None is not allowed with a plan; allowed: the number of devices")
        loads = device_loads(loads, plan, devices)
    array = checked_loads(loads, (2, 3))
    if array.shape[-1] == 0:
        raise ValueError("loads: 0 devices are not allowed; allowed: 1 and above")
    mean = array.mean(axis=-1).reshape(-1, array.shape[-2]).mean(axis=0)  # [L]
    p99, layers = p99_load(array), mean > 0
    theirs = trtllm_load_statistics(array)
    return {
        "max_over_mean": average(max_over_mean(array), array),
        "mean_over_max": average(mean_over_max(array), array),
        "cv": average(cv(array), array, 0.0),
        "gini": average(gini(array), array, 0.0),
        "max_over_min": average(max_over_min(array), array),
        "utilisation": average(mean_over_max(array), array),
        "parallel_efficiency": parallel_efficiency(array),
        "idle": average((array == 0).mean(axis=-1), array, 0.0),
        "mean_load": average(array.mean(axis=-1), array, 0.0),
        "p99_load": float(p99[layers].mean()) if layers.any() else 0.0,
        "p99_over_mean": float((p99[layers] / mean[layers]).mean()) if layers.any() else 1.0,
        "vllm_balancedness": vllm_balancedness(array),
        "vllm_balancedness_across_layers": vllm_balancedness_across_layers(array),
        "sglang_balancedness": sglang_balancedness(array),
        "trtllm_imbalance_ratio": theirs["imbalance-ratio"],
        "trtllm_std": theirs["std"],
    }


def imbalance(loads: np.ndarray, plan: Plan, devices: int) -> np.ndarray:
    """max/mean of device loads, averaged over the layers with load: one figure per window [W] or [].

    What triggers and the judge look at. Expert loads are [L, E] or [W, L, E].
    """
    array = device_loads(loads, plan, devices)
    busy = array.any(axis=-1)
    total = np.where(busy, max_over_mean(array), 0.0).sum(axis=-1)
    return np.where(busy.any(axis=-1), total / np.maximum(busy.sum(axis=-1), 1), 1.0)


def _ratio(over: np.ndarray, under: np.ndarray, empty: float = 1.0) -> np.ndarray:
    """Quotient; `empty` for 0 / 0 and infinite for more than nothing over nothing."""
    over, under = np.asarray(over, np.float64), np.asarray(under, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((over == 0) & (under == 0), empty, over / under)


def _vllm(mean: np.ndarray, most: np.ndarray) -> float:
    return float(np.mean(np.where(most > 0, mean / np.where(most > 0, most, 1.0), 0.0)))
