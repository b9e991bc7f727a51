"""What messages take: latency and bandwidth of the level that they cross, ports and links that they share."""

from __future__ import annotations

import numpy as np

from rayemu.hardware.spec import Hardware, Level


def level_of(hardware: Hardware, name: str) -> Level:
    """The link of a level: where a hardware does not say, that of the next one below."""
    links = hardware.links
    found = {"bank": links.bank, "module": links.module, "node": links.node, "cluster": links.cluster}
    order = ("bank", "module", "node", "cluster")
    for at in range(order.index(name), -1, -1):
        if (level := found[order[at]]) is not None:
            return level
    return links.module


def all_to_all_seconds(hardware: Hardware, sizes: np.ndarray, module_to_node: np.ndarray) -> float:
    """Seconds of one exchange of `sizes` [M, M] bytes from row to column; what stays at home is free."""
    modules = len(sizes)
    if sizes.shape != (modules, modules) or len(module_to_node) != modules:
        raise ValueError(
            f"bytes_between has shape {sizes.shape}; it must be [M, M] with a node for each module"
        )
    away = np.where(np.eye(modules, dtype=bool), 0.0, sizes.astype(np.float64))
    far = module_to_node[:, None] != module_to_node[None, :]
    worst = 0.0
    for name, mine in (("module", away * ~far), ("node", away * far)):
        if not mine.any():
            continue
        level = level_of(hardware, name)
        sent, received = mine.sum(1), mine.sum(0)
        if level.shared and name == "node":
            sent = np.bincount(module_to_node, weights=sent)
            received = np.bincount(module_to_node, weights=received)
        messages = float((mine > 0).sum(1).max())
        time = max(sent.max(), received.max()) / (level.bandwidth * level.share)
        worst = max(worst, level.latency + messages * level.overhead + time)
    return worst
