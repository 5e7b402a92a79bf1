"""Sums above thresholds by counting, ties and infinities included."""

import jax
import jax.numpy as jnp
import numpy as np

from laplace_kit.eval.metrics.ranking import ratio, sums_above


def test_sums_above_thresholds():
    rng = np.random.default_rng(0)
    scores = rng.choice([-np.inf, -1.0, 0.0, 0.5, np.inf], size=30).astype("float32")
    values = rng.integers(0, 4, size=30)
    thresholds = np.array([-np.inf, -3, -1, 0, 0.2, 0.5, 7, np.inf], "float32")
    found = jax.jit(sums_above)(scores, values, thresholds)
    np.testing.assert_array_equal(found.above, (scores > thresholds[:, None]) @ values)
    np.testing.assert_array_equal(found.at_or_above, (scores >= thresholds[:, None]) @ values)


def test_a_share_of_nothing_is_zero():
    found = ratio(jnp.array([1.0, 0.0]), jnp.array([4.0, 0.0]))
    np.testing.assert_array_equal(found, [0.25, 0])
