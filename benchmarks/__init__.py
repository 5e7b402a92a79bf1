"""What things cost, measured: `python -m benchmarks.<job>`, see README.md."""
