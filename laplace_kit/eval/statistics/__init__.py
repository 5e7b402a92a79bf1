"""Metrics of predictions as functions of weighted sums, in NumPy, for many weightings at once.

A report evaluates its metrics for a thousand resamples of the examples, each of which is a
weighting, for every number of examples that it meets. `laplace_kit.eval.metrics` has the same
metrics one at a time, on any device and under `jax.jit`, by programs compiled for each shape.

Internal: the arrays are validated by the caller, in `laplace_kit.eval.report.inputs`.
"""
