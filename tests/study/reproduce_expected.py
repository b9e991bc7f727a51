"""What each row of `rayemu reproduce` comes to, by hand and pocket calculator: id to figure, in its unit."""

from __future__ import annotations

AGREES = {
    # models
    "000-8x7b-expert": 7.516, "000-8x7b-router-layer": 64, "000-8x7b-router": 2, "000-8x7b-embedding": 262.1,
    "000-8x7b-attention": 4.295, "000-gpt4-active": 220, "000-gpt4-weights": 3.52, "000-gpt4-router": 47.19,
    "000-gpt4-total": 3.620, "000-ffn-matrix-bytes": 536.9, "000-ffn-layer-bytes": 1.074,
    "000-dense-read": 85.6, "000-moe-read": 171.2, "000-8x22b-expert": 34.24, "000-8x22b-experts": 273.6,
    "000-8x22b-router": 4.194, "000-8x22b-embedding": 524.3, "000-8x22b-total": 289.1,
    "000-8x22b-router-layer": 128, "000-expert-fp32": 68.4, "000-expert-int8": 17.1, "000-expert-int4": 8.55,
    "000-experts-fp32": 547.2, "000-experts-int8": 136.8, "000-experts-int4": 68.4, "000-shared-fp32": 30,
    "000-shared-int8": 7.5, "000-shared-int4": 3.75, "000-memory-fp32": 577.2, "000-memory-int8": 144.3,
    "000-memory-int4": 72.15, "000-module-attention": 1.875, "000-module-cache": 8.5625,
    "000-module-fits": 1.871, "000-module-all": 512,
    "000-input-bytes": 1.074, "000-hidden-bytes": 4.295, "000-score-bytes": 2.097, "000-choice-bytes": 524.3,
    "000-kv-layer": 1.074, "000-kv-cache": 68.48, "000-module-expert": 38.5, "000-module-total": 48.94,
    "000-module-share": 76.56, "000-sram": 64, "000-gpt5-active": 624, "000-gpt5-weights": 19.97,
    "000-gpt5-router": 314.6, "000-gpt5-total": 20.40, "000-gpt5-modules": 320,
    # compute
    "000-gate-ops": 262144, "000-gate-total": 262240, "000-ffn-matrix-ops": 268.4, "000-expert-ops": 536.1,
    "000-top2-ops": 1.072, "000-combine-ops": 32.77, "000-energy-saved": 75, "000-moe-flop": 2.147,
    "000-dense-flop": 8.590, "000-l2-share": 0.1170, "000-cache-gain": 4.41, "000-moved-saved": 75,
    "000-gpu-energy": 218.9, "000-vector-bytes": 16, "000-gpu-intensity": 0.06262,
    "000-intensity-gain": 33238,
    "000-units": 128, "000-pcie-time": 334.4, "000-no-move-gain": 6.7, "000-module-bandwidth": 256,
    "000-system-bandwidth": 2.048, "000-premium": 33.33, "000-power-saved": 67, "000-tco-hbm": 10400,
    "000-tco-pim": 5840, "000-tco-saved": 43.85, "000-send-time": 0.01026, "000-expert-time": 0.5369,
    "000-return-time": 0.01102, "000-token-time": 0.658, "000-batch-send": 0.016, "000-batch-return": 0.064,
    "000-batch-mean": 0.01120, "000-predict-sum": 50.58,
    # balance
    "000-use-spread": 3.22, "000-use-hottest": 1.48,
    "000-use-ratio": 2.256, "000-use-delay": 48, "000-even-load": 512, "000-most-load": 757.8,
    "000-efficiency": 0.6755, "000-copy-inside": 34.2, "000-copy-across": 342, "000-spare-shared": 12.5,
    "000-spare-coded": 33.33, "000-recovery": 65, "000-chip-free": 19.8, "000-layers-weights": 34.24,
    "000-layers-router": 512, "000-layers-total": 42.8, "000-layers-share": 66.88, "000-columns-shard": 4.295,
    "000-columns-total": 275.2, "000-copies-sum": 19, "000-copies-factor": 2.375, "000-copies-bytes": 649.8,
    "000-copies-spare": 13, "000-copies-gain": 42.04, "000-bank-of": 11, "000-visits": 16,
    "000-top-share": 18.54, "000-rest-share": 15.15, "000-even-tokens": 31250, "000-even-time": 3.125,
    "000-most-time": 18.54, "000-most-loss": 5.933, "000-gain-balance": 7.031, "000-gain-p99": 4.405,
    "000-gain-rate": 4, "000-gain-use": 2.343, "000-gain-energy": 3.667,
    # exchange
    "000-a2a-volume": 3.758, "000-a2a-time": 300.8, "000-sparse-volume": 1.128, "000-sparse-time": 90.4,
    "000-int8-saved": 50, "000-batch-saved": 63.75, "000-sparse-ratio": 3.333, "000-mixed-ratio": 6.6,
    "000-mixed-volume": 0.752, "000-dispatch-bytes": 2, "000-matrix-ratio": 1.494, "000-inside-ratio": 10,
    "000-delta-saved": 50, "000-dispatch-error": 10, "000-combine-error": 6.25, "000-total-error": 3,
    "000-share-halved": 50.72, "000-coded-saved": 33.33, "000-ring-mean": 16.25, "000-ring-worst": 32,
    "000-torus-mean": 4.063, "000-torus-worst": 8, "000-tree-worst": 12, "000-v3-experts": 8,
    "000-v3-gain": 11.67, "000-slots-serial": 9, "000-slots-pipelined": 5, "000-slots-saved": 44.44,
    # routing
    "000-decide-gpu": 15, "000-decide-saved": 20, "000-groups-ops": 2064, "000-groups-saved": 87.40,
    "000-tree-serial": 32, "000-scores-all": 128, "000-scores-chosen": 16, "000-scores-saved": 87.5,
    "000-scores-banks": 32, "000-unit-cycles": 32, "000-unit-delay": 32, "000-unit-density": 1.25,
    "000-simd": 8,
    "000-route-ops": 16.78, "000-softmax-ops": 6.144, "000-route-time": 65.63, "000-groups-half": 50,
    "000-copy-before": 35, "000-copy-after": 7, "000-copy-gain": 5,
    # texts 001 and 002
    "001-serial": 40, "001-overlap": 30, "001-overlap-saved": 25, "001-batch-gain": 4, "001-batch-calls": 50,
    "001-expert-params": 117.4, "001-all-params": 936, "001-up-params": 58.72, "001-down-params": 469.8,
    "001-shared-params": 529, "001-shared-saved": 43.48, "001-merged-saved": 25, "001-narrow-ratio": 4,
    "001-both-ratio": 4, "001-plain-bytes": 64, "001-packed-time": 0.64, "001-packed-total": 0.8,
    "001-packed-gain": 3.125, "001-bits-ratio": 8, "001-together-batch": 20, "001-together-overlap": 20,
    "001-together-local": 12.5, "001-together-fused": 10.71, "001-together": 2, "002-pupils": 8,
    "002-loads-serial": 400, "002-loads-multicast": 200, "002-multicast-gain": 2, "002-gain-balance": 1.594,
    "002-gain-layout": 2.772, "002-gain-multicast": 4.366,
}  # fmt: skip

