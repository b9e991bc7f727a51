"""Text 000: what an All-to-All moves, how long it takes, and what compression and overlap save."""

from __future__ import annotations

from rayemu.study.reproduce.row import Input, Row

_TIME = "11.1.4 All-to-All time"
_LESS = "11.1.4 Fewer bytes"
_MIXED = "11.1.5 Compression compared"
_TIERED = "11.1.6 Hierarchical All-to-All"
_FLOW = "11.4.1 Data flow"
_INSIDE = "11.4.3 Links in and out of a chip"
_MODEL = "11.4.5 Model of the exchange"
_SHARES = "11.4.5 Share of communication"
_MORE = "11.4.6 Further ways"
_HOPS = "11.4.6 Hops of 64 nodes"
_SAVED = "11.4.7 Speed-up and overlap"
_BATCH = {"batch": 64, "length": 2048, "d_model": 8192}
_TOKEN: dict[str, Input] = {"tokens": 1024, "token": "32 KiB"}
_COST: dict[str, Input] = {**_BATCH, "d_ff": 32768, "overlap": 0.3, "link": "100 GB/s"}
# The text's function: remote tokens go out, and of two results per token 70 % of the time shows.
_SECONDS = (
    "batch * length / nodes * ((nodes - 1) / nodes * d_model * 2 + 2 * d_ff * 2 * (1 - overlap)) / link"
)

