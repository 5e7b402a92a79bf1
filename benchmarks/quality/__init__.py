"""Benchmarks of predictions: `python -m benchmarks.quality.<job>`, see README.md."""
