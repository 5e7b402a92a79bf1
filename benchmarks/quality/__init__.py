"""How good predictions are, measured: `python -m benchmarks.quality.<job>`, see README.md."""
