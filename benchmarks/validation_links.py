"""Links: All-to-All of two H100, dispatch and combine of DeepEP, and closed forms on full and ring."""

from __future__ import annotations

import numpy as np

from rayemu.hardware import Hardware, load_hardware
from rayemu.hardware.transfers import even_exchange_seconds, hierarchical, pairwise, phases_seconds

from .checks import Check, Row

NVLINK_KIB_US = {
    1: "26",
    16: "24",
    64: "24",
    256: "27",
    1024: "24",
    4096: "33",
    16384: "82",
    65536: "265",
    262144: "973",
}
# DeepEP, docs/legacy.md: low-latency kernels, microseconds by EP, dispatch (FP8) and combine (BF16).
DEEPEP_US = {
    8: ("77", "114"),
    16: ("118", "195"),
    32: ("155", "273"),
    64: ("173", "314"),
    128: ("192", "369"),
    256: ("194", "360"),
}
COPIES = 128 * 8  # 128 tokens of each rank, to 8 experts each
DISPATCHED = COPIES * (7168 + 56 * 4 + 16)  # fp8 values, a scale for each 128, a header: 7.59 MB
COMBINED = COPIES * 7168 * 2  # bf16
# What closed forms are computed with: seconds, bytes per second, bytes.
LATENCY, FAR, HOP = 2e-6, 5e-6, 1e-7
BANDWIDTH, FAR_BANDWIDTH, SIZE = 50e9, 12.5e9, 1e6


def checks() -> list[Check]:
    """Two measured tables, one of them with rows that no constant was fitted to, and the closed forms."""
    return [nvlink(), *deepep(), closed_forms()]


def nvlink() -> Check:
    """Two cards, equal parts, by what each sends to the other."""
    hw = load_hardware("h100-sxm")
    rows = tuple(
        Row(f"{kib:,} KiB", 1e6 * hw.all_to_all_seconds(1024.0 * kib * (1 - np.eye(2))), published)
        for kib, published in NVLINK_KIB_US.items()
    )
    source = "measured on two H100 SXM over NVLink, NCCL, median of five"
    return Check("All-to-All of two H100 over NVLink", source, "us", rows, bound=0.15, aim=0.08)


def deepep() -> list[Check]:
    """Each rank sends its copies to experts drawn evenly: the same to all ranks, itself among them."""
    hw = load_hardware("h800")
    source = "DeepEP V1, docs/legacy.md: H800 with ConnectX-7"
    found = []
    for at, (name, size) in enumerate((("dispatch", DISPATCHED), ("combine", COMBINED))):
        rows = tuple(
            Row(f"EP {ep}", 1e6 * even_exchange_seconds(hw.spec, size, ep), published[at])
            for ep, published in DEEPEP_US.items()
        )
        # Nothing was fitted to the combine: its bound says how far the model carries, not what is promised.
        bound, aim = (0.05, 0.03) if name == "dispatch" else (0.15, 0.05)
        title = f"DeepEP, low-latency {name}{'' if name == 'dispatch' else ' (nothing fitted to it)'}"
        found.append(Check(title, source, "us", rows, bound=bound, aim=aim))
    return found


def closed_forms() -> Check:
    """Pairwise, all at once and hierarchical on crossbars and rings, SIZE bytes from each to each.

    With the latency a, the hop h and seconds per byte b; Thakur, Rabenseifner, Gropp 2005 for the pairwise
    exchange, (M - 1)(a + n b); on a ring of even M shortest paths put M^2 / 8 messages on every link.
    """
    rows = []
    for modules in (4, 8, 16, 64):
        sizes = np.full((modules, modules), SIZE)
        for kind in ("full", "ring"):
            hw = _machine(kind, modules)
            home = np.zeros(modules, int)
            name = f"{kind}, {modules} modules"
            together = hw.all_to_all_seconds(sizes)
            rows.append(_row(f"{name}, all at once", together, _at_once(kind, modules, SIZE)))
            took = phases_seconds(hw.spec, pairwise(sizes), home)
            rows.append(_row(f"{name}, pairwise", took, _pairwise(kind, modules)))
    for nodes, each in ((2, 4), (4, 8), (8, 8)):
        modules = nodes * each
        node_of = np.arange(modules) // each
        for kind in ("full", "ring"):
            hw = _machine(kind, each)
            phases = hierarchical(np.full((modules, modules), SIZE), node_of)
            took = phases_seconds(hw.spec, phases, node_of)
            name = f"{kind}, {nodes} nodes of {each}, hierarchical"
            rows.append(_row(name, took, _hierarchical(kind, nodes, each)))
    return Check("Exchanges in closed form", "benchmarks/validation_links.py", "us", tuple(rows), bound=1e-3)


def _at_once(
    kind: str, ends: int, size: float, latency: float = LATENCY, bandwidth: float = BANDWIDTH
) -> float:
    """All messages together: full a + (M - 1) n b, ring a + (M / 2 - 1) h + M^2 / 8 n b."""
    if kind == "full":
        return latency + (ends - 1) * size / bandwidth
    return latency + (ends / 2 - 1) * HOP + ends**2 / 8 * size / bandwidth


def _pairwise(kind: str, ends: int) -> float:
    """M - 1 shifts: full (M - 1)(a + n b); ring (M - 1)(a - h) + M^2 / 4 h + (M^2 - M) / 4 n b."""
    if kind == "full":
        return (ends - 1) * (LATENCY + SIZE / BANDWIDTH)
    hops = ends**2 / 4  # of all shifts: the sum of min(k, M - k)
    return (ends - 1) * (LATENCY - HOP) + hops * HOP + (ends**2 - ends) / 4 * SIZE / BANDWIDTH


def _hierarchical(kind: str, nodes: int, each: int) -> float:
    """m^2 n bytes between each two nodes over shared links, then N n between each two of a node's modules."""
    far = _at_once(kind, nodes, each**2 * SIZE, FAR, FAR_BANDWIDTH)
    return far + _at_once(kind, each, nodes * SIZE)


def _machine(kind: str, each: int) -> Hardware:
    """Nodes of modules, both joined in one way; a node's link is shared by its modules."""

    def level(latency: float, bandwidth: float, shared: str) -> str:
        hop = f"{{kind: {kind}, hop: {{value: {HOP} s, source: closed form}}}}"
        return (
            f"{{latency: {{value: {latency} s, source: closed form}}, "
            f"bandwidth: {{value: {bandwidth} B/s, source: closed form}}, topology: {hop}, shared: {shared}}}"
        )

    return load_hardware(
        "text-pim",
        f"modules_per_node.value={each}",
        f"links.module={level(LATENCY, BANDWIDTH, 'false')}",
        f"links.node={level(FAR, FAR_BANDWIDTH, 'true')}",
    )


def _row(what: str, seconds: float, formula: float) -> Row:
    return Row(what, 1e6 * seconds, f"{1e6 * formula:.9f}")