ROWS = (
    Row("000-a2a-volume", _TIME, "bytes that a batch of 64 x 2,048 tokens moves, both ways",
        _BATCH, "1.75 * batch * length * d_model * 2", "3.76", "GB"),
    Row("000-a2a-time", _TIME, "time for 3.76 GB at 100 Gbit/s",
        {"volume": "3.76 GB", "link": "12.5 GB/s"}, "volume / link", "301", "ms"),
    Row("000-a2a-node", _TIME, "bytes of one node of eight, which has an eighth of the tokens",
        {**_BATCH, "nodes": 8}, "2 * (nodes - 1) / nodes * batch * length / nodes * d_model * 2", "3.76",
        "GB",
        reading="each token once, as the text counts; to two experts it is up to twice that",
        why="it says local tokens, and takes those of all eight nodes"),
    Row("000-a2a-node-time", _TIME, "time of that node, sending and receiving at once",
        {"both_ways": "0.47 GB", "link": "12.5 GB/s"}, "both_ways / 2 / link", "301", "ms", corrected=True,
        why="8 times too many bytes, and what a full-duplex link does at once is added up"),
    Row("000-sparse-volume", _LESS, "bytes if 70 % are zeros",
        {"volume": "3.76 GB", "zeros": "70 %"}, "volume * (1 - zeros)", "1.13", "GB"),
    Row("000-sparse-bitmap", _LESS, "the same with a bit per FP16 value that says which are zero",
        {"volume": "3.76 GB", "zeros": "70 %"}, "volume * (1 - zeros + 1 / 16)", "1.13", "GB", corrected=True,
        why="the receiver must know where the values belong"),
    Row("000-sparse-time", _LESS, "time for 1.13 GB at 100 Gbit/s",
        {"volume": "1.13 GB", "link": "12.5 GB/s"}, "volume / link", "90", "ms"),
    Row("000-int8-saved", _LESS, "saved by INT8", {"bits": 8, "fp16": 16}, "1 - bits / fp16", "50", "%"),
    Row("000-batch-saved", _MIXED, "saved by sending in batches and compressed",
        {"zeros": "70 %"}, "1 - (1 - zeros + 1 / 16)", "64", "%",
        reading="the text gives no formula; 70 % of zeros and a bitmap come to it"),
    Row("000-sparse-ratio", _MIXED, "ratio at 70 % of zeros", {"zeros": "70 %"}, "1 / (1 - zeros)", "3.3",
        "x",
        reading="without a bitmap; with one, 2.8, as the 64 % of the same section need"),
    Row("000-mixed-ratio", _MIXED, "ratio with INT8 as well",
        {"sparse": "3.3 x", "int8": "2 x"}, "sparse * int8", "5-6", "x",
        reading="a bitmap would leave 4.7"),
    Row("000-mixed-volume", _MIXED, "bytes at a ratio of 5", {"volume": "3.76 GB", "ratio": "5 x"},
        "volume / ratio", "0.75", "GB"),
    Row("000-mixed-bitmap", _MIXED, "bytes with INT8 values and a bitmap",
        {"volume": "3.76 GB", "zeros": "70 %"}, "volume * (8 * (1 - zeros) + 1) / 16", "0.75", "GB",
        corrected=True, why="3.4 bits per value are a ratio of 4.7"),
    Row("000-tiered-inside", _TIERED, "87.5 % of 1,024 tokens at 1,000 GB/s",
        {**_TOKEN, "part": "87.5 %", "link": "1000 GB/s"}, "tokens * part * token / link", "28.67", "ms",
        why="0.029 ms by its own code; 28.67 ms is the same at 1 GB/s, with a token of 32,000 bytes"),
    Row("000-tiered-across", _TIERED, "12.5 % of 1,024 tokens at 100 GB/s",
        {**_TOKEN, "part": "12.5 %", "link": "100 GB/s"}, "tokens * part * token / link", "4.10", "ms",
        why="0.042 ms by its own code; 4.10 ms is at 1 GB/s as well, so the links' difference is lost"),
    Row("000-tiered-total", _TIERED, "the longer of both",
        {**_TOKEN, "inside": "1000 GB/s", "across": "100 GB/s"},
        "max(tokens * 0.875 * token / inside, tokens * 0.125 * token / across)", "28.67", "ms",
        why="0.042 ms, and the network decides, not the bus within a node"),
    Row("000-dispatch-bytes", _FLOW, "bytes dispatched, each token once",
        _BATCH, "batch * length * d_model * 2", "2", "GiB"),
    Row("000-combine-bytes", _FLOW, "bytes combined, each token once",
        _BATCH, "batch * length * d_model * 2", "8", "GiB", corrected=True,
        why="takes d_ff for a result's width; combine is as wide as dispatch (twice, for two experts)"),
    Row("000-matrix-ratio", _FLOW, "largest to smallest message",
        {"most": "130 MB", "least": "87 MB"}, "most / least", "1.49", "x"),
    Row("000-inside-ratio", _INSIDE, "bandwidth within a chip to that between chips",
        {"inside": "1 TB/s", "across": "100 GB/s"}, "inside / across", "10", "x"),
    Row("000-bank-level", _INSIDE, "bandwidth between banks, by the module of 11.1.5",
        {"banks": 16, "each": "16 GB/s"}, "banks * each", "1", "TB/s",
        why="all 16 banks of its module give 256 GB/s together"),
    Row("000-delta-saved", _INSIDE, "saved by 8-bit differences", {"before": "16 KiB", "after": "8 KiB"},
        "1 - after / before", "50", "%"),
    *(
        Row(f"000-{name}-error", _MODEL, f"measured {name} against predicted",
            {"measured": f"{measured} ms", "predicted": f"{predicted} ms"},
            f"{sign} * (measured / predicted - 1)",
            error, "%", reading=reading)
        for name, measured, predicted, sign, error, reading in (
            ("dispatch", 22, 20, 1, "10", ""),
            ("combine", 75, 80, -1, "6.25", "shorter than predicted: the text says -6.25 %"),
            ("total", 97, 100, -1, "3", "shorter than predicted: the text says -3 %"),
        )
    ),
    Row("000-model-total", _MODEL, "dispatch of 20 ms and combine of 80 ms, 30 % of which overlaps",
        {"dispatch": "20 ms", "combine": "80 ms", "overlap": 0.3}, "dispatch + combine * (1 - overlap)",
        "100", "ms", why="its own model hides 24 ms of the combine, and its table does not"),
    *(
        Row(f"000-share-{experts}", _SHARES,
            f"with {experts} experts on {experts // 8} node{'s' * (experts > 8)}",
            {**_COST, "nodes": experts // 8, "compute": f"{experts * 2.5} ms"},
            f"1 / (1 + compute / ({_SECONDS}))", share, "%",
            reading="both times in seconds; its code adds seconds of communication to ms of computing",
            why="by its own model the share falls, 86, 62, 30, 10 %: fewer tokens a node, more to compute")
        for experts, share in ((8, "15"), (16, "28"), (32, "42"), (64, "56"))
    ),
    Row("000-share-mixed", _SHARES, "with 8 experts, seconds and ms added up as the code does",
        {**_COST, "nodes": 1, "compute_ms": 20}, f"1 / (1 + compute_ms / ({_SECONDS}))", "15", "%",
        why="the code as it stands prints 0.6 %"),
    Row("000-share-halved", _SHARES, "communication saved where its share falls from 15 to 8 %",
        {"before": "15 %", "after": "8 %"}, "1 - after / (1 - after) / (before / (1 - before))", "50", "%",
        reading="computing takes as long as before; 55, 59 and 65 % at 16, 32 and 64 experts"),
    Row("000-coded-saved", _MORE, "saved by a code of redundancy 1.5",
        {"redundancy": 1.5}, "1 - 1 / redundancy", "33", "%",
        reading="many nodes; N = 8 has k = 5 and saves 1 - 5/7, 29 %"),
    Row("000-sparse-level", _MORE, "ratio of its sparse code, Gaussian values above a tenth of their median",
        {"median": 0.67449, "value": "4 B", "index": "8 B"},
        "value / (erfc(0.1 * median / sqrt(2)) * (value + index))", "3.0", "x",
        reading="float32 values and the 64-bit indices that nonzero gives",
        why="95 % of the values stay, each with an index of 8 bytes: 2.8 times more is sent, not less"),
    Row("000-chunk-gain", _MORE, "gain of sending the same bytes through the same port in four pieces",
        {"whole": "4 MB", "pieces": 4, "link": "100 GB/s"},
        "whole / link / (pieces * (whole / pieces / link))",
        "4", "x", corrected=True, reading="the text's depth of four; it claims K for K pieces",
        why="pieces let computing begin sooner, but a port takes as long for the same bytes"),
    Row("000-ring-mean", _HOPS, "ring, mean hops to another node: N/4",
        {"nodes": 64}, "nodes**2 / 4 / (nodes - 1)", "16", "hops"),
    Row("000-ring-worst", _HOPS, "ring, worst: N/2", {"nodes": 64}, "nodes // 2", "32", "hops"),
    Row("000-torus-mean", _HOPS, "2D torus, mean: half the root of N",
        {"side": 8}, "2 * side / 4 * side**2 / (side**2 - 1)", "4", "hops"),
    Row("000-torus-worst", _HOPS, "2D torus, worst: the root of N", {"side": 8}, "2 * (side // 2)", "8",
        "hops"),
    Row("000-tree-mean", _HOPS, "binary fat tree, mean: 2 log2 N",
        {"levels": 6}, "sum(2 * h * 2**(h - 1) for h in range(1, levels + 1)) / (2**levels - 1)", "12",
        "hops",
        corrected=True, reading="the text does not say how many children a switch has",
        why="half of the others are reached at the root, and the rest turn lower"),
    Row("000-tree-worst", _HOPS, "binary fat tree, worst: 2 log2 N",
        {"nodes": 64}, "2 * log2(nodes)", "12", "hops"),
    Row("000-v3-experts", _SAVED, "experts to a node of 32",
        {"experts": 256, "nodes": 32}, "experts / nodes", "8", "experts"),
    Row("000-v3-gain", _SAVED, "speed-up by 70 % local hits and a ratio of 3.5",
        {"remote": 0.3, "ratio": "3.5 x"}, "1 / (remote / ratio)", "11.7", "x"),
    Row("000-slots-serial", _SAVED, "slots of three chunks through three stages, one by one",
        {"chunks": 3, "stages": 3}, "chunks * stages", "9", "slots"),
    Row("000-slots-pipelined", _SAVED, "slots of them in a pipeline",
        {"chunks": 3, "stages": 3}, "chunks + stages - 1", "5", "slots"),
    Row("000-slots-saved", _SAVED, "slots saved by the pipeline", {"serial": 9, "pipelined": 5},
        "1 - pipelined / serial", "44.4", "%"),
)  # fmt: skip
