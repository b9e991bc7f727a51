"""Text 000: where and how the router computes, and what it costs."""

from __future__ import annotations

from rayemu.study.reproduce.row import Row

_DECIDE = "11.1.5 Routing near the data"
_TIERS = "11.1.5 Routing over groups"
_PLACE = "11.3.1 Router's location"
_TREE = "11.3.2 Top 2 of 32"
_BYTES = "11.3.3 Scores within PIM"
_UNIT = "11.3.6 Router accelerator"
_FAST = "11.3.6 Routing of 64 tokens"
_COPY = "11.3.7 Routing without copies"
_VOTE = "11.3.8 Three routers that vote"

ROWS = (
    Row("000-decide-gpu", _DECIDE, "routing on the GPU", {"compute": "10 us", "send": "5 us"},
        "compute + send", "15", "us"),
    Row("000-decide-saved", _DECIDE, "saved by routing in 12 us within PIM",
        {"gpu": "15 us", "pim": "12 us"}, "1 - pim / gpu", "20", "%"),
    Row("000-groups-ops", _TIERS, "128 experts in 16 groups of 8, n to k costing n x k",
        {"experts": 128, "groups": 16, "in_group": 8, "top_k": 2}, "experts * groups + in_group * top_k",
        "2,064", "ops"),
    Row("000-groups-direct", _TIERS, "2 of 128 directly, by the same count",
        {"experts": 128, "top_k": 2}, "experts * top_k", "16,384", "ops",
        why="16,384 is 128 x 128; n x k, as it counts its groups, is 256, an eighth of what these cost"),
    Row("000-groups-saved", _TIERS, "operations saved, by its figures",
        {"groups": "2064 ops", "direct": "16384 ops"}, "1 - groups / direct", "87.4", "%"),
    Row("000-groups-scores", _TIERS, "scores saved: 16 groups and the 8 experts of one, not 128",
        {"experts": 128, "groups": 16, "in_group": 8}, "1 - (groups + in_group) / experts", "87.4", "%",
        corrected=True, reading="both experts from one group; from two groups it is 75 %",
        why="what costs is a score (d_model multiply-adds), and 24 of 128 are computed"),
    Row("000-place-central", _PLACE, "routing at the host, by 11.1.5",
        {"compute": "10 us", "send": "5 us"}, "compute + send", "0.1", "ms",
        why="15 us in one section, 0.1 ms in another"),
    Row("000-place-modules", _PLACE, "routing within PIM, by 11.1.5", {"local": "12 us"}, "local", "0.3",
        "ms",
        why="12 us there, 0.3 ms here: there PIM is a fifth quicker than the host, here three times slower"),
    Row("000-tree-cycles", _TREE, "cycles of three parallel levels and two comparators in series",
        {"parallel": 3, "series": 2}, "parallel + series", "4", "cycles",
        why="two in series are two cycles (five stages in 11.3.6); and keeping only the better of each pair "
        "loses the second best in 7 of 31 cases"),
    Row("000-tree-serial", _TREE, "cycles of one score after another", {"experts": 32}, "experts", "32",
        "cycles"),
    Row("000-scores-all", _BYTES, "bytes of 32 scores", {"scores": 32, "each": "4 B"}, "scores * each",
        "128", "B"),
    Row("000-scores-chosen", _BYTES, "bytes of two indices and weights",
        {"top_k": 2, "index": "4 B", "weight": "4 B"}, "top_k * (index + weight)", "16", "B"),
    Row("000-scores-saved", _BYTES, "bytes of scores saved", {"before": "128 B", "after": "16 B"},
        "1 - after / before", "87.5", "%"),
    Row("000-scores-token", _BYTES, "bytes saved, with the token itself: to 8 modules that score, not to 2",
        {"token": "16 KiB", "modules": 8, "top_k": 2, "scores": "128 B", "chosen": "16 B"},
        "1 - (modules * token + chosen) / (top_k * token + scores)", "87.5", "%", corrected=True,
        reading="the text's distributed router, which broadcasts, on eight modules",
        why="112 bytes are saved and 98,304 added: four times the bytes, as its own table says (broadcast)"),
    Row("000-scores-banks", _BYTES, "experts that eight banks score, four each",
        {"banks": 8, "each": 4}, "banks * each", "32", "experts"),
    Row("000-unit-buffer", _BYTES, "bytes of the router's input buffer, which holds x",
        {"d_model": 8192}, "d_model * 2", "8", "KiB",
        why="x at FP16 has 16 KB (11.4.1): 8 KB hold it at INT8 only"),
    Row("000-unit-cycles", _UNIT, "cycles of a token on 32 x 256 multiply-adders",
        {"experts": 32, "d_model": 8192, "rows": 32, "columns": 256},
        "experts / rows * d_model / columns", "32", "cycles"),
    Row("000-unit-delay", _UNIT, "time of those cycles at 1 GHz", {"cycles": 32, "clock": "1 GHz"},
        "cycles / clock", "32", "ns"),
    Row("000-unit-rate", _UNIT, "tokens per second, one after another",
        {"delay": "32 ns"}, "1 / delay", "1", "Mtokens/s", why="a token every 32 ns is 31 million a second"),
    Row("000-unit-density", _UNIT, "rate per area", {"rate": "1 Mtokens/s", "area": "0.8 mm2"}, "rate / area",
        "1.25", "M/s/mm2"),
    Row("000-simd", _FAST, "FP32 values in a 256-bit register", {"bits": 256, "each": 32}, "bits / each",
        "8"),
    Row("000-route-ops", _FAST, "multiply-adds of 64 tokens, 32 experts",
        {"tokens": 64, "d_model": 8192, "experts": 32}, "tokens * d_model * experts", "16.8", "Mops"),
    Row("000-softmax-ops", _FAST, "operations of their softmax",
        {"tokens": 64, "experts": 32}, "tokens * experts * 3", "6.1", "kops"),
    Row("000-route-time", _FAST, "time at 256 GOPS",
        {"work": "16.8 Mops", "rate": "256 Gops/s"}, "work / rate", "65.6", "us",
        reading="a multiply-add as one operation; as two, 131 us"),
    Row("000-groups-half", _FAST, "scores saved by 8 groups and two times 4 experts of 32",
        {"experts": 32, "groups": 8, "in_group": 4}, "1 - (groups + 2 * in_group) / experts", "50", "%"),
    Row("000-cache-entries", _FAST, "entries that a cache keyed by the signs of 8 projections can fill",
        {"planes": 8}, "2**planes", "1,024", "entries", why="8 bits are 256 keys: three quarters stay empty"),
    Row("000-copy-before", _COPY, "copy, route, send",
        {"copy": "10 us", "route": "5 us", "send": "20 us"}, "copy + route + send", "35", "us"),
    Row("000-copy-after", _COPY, "route and notify", {"route": "5 us", "notify": "2 us"}, "route + notify",
        "7", "us"),
    Row("000-copy-gain", _COPY, "gain of routing without copies", {"before": "35 us", "after": "7 us"},
        "before / after", "5", "x"),
    Row("000-vote-failure", _VOTE, "chance that two or three of three routers fail",
        {"each": 1e-5}, "3 * each**2 * (1 - each) + each**3", "3e-15", corrected=True, step=1e-15,
        why="a vote is lost with two of three, 3 p^2; p^3 = 1e-15 is all three at once"),
)  # fmt: skip