DIFFERS = {
    "000-8x7b-norms": 0.0005325,  # 65 x 4,096 x 2 B
    "000-weight-bandwidth": 6848,  # 214 x 32
    "000-module-buffer": 1.075,  # 4.3 / 4
    "000-expert-flop": 1610.6,  # 6 x 268.435
    "000-combine-flop": 16.38,
    "000-pcie-one-way": 668.8,  # 21.4 / 32
    "000-no-move-hbm": 0.2853,  # 14.27 ms / 50 ms
    "000-return-bytes": 16,
    "000-batch-compute": 2.148,  # 4 x 0.537
    "000-predict-model": 531.9,  # 17,022 / 32
    "000-a2a-node-time": 18.8,  # 0.235 GB / 12.5 GB/s
    "000-sparse-bitmap": 1.363,  # 3.76 x 0.3625
    "000-mixed-bitmap": 0.799,  # 3.76 x 3.4 / 16
    "000-combine-bytes": 2,
    "000-chunk-gain": 1,
    "000-tree-mean": 10.19,  # (2 + 8 + 24 + 64 + 160 + 384) / 63 = 642 / 63
    "000-groups-scores": 81.25,  # 1 - 24 / 128
    "000-scores-token": -298.5,  # 1 - 131,088 / 32,896
    "000-vote-failure": 3e-10,
    "001-overlap-one": 40,
    "001-stages-saved": 80,
    "001-top-ratio": 50,
    "002-multicast-fair": 2.4,
}

