"""The registry knows every metric that a report computes, and what is better."""

import jax
import jax.numpy as jnp
import numpy as np

from laplace_kit.eval.report import suites
from laplace_kit.eval.report.registry import METRICS


def test_every_metric_that_is_computed_is_known():
    key = jax.random.key(0)
    probs = jax.nn.softmax(jax.random.normal(key, (20, 1, 3)))
    y, losses = np.arange(20) % 3, -jnp.log(probs[:, :, 0])
    of_classes, _ = suites.ClassificationSuite(())(probs, losses, y, weights=None)
    numbers = jnp.ones((20, 1, 2))
    of_numbers, _ = suites.RegressionSuite(())(numbers, numbers, numbers[:, 0] + 0.5, weights=None)
    scores = jnp.linspace(0, 1, 20)[:, None]
    of_scores, _ = suites.DetectionSuite(())(scores, scores, in_weights=None, out_weights=None)
    computed = {*of_classes, *of_numbers, *of_scores}
    assert computed <= METRICS.keys()
    assert {name.split("_")[0] for name in METRICS.keys() - computed} == {"auroc", "aupr", "fpr95"}


def test_what_the_verdict_compares_has_a_better_direction():
    compared = [name for name, metric in METRICS.items() if metric.in_verdict]
    assert compared == ["nll", "ece", "auroc", "crps"]
    assert all(METRICS[name].is_monotone for name in compared)
