"""Expert passes on an H100 against what was measured on one."""

from __future__ import annotations

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


def checks() -> list[Check]:
    """The H100's expert passes: each within 15 %, 8 % on average."""
    hardware = load_hardware("h100-sxm")
    rows = []
    for (model, d_model, d_ff), line in MEASURED.items():
        for count, published in zip(ROWS, line.split(), strict=True):
            predicted = float(hardware.expert_seconds(d_model, d_ff, count)) * 1e6
            rows.append(Row(f"{model}, {count} rows", predicted, published))
    return [Check("H100, one expert", SOURCE, "us", tuple(rows), bound=0.15, mean=0.08, aim=0.05)]
