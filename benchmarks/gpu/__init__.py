"""Benchmarks on a GPU: tests against dense definitions, then times next to other libraries."""