CONTRADICTS = {
    "000-8x7b-expert-params": 3.75,
    "000-8x7b-router-params": 1.049,  # 32 x 4,097 x 8
    "000-8x7b-shared": 2.781,  # 5.562 / 2
    "000-8x7b-total": 62.1,
    "000-8x7b-active": 20.1,
    "000-gpt4-expert": 144.96,  # 240 x 603.98 M
    "000-8x22b-attention": 17.18,
    "000-8x22b-by-size": 282,
    "000-gpt5-expert": 322.1,  # 300 x 1,073.7 M
    "000-gate-share": 6.25,  # 32 / 512
    "000-cache-cycles": 499.4,  # 500 - 490 x 0.00117
    "000-pim-energy": 0.0005243,  # 262,144 bit x 2 pJ = 0.524 uJ
    "000-pim-intensity": 2044.7,  # 536 M / 262,144
    "000-token-weights": 68.48,
    "000-expert-read": 4.180,  # 1.07 / 256
    "000-stage-latency": 17.18,  # 32 x 0.537
    "000-stage-rate": 465.5,  # 1 / 2.148 ms
    "000-predict-route": 0.2684,  # 2.147 G / 8 T
    "000-predict-compute": 3848,  # 30.79 T / 8 T
    "000-predict-exchange": 1.174,  # 117.4 MB / 100 GB/s
    "000-predict-total": 3850,
    "000-predict-printed": 1.2957e6,  # 65,536 / 0.05058
    "000-predict-rate": 17022,  # 65,536 / 3.85
    "000-use-deviation": 32.22,  # root of 8,304 / 8
    "000-use-variation": 0.2864,
    "000-zipf-flat": 36.61,  # 3.639 / 9.939
    "000-zipf-steep": 50.66,  # 2.834 / 5.594
    "000-shares-sum": 98,
    "000-copy-banks": 133.6,
    "000-chip-params": 17.1,
    "000-chip-tier": 34.24,
    "000-columns-chips": 18,  # 1,100 / 64 = 17.2
    "000-copies-first": 1,
    "000-copies-rule": 3,
    "000-copies-ratio": 2.268,  # 0.093 / 0.041
    "000-neighbours": 50,
    "000-ratio-listed": 3.413,
    "000-ratio-least": 29.37,  # 185,420 / 6,314
    "000-trend": 77.78,
    "000-a2a-node": 0.4698,  # 3.758 / 8
    "000-tiered-inside": 0.02936,  # 896 x 32,768 B / 1 TB/s
    "000-tiered-across": 0.04194,  # 128 x 32,768 B / 100 GB/s
    "000-tiered-total": 0.04194,
    "000-bank-level": 0.256,
    "000-model-total": 76,
    "000-share-8": 85.74,  # 120.26 ms and 20 ms
    "000-share-16": 62.08,  # 5.37 + 60.13 ms and 40 ms
    "000-share-32": 29.88,  # 4.03 + 30.06 ms and 80 ms
    "000-share-64": 9.80,  # 2.35 + 15.03 ms and 160 ms
    "000-share-mixed": 0.5977,  # 0.12026 and 20
    "000-sparse-level": 0.3523,  # 4 / (0.9462 x 12)
    "000-groups-direct": 256,
    "000-place-central": 0.015,
    "000-place-modules": 0.012,
    "000-tree-cycles": 5,
    "000-unit-buffer": 16,
    "000-unit-rate": 31.25,
    "000-cache-entries": 256,
    "001-local-penalty": 0.3333,
    "001-local-first": 0.3846,  # 0.35 / 0.91
    "001-batch-use": 21.25,
    "001-merged-experts": 7,
    "001-plain-time": 2.684,  # 67.11 MB / 25 GB/s
    "002-mask-tokens": 8,
}
