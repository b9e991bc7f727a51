"""PIM parts: what their makers and papers state of them, derived again from the figures of the presets."""

from __future__ import annotations

from rayemu.hardware import Hardware, load_hardware

from .checks import Check, Row


def checks() -> list[Check]:
    """Bandwidths, rates, energies and link latencies, to the digits that were published."""
    return [_bandwidths(), _rates(), _energies(), _links(), _fetching(), _power()]


def _inside(hardware: Hardware) -> float:
    """Bytes/s that a module reads inside within its power limit."""
    banks = hardware.spec.module.banks
    return min(banks.count * banks.bandwidth, banks.limit or float("inf"))


def _ridge(hardware: Hardware) -> float:
    return hardware.spec.module.compute.rates["fp16"] / _inside(hardware)


def _bandwidths() -> Check:
    limited, unlimited = load_hardware("attacc-hbm3-pim"), load_hardware("attacc-hbm3-pim-16x")
    hbm2, aim, upmem = (load_hardware(name) for name in ("hbm2-pim", "gddr6-aim", "upmem"))
    outside = limited.spec.module.external or float("nan")
    timing = hbm2.spec.module.banks.rows
    simulator = hbm2.spec.module.banks.count * timing.burst / timing.gap if timing else float("nan")
    rows = (
        Row("AttAcc, outside a stack", outside / 1e9, "670.4"),
        Row("AttAcc, bank over outside, power-limited", _inside(limited) / outside, "9"),
        Row("AttAcc, bank over outside, unlimited", _inside(unlimited) / outside, "16"),
        Row("AttAcc, power-limited, TB/s", _inside(limited) / 1e12, "6.03"),
        Row("AttAcc, unlimited, TB/s", _inside(unlimited) / 1e12, "10.7"),
        Row("HBM2-PIM, inside", _inside(hbm2) / 1e9, "1229"),
        Row("HBM2-PIM, outside", (hbm2.spec.module.external or float("nan")) / 1e9, "307"),
        Row("PIMSimulator, 32 B each tCCDL, inside", simulator / 1e9, "1024"),
        Row("GDDR6-AiM, a channel of 16 banks", 16 * aim.spec.module.banks.bandwidth / 1e9, "512"),
        Row("UPMEM, one DPU, MB/s", upmem.spec.module.banks.bandwidth / 1e6, "700"),
    )
    return Check("Bandwidth inside PIM parts", "makers and papers, see the presets", "GB/s", rows)


def _rates() -> Check:
    names = ("hbm2-pim", "gddr6-aim", "attacc-hbm3-pim", "text-pim")
    hbm2, aim, attacc, text = (load_hardware(name) for name in names)
    channel = aim.spec.module.compute.rates["bf16"] / aim.spec.module.banks.count * 16
    rows = (
        Row("HBM2-PIM, TFLOPS", hbm2.spec.module.compute.rates["fp16"] / 1e12, "1.2"),
        Row("GDDR6-AiM, a channel, GFLOPS", channel / 1e9, "512"),
        Row("AttAcc, operations a byte", _ridge(attacc), "1"),
        Row("HBM2-PIM, operations a byte", _ridge(hbm2), "1"),
        Row("the texts' module, operations a byte", _ridge(text), "3.9"),
    )
    return Check("Arithmetic of PIM parts", "makers and papers, see the presets", "", rows)


def _energies() -> Check:
    """The way of a bit out of a stack, part by part: what computing nearer to the cells saves."""
    parts = load_hardware("h100-sxm").spec.energy.parts
    way = [parts[name] * 1e12 for name in list(parts)[:6]]
    at_bank = load_hardware("attacc-hbm3-pim").spec.energy
    rows = (
        Row("all the way to a GPU", sum(way), "3.59"),
        Row("PIM at the bank", sum(way[:2]), "0.55"),
        Row("PIM at the bank group", sum(way[:3]), "1.56"),
        Row("PIM at the buffer", sum(way[:5]), "3.29"),
        Row("PIM at the bank, as preset", at_bank.weights * 1e12, "0.55"),
        Row("NVLink", at_bank.links["module"] * 1e12, "1.3"),
    )
    return Check("Energy of a bit", "AttAcc's configuration, after Fine-Grained DRAM", "pJ/bit", rows)


def _links() -> Check:
    """CENT's hop and back, 4 x 25 + 2 x (5 + 20 + 5) + 20 ns, and 144 lanes of 8 GB/s for 32 devices."""
    level = load_hardware("gddr6-aim").spec.links.module
    energy = load_hardware("gddr6-aim").spec.energy
    rows = (
        Row("latency of a hop and back, ns", level.latency * 1e9, "180"),
        Row("bandwidth of a device, GB/s", level.bandwidth / 1e9, "36"),
        Row("PCIe, pJ/bit", energy.links["module"] * 1e12, "4.4"),
        Row("DQ, pJ/bit", (energy.activations or 0.0) * 1e12, "5.5"),
    )
    return Check("CENT's links", "its repository", "", rows)


def _fetching() -> Check:
    """A GPU that fetches weights, by how many bytes come: the latency and the share are of the ends alone."""
    fetch = load_hardware("h100-offload").spec.module.fetch
    rows = []
    for name, size, published in (
        ("1 MiB", 2**20, "44"),
        ("16 MiB", 2**24, "54.3"),
        ("88 MiB", 88 * 2**20, "54.9"),
    ):
        seconds = fetch.latency + size / (fetch.bandwidth * fetch.share) if fetch else float("nan")
        rows.append(Row(name, size / seconds / 1e9, published))
    return Check("H100, weights over PCIe", "measured on an H100 SXM", "GB/s", tuple(rows), 0.05, aim=0.02)


def _power() -> Check:
    """Watts in a loop of Mixtral's expert: the two points from which the energy constants were derived."""
    hardware = load_hardware("h100-sxm")
    rows = []
    for count, published in ((8, "461"), (4096, "697")):
        joules = float(hardware.expert_joules(4096, 14336, count))
        rows.append(
            Row(f"{count} rows", joules / float(hardware.expert_seconds(4096, 14336, count)), published)
        )
    return Check(
        "H100, power in a loop of passes", "measured on an H100 SXM", "W", tuple(rows), 0.1, aim=0.05
    )
