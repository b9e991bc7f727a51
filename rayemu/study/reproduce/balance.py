"""Text 000: load of experts, copies, what balancing is said to bring, and redundancy."""

from __future__ import annotations

from rayemu.study.reproduce.row import Row

_USE = "11.1.4 Use of eight experts"
_ZIPF = "11.1.4 Zipf's law"
_PARALLEL = "11.1.5 Experts at once"
_COPYING = "11.1.5 Copying an expert"
_SAFE = "11.1.5 Redundancy"
_CHIP = "11.2.1 An expert to a chip"
_SHARD = "11.2.1 Layers or columns to chips"
_COPIES = "11.2.1 Copies of experts"
_BANKS = "11.2.2 Experts to banks"
_LOCAL = "11.2.3 Locality"
_USE32 = "11.5.1 Use of 32 experts"
_RESULT = "11.5.5 What balancing brings"
_LOADS = {"loads": (185e3, 123e3, 157e3, 102e3, 118e3, 93e3, 140e3, 82e3)}
_SHARES = {"shares": (0.185, 0.157, 0.123, 0.102, 0.098, 0.093, 0.140, 0.082)}
_VARIANCE = {"variance": (0.023, 0.018, 0.015, 0.012, 0.011, 0.010, 0.017, 0.009)}
_PLAN = {"copies": (4, 3, 3, 2, 2, 1, 3, 1)}
_LISTED = (185420.0, 156890.0, 123450.0, 98760.0, 87650.0, 76540.0, 65430.0, 54320.0)
_COPY_RULE = "min(int({share} * 32 / 4) + int({variance} * 10), 4)"
_TOP_SHARE = "sum(r**-alpha for r in range(1, 7)) / sum(r**-alpha for r in range(1, 33))"

