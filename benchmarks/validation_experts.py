"""Expert passes on an H100 against what was measured on one."""

from __future__ import annotations

from collections.abc import Mapping

from rayemu.hardware import load_hardware

from .checks import Check, Row

# Microseconds of `x @ up [D, 2F]`, silu times product, `@ down [F, D]` by number of rows: CUDA events, the
# median of five, the weights of different experts in turn.
ROWS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096)
MEASURED = {
    ("Mixtral-8x7B", 4096, 14336): "131 136 143 142 157 183 306 599 1169 2304",
    ("DeepSeek-V3", 7168, 2048): "48-80 50 49 50 50 57 79 140 278 544",
}
SOURCE = "measured on an H100 SXM (80 GB), bf16, PyTorch 2.11"
# Measured on another such card after the constants had been fitted, which did not change them. Of small
# experts only passes that are longer than their launch: that depends on the processor beside the card.
UNSEEN = {
    ("Mixtral-8x22B", 6144, 16384): {
        1: "213.7", 8: "217.5", 32: "219.9", 64: "227.4", 96: "236.3", 128: "240.6", 192: "262.5",
        256: "270.6", 384: "376.6", 512: "517.6", 768: "755.6", 1024: "1013.6", 1536: "1502.2",
        2048: "2016.8", 4096: "4035.5",
    },
    ("Qwen3-235B", 4096, 1536): {1536: "98.2", 2048: "128.0", 4096: "243.0"},
    ("Qwen3-30B", 2048, 768): {4096: "80.2"},
    ("OLMoE", 2048, 1024): {4096: "101.0"},
    ("DeepSeek-V2-Lite", 2048, 1408): {2048: "76.0", 4096: "139.8"},
}  # fmt: skip


def checks() -> list[Check]:
    """The H100's expert passes: each within 15 %, 8 % on average, fitted and unseen ones alike."""
    fitted = {shape: dict(zip(ROWS, line.split(), strict=True)) for shape, line in MEASURED.items()}
    unseen = f"{SOURCE}, not used in any fit"
    return [
        Check("H100, one expert", SOURCE, "us", _rows(fitted), bound=0.15, mean=0.08, aim=0.05),
        Check("H100, experts not seen", unseen, "us", _rows(UNSEEN), bound=0.15, mean=0.08, aim=0.05),
    ]


def _rows(measured: Mapping[tuple[str, int, int], Mapping[int, str]]) -> tuple[Row, ...]:
    hardware = load_hardware("h100-sxm")
    return tuple(
        Row(f"{model}, {rows} rows", float(hardware.expert_seconds(d_model, d_ff, rows)) * 1e6, published)
        for (model, d_model, d_ff), line in measured.items()
        for rows, published in line.items()
    )
