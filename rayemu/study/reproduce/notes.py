"""Texts 001 and 002: scheduling, placement, compression and kernels."""

from __future__ import annotations

from rayemu.study.reproduce.row import Row

_OVERLAP = "1.1 Overlap"
_LOCAL = "3.1 Local experts first"
_STAGES = "3.2 Routing in two stages"
_BATCH = "4.1 Batches per expert"
_SHARED = "5.1 Shared parameters"
_MERGED = "5.2 Experts merged"
_PACKED = "6.1 Tokens compressed"
_GRADIENTS = "6.2 Gradients compressed"
_TOGETHER = "8.1 All together"
_MASK = "Masked GEMM"
_LOAD = "Everyday example"
_MULTICAST = "TMA multicast"
_RESULTS = "Measured results"
_STEPS = {"route": "10 ms", "send": "5 ms", "compute": "20 ms", "gather": "5 ms"}
_WIDTHS = {"d_model": 4096, "d_ff": 14336}
_ADJUSTED = {"adjusted": (0.35, 0.24, 0.20, 0.08, 0.04)}

ROWS = (
    Row("001-serial", _OVERLAP, "route, send, compute, gather", _STEPS, "route + send + compute + gather",
        "40", "ms"),
    Row("001-overlap", _OVERLAP, "with overlap, one batch, by its formula",
        {"route": "10 ms", "send": "5 ms", "compute": "20 ms", "batches": 1},
        "route + max(compute, send) * batches", "30", "ms"),
    Row("001-overlap-saved", _OVERLAP, "time saved by overlap", {"before": "40 ms", "after": "30 ms"},
        "1 - after / before", "25", "%"),
    Row("001-overlap-one", _OVERLAP, "with overlap, one batch, where computing waits for what it computes",
        _STEPS, "route + send + compute + gather", "30", "ms", corrected=True,
        why="one batch cannot overlap with itself; in n parts it is 30 ms + 10 ms / n"),
    Row("001-local-penalty", _LOCAL, "penalty from which experts 0 and 2 are the chosen",
        {"remote": 0.30, "local": 0.20}, "1 - local / remote", "0.2",
        reading="expert 1 remote, experts 0 and 2 local, top 2",
        why="0.30 x 0.8 = 0.24 is still above 0.20, so experts 0 and 1 are; it takes more than 1/3"),
    Row("001-local-first", _LOCAL, "expert 0's probability after its code's normalisation",
        _ADJUSTED, "adjusted[0] / sum(adjusted)", "0.35",
        why="its list adds up to 0.91: the normalisation of its code is left out"),
    Row("001-stages-saved", _STAGES, "traffic saved if 80 % of the tokens stay local",
        {"local": "80 %"}, "local", "60-70", "%", corrected=True,
        reading="the other 20 % send as much as all tokens did before",
        why="60 to 70 % hold if those 20 % send 1.5 to 2 times as much as a token did before"),
    Row("001-batch-gain", _BATCH, "200 tokens at once against one by one",
        {"single": "20 ms", "batch": "5 ms"}, "single / batch", "4", "x"),
    Row("001-batch-use", _BATCH, "utilisation one by one, if at once it is 85 %",
        {"batch": "85 %", "batch_time": "5 ms", "single_time": "20 ms"}, "batch * batch_time / single_time",
        "30", "%", why="the same work in four times the time is a quarter of 85 %"),
    Row("001-batch-calls", _BATCH, "kernel calls of four groups to those of eight experts",
        {"groups": 4, "experts": 8}, "groups / experts", "50", "%"),
    Row("001-expert-params", _SHARED, "parameters of an expert, two matrices", _WIDTHS, "2 * d_model * d_ff",
        "117", "M params", reading="without the gate matrix that a Mixtral expert of this size has"),
    Row("001-all-params", _SHARED, "parameters of eight experts", {"expert": "117 M params", "experts": 8},
        "expert * experts",
        "936", "M params"),
    Row("001-up-params", _SHARED, "parameters of one shared up projection", _WIDTHS, "d_model * d_ff", "59",
        "M params"),
    Row("001-down-params", _SHARED, "parameters of eight down projections",
        {**_WIDTHS, "experts": 8}, "experts * d_model * d_ff", "470", "M params"),
    Row("001-shared-params", _SHARED, "parameters of both", {"up": "59 M params", "down": "470 M params"},
        "up + down",
        "529", "M params"),
    Row("001-shared-saved", _SHARED, "parameters saved by sharing",
        {"before": "936 M params", "after": "529 M params"},
        "1 - after / before", "43", "%"),
    Row("001-merged-experts", _MERGED, "experts left of 8 when pairs alike by more than 0.9 are merged",
        {"experts": 8, "threshold": 0.9, "alike": (0.92, 0.88)},
        "experts - sum(a > threshold for a in alike)",
        "6", "experts", why="0.88 is below its threshold of 0.9: one pair is merged, not two"),
    Row("001-merged-saved", _MERGED, "parameters saved by 8 to 6", {"before": 8, "after": 6},
        "1 - after / before",
        "25", "%"),
    Row("001-narrow-ratio", _PACKED, "ratio of 1,024 of 4,096 dimensions", {"before": 4096, "after": 1024},
        "before / after", "4", "x"),
    Row("001-both-ratio", _PACKED, "ratio of 2,048 dimensions at INT8",
        {"before": 4096, "after": 2048, "fp16": 16, "int8": 8}, "before / after * fp16 / int8", "4", "x"),
    Row("001-plain-bytes", _PACKED, "bytes of 4 x 2,048 tokens",
        {"batch": 4, "length": 2048, "d_model": 4096}, "batch * length * d_model * 2", "64", "MiB"),
    Row("001-plain-time", _PACKED, "time for them at 25 GB/s", {"volume": "64 MiB", "link": "25 GB/s"},
        "volume / link", "2.5", "ms", why="64 MiB taken for 64 MB, and 2.56 cut off"),
    Row("001-packed-time", _PACKED, "time for a quarter", {"volume": "16 MB", "link": "25 GB/s"},
        "volume / link",
        "0.6", "ms"),
    Row("001-packed-total", _PACKED, "time for a quarter, with unpacking",
        {"send": "0.6 ms", "unpack": "0.2 ms"}, "send + unpack",
        "0.8", "ms", reading="packing costs nothing"),
    Row("001-packed-gain", _PACKED, "gain of compression", {"before": "2.5 ms", "after": "0.8 ms"},
        "before / after", "3", "x"),
    Row("001-top-ratio", _GRADIENTS, "ratio of sending the largest 1 %, each with its index",
        {"part": 0.01, "value": "4 B", "index": "4 B"}, "value / (part * (value + index))", "100", "x",
        corrected=True, why="what is sent must say where it belongs; with indices of 8 bytes it is 33"),
    Row("001-bits-ratio", _GRADIENTS, "ratio of FP32 at 4 bits", {"before": 32, "after": 4},
        "before / after", "8", "x"),
    *(
        Row(f"001-together-{name}", _TOGETHER, f"saved from {before} to {after} ms",
            {"before": f"{before} ms", "after": f"{after} ms"}, "1 - after / before", saved, "%")
        for name, before, after, saved in (
            ("batch", 50, 40, "20"), ("overlap", 40, 32, "20"), ("local", 32, 28, "12"), ("fused", 28, 25,
            "11"),
        )
    ),
    Row("001-together", _TOGETHER, "gain in all", {"before": "50 ms", "after": "25 ms"}, "before / after",
        "2", "x"),
    Row("002-pupils", _LOAD, "pupils of four teachers", {"loads": (3, 2, 2, 1)}, "sum(loads)", "8"),
    Row("002-loads-serial", _MULTICAST, "four loads one after another", {"experts": 4, "load": "100 cycles"},
        "experts * load", "400", "cycles"),
    Row("002-loads-multicast", _MULTICAST, "one multicast, then computing",
        {"multicast": "120 cycles", "compute": "80 cycles"}, "multicast + compute", "200", "cycles"),
    Row("002-multicast-gain", _MULTICAST, "gain of the multicast",
        {"before": "400 cycles", "after": "200 cycles"}, "before / after",
        "2", "x"),
    Row("002-multicast-fair", _MULTICAST, "gain of the multicast where both compute",
        {"loads": "400 cycles", "multicast": "120 cycles", "compute": "80 cycles"},
        "(loads + compute) / (multicast + compute)", "2.0", "x", corrected=True,
        reading="computing in parallel after the last load, as after the multicast",
        why="the first time line leaves out the 80 cycles of computing that the second one has"),
    Row("002-mask-tokens", _MASK, "tokens that an expert's mask of type uint8 can mark",
        {"bits": 8}, "bits", "1,024", "tokens", reading="its batch of 1,024 tokens in the measurement",
        why="an expert is given no token beyond the eighth"),
    *(
        Row(f"002-gain-{name}", _RESULTS, f"{what}, 125.3 to {after} ms",
            {"before": "125.3 ms", "after": f"{after} ms"}, "before / after", gain, "x")
        for name, what, after, gain in (
            ("balance", "load balancing", 78.6, "1.6"),
            ("layout", "rows of an expert together", 45.2, "2.8"),
            ("multicast", "TMA multicast", 28.7, "4.4"),
        )
    ),
)  # fmt: skip
