"""Speed and recovery against baselines: `python -m benchmarks.step`, `.recovery` and `.hang`."""