ROWS = (
    Row("000-use-ratio", _USE, "most to least used", _LOADS, "max(loads) / min(loads)", "2.26", "x"),
    Row("000-use-deviation", _USE, "standard deviation",
        _LOADS, "sqrt(sum((x - sum(loads) / 8)**2 for x in loads) / 8)", "35.8", "ktokens",
        reading="of these eight, dividing by 8; dividing by 7 gives 34.4",
        why="neither way of counting gives 35.8"),
    Row("000-use-spread", _USE, "standard deviation as a part of all tokens",
        {"deviation": "32.2 ktokens", "tokens": 1e6}, "deviation / tokens", "3-5", "%",
        reading="the range is that of 11.1.2"),
    Row("000-use-hottest", _USE, "fullest expert to the mean",
        {"most": "185 ktokens", "mean": "125 ktokens"}, "most / mean", "1.5-2", "x", step=0.1,
        reading="the range is that of 11.1.2; above 1.5 experts are copied (11.1.5), which none reaches"),
    Row("000-use-variation", _USE, "coefficient of variation",
        {"deviation": "35.8 ktokens", "mean": "125 ktokens"}, "deviation / mean", "0.358",
        why="divided by 100, not by the mean of 125"),
    Row("000-use-delay", _USE, "delay by the fullest expert",
        {"most": "185 ktokens", "mean": "125 ktokens"}, "most / mean - 1", "48", "%"),
    *(
        Row(f"000-zipf-{name}", _ZIPF, f"share of the fullest fifth at alpha {alpha}",
            {"alpha": alpha}, _TOP_SHARE, "60-70", "%",
            reading="6 of the chapter's 32 experts", why=why)
        for name, alpha, why in (
            ("flat", 0.5, "so flat a law gives the fullest fifth 45 % at most, of however many experts"),
            ("steep", 0.8, "51 % of 32 experts; it takes some 170 experts to come to 60 %"),
        )
    ),
    Row("000-even-load", _PARALLEL, "visits to each of 8 experts, 2,048 tokens, top 2",
        {"tokens": 2048, "top_k": 2, "experts": 8}, "tokens * top_k / experts", "512", "tokens"),
    Row("000-most-load", _PARALLEL, "visits to the fullest expert",
        {"tokens": 2048, "top_k": 2, "share": "18.5 %"}, "tokens * top_k * share", "758", "tokens"),
    Row("000-efficiency", _PARALLEL, "mean to fullest", {"mean": 512, "most": 758}, "mean / most", "0.68"),
    Row("000-shares-sum", _PARALLEL, "sum of the shares listed", _SHARES, "sum(shares)", "100", "%",
        reading="the text does not say that they sum to 1; shares of all tokens must",
        why="11.8 % of 11.1.4 became 9.8 %"),
    Row("000-copy-inside", _COPYING, "copy of an expert between banks",
        {"expert": "34.2 GB", "banks": "1 TB/s"}, "expert / banks", "34", "ms"),
    Row("000-copy-across", _COPYING, "copy to another node",
        {"expert": "34.2 GB", "link": "100 GB/s"}, "expert / link", "342", "ms"),
    Row("000-copy-banks", _COPYING, "copy between banks, by the module of the same section",
        {"expert": "34.2 GB", "module": "256 GB/s"}, "expert / module", "34", "ms",
        reading="read once; written to the same banks it takes twice that",
        why="16 banks of 16 GB/s cannot be read at 1 TB/s"),
    Row("000-spare-shared", _SAFE, "room for one spare of eight", {"experts": 8}, "1 / experts", "12.5", "%"),
    Row("000-spare-coded", _SAFE, "room for a (6, 8) code", {"data": 6, "blocks": 8}, "blocks / data - 1",
        "33", "%"),
    Row("000-recovery", _SAFE, "time to detect, switch and rebuild",
        {"detect": "10 ms", "switch": "5 ms", "rebuild": "50 ms"}, "detect + switch + rebuild", "65", "ms"),
    Row("000-chip-params", _CHIP, "parameters of an expert of 34.2 GB at FP16",
        {"expert": "34.2 GB"}, "expert / 2", "22", "B params", why="22 B are 44 GB; 34.2 GB are 17 B"),
    Row("000-chip-tier", "11.2.4 Tiers", "bytes of an expert in its module, by 11.2.1",
        {"layer": "1.07 GB", "layers": 32}, "layer * layers", "22", "GB",
        why="22 GB here, 34.2 GB there: 22 were parameters in billions"),
    Row("000-chip-free", _CHIP, "room left in 64 GB",
        {"chip": "64 GB", "expert": "34.2 GB", "buffers": "8 GB", "shared": "2 GB"},
        "chip - expert - buffers - shared", "19.8", "GB"),
    Row("000-layers-weights", _SHARD, "weights of eight experts' four layers",
        {"experts": 8, "layers": 4, "each": "1.07 GB"}, "experts * layers * each", "34.2", "GB"),
    Row("000-layers-router", _SHARD, "routers of four layers", {"layers": 4, "each": "128 KiB"},
        "layers * each",
        "512", "KiB"),
    Row("000-layers-total", _SHARD, "memory used",
        {"weights": "34.2 GB", "buffers": "8.6 GB"}, "weights + buffers", "42.8", "GB"),
    Row("000-layers-share", _SHARD, "part of a chip's memory", {"used": "42.8 GB", "chip": "64 GB"},
        "used / chip", "67", "%",
        reading="66.9, rounded"),
    Row("000-columns-shard", _SHARD, "a quarter of W1's columns, 32 experts",
        {"experts": 32, "d_model": 8192, "columns": 8192}, "experts * d_model * columns * 2", "4.3", "GB"),
    Row("000-columns-total", _SHARD, "W1 and W2 of 32 layers",
        {"w1": "4.3 GB", "w2": "4.3 GB", "layers": 32}, "(w1 + w2) * layers", "275", "GB"),
    Row("000-columns-chips", _SHARD, "chips of 64 GB for four such quarters",
        {"quarter": "275 GB", "chip": "64 GB"}, "ceil(4 * quarter / chip)", "4", "chips",
        why="a chip of 64 GB is given 275 GB"),
    Row("000-copies-sum", _COPIES, "copies of the plan", _PLAN, "sum(copies)", "19", "copies"),
    Row("000-copies-factor", _COPIES, "copies per expert", {"copies": 19, "experts": 8}, "copies / experts",
        "2.375", "x"),
    Row("000-copies-bytes", _COPIES, "bytes of the 19 copies", {"copies": 19, "expert": "34.2 GB"},
        "copies * expert",
        "649.8", "GB"),
    Row("000-copies-spare", _COPIES, "chips left of 32", {"chips": 32, "used": 19}, "chips - used", "13",
        "chips"),
    Row("000-copies-first", _COPIES, "copies of expert 0 by the text's function",
        {"share": 0.185, "variance": 0.023}, _COPY_RULE.format(share="share", variance="variance"), "4",
        "copies",
        why="int(1.48) + int(0.23) is 1"),
    Row("000-copies-rule", _COPIES, "copies of all eight by that function",
        {**_SHARES, **_VARIANCE},
        f"sum({_COPY_RULE.format(share='s', variance='v')} for s, v in zip(shares, variance))", "19",
        "copies",
        why="it gives experts 0, 1 and 6 one copy and the other five none"),
    Row("000-copies-ratio", _COPIES, "most to least load of a copy under the plan",
        {**_SHARES, **_PLAN},
        "max(s / c for s, c in zip(shares, copies)) / min(s / c for s, c in zip(shares, copies))", "1.31",
        "x",
        why="expert 5 keeps its 9.3 % on one chip beside expert 2's 4.1 %: no better than the 2.26 before"),
    Row("000-copies-gain", _COPIES, "improvement from 2.26 to 1.31",
        {"before": 2.26, "after": 1.31}, "1 - after / before", "42", "%"),
    Row("000-bank-of", _BANKS, "bank of expert 5, layer 3",
        {"expert": 5, "layer": 3}, "expert % 8 * 2 + layer % 2", "11"),
    Row("000-visits", _LOCAL, "visits to an expert by 64 tokens, top 2",
        {"tokens": 64, "top_k": 2, "experts": 8}, "tokens * top_k / experts", "16", "tokens",
        reading="eight experts; the chapter's 32 would have 4"),
    Row("000-neighbours", _LOCAL, "part of a token's two experts that the next one shares, in its example",
        {"shared": (1, 1, 1, 1, 1), "top_k": 2}, "sum(shared) / (len(shared) * top_k)", "67", "%",
        reading="experts in common of two; as common to all of both it is 33 %, and each pair shares some",
        why="each of the five pairs shares one expert of two"),
    Row("000-top-share", _USE32, "share of expert 0 in 1 M tokens",
        {"most": 185420, "tokens": 1e6}, "most / tokens", "18.5", "%"),
    Row("000-rest-share", _USE32, "share of the 24 experts not listed",
        {"listed": _LISTED, "tokens": 1e6}, "1 - sum(listed) / tokens", "15.2", "%"),
    Row("000-ratio-listed", _USE32, "most to least used, by its code over its list",
        {"listed": _LISTED}, "max(listed) / min(listed)", "22.5", "x", why="the listed eight differ by 3.4"),
    Row("000-ratio-least", _USE32, "the least that it can be with the other 24 experts",
        {"listed": _LISTED, "tokens": 1e6, "others": 24}, "max(listed) / ((tokens - sum(listed)) / others)",
        "22.5", "x", why="24 experts share 151,540 tokens, so one has 6,314 or fewer: 22.5 cannot be"),
    Row("000-even-tokens", _USE32, "tokens of each, evenly", {"tokens": 1e6, "experts": 32},
        "tokens / experts",
        "31,250", "tokens"),
    Row("000-even-time", _USE32, "time of an even load", {"tokens": 31250, "each": "0.1 us"},
        "tokens * each", "3.125", "ms"),
    Row("000-most-time", _USE32, "time of the fullest expert", {"tokens": 185420, "each": "0.1 us"},
        "tokens * each",
        "18.542", "ms"),
    Row("000-most-loss", _USE32, "time of the fullest to that of an even load",
        {"most": "18.542 ms", "even": "3.125 ms"}, "most / even",
        "5.93", "x"),
    *(
        Row(f"000-gain-{name}", _RESULT, f"{what}, {before} to {after}",
            {"before": before, "after": after}, formula, gain, "x")
        for name, what, before, after, formula, gain in (
            ("balance", "imbalance", 22.5, 3.2, "before / after", "7.0"),
            ("p99", "p99 latency in ms", 185, 42, "before / after", "4.4"),
            ("rate", "thousand tokens/s", 1.2, 4.8, "after / before", "4.0"),
            ("use", "utilisation in %", 35, 82, "after / before", "2.3"),
            ("energy", "TOPS/W", 0.3, 1.1, "after / before", "3.7"),
        )
    ),
    Row("000-trend", _RESULT, "part of the nine steps of ten samples, 7 of which rise",
        {"rising": 7, "samples": 10}, "rising / (samples - 1)", "70", "%", why="ten samples have nine steps"),
)  # fmt: skip
