"""Benchmarks of cost: `python -m benchmarks.<job>`, see README.md."""
