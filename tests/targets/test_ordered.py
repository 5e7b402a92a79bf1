"""Ordered classes with an uncertain latent output, against integration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.quantiles import pit
from laplace_kit.likelihood import Ordinal
from laplace_kit.targets import Outputs

CUTPOINTS = np.asarray([-1.0, 0.2, 2.5])
F, VAR = np.asarray([[0.3], [-4.0]]), np.asarray([[0.5], [9.0]])


def targets():
    return Ordinal(4, jnp.asarray(CUTPOINTS)).targets(Outputs(jnp.asarray(F), jnp.asarray(VAR)))


def given(f):
    ends = np.concatenate([[-np.inf], CUTPOINTS, [np.inf]])
    return np.diff(special.expit(ends - f))


def averaged(fn, n):
    law = stats.norm(F[n, 0], VAR[n, 0] ** 0.5)
    return integrate.quad(lambda f: fn(given(f)) * law.pdf(f), -40, 40, limit=400)[0]


def test_the_latent_output_is_integrated_out(x64):
    found = targets()
    assert found.probs.shape == (2, 1, 4)
    parts = found.uncertainty()
    for n in range(2):
        p = np.asarray([averaged(lambda p, k=k: p[k], n) for k in range(4)])
        np.testing.assert_allclose(found.probs[n, 0], p, rtol=1e-8)
        variance = [averaged(lambda p, k=k: p[k] * (1 - p[k]), n) for k in range(4)]
        np.testing.assert_allclose(parts.aleatoric_var[n, 0], variance, rtol=1e-7)
        entropy = averaged(lambda p: special.entr(p).sum(), n)
        np.testing.assert_allclose(parts.expected_entropy[n, 0], entropy, rtol=1e-7)
        whole = special.entr(p).sum()
        np.testing.assert_allclose(parts.predictive_entropy[n, 0], whole, rtol=1e-7)


def test_classes_in_order_have_a_distribution_function_and_quantiles(x64):
    found = targets()
    sums = np.cumsum(np.asarray(found.probs), axis=-1)
    for label in range(4):
        np.testing.assert_allclose(found.cdf(jnp.asarray(label)), sums[..., label], rtol=1e-12)
    np.testing.assert_array_equal(found.cdf(jnp.asarray([[-1], [7]])), [[0.0], [1.0]])
    levels = jnp.asarray([0.05, 0.5, 0.999])
    expected = [(sums < float(q)).sum(axis=-1) for q in levels]
    np.testing.assert_array_equal(found.quantile(levels), expected)
    middle = pit(Predictive(found), jnp.asarray([[1], [0]]))
    np.testing.assert_allclose(
        middle[:, 0], [sums[0, 0, 0] + found.probs[0, 0, 1] / 2, found.probs[1, 0, 0] / 2]
    )


def test_probabilities_that_round_to_zero_keep_their_logarithms():
    outputs = Outputs(jnp.asarray([200.0], jnp.float32), jnp.zeros(1, jnp.float32))
    found = Ordinal(3).targets(outputs)
    assert float(found.probs[0, 0]) == 0
    assert float(found.log_prob(jnp.asarray([0]))[0]) == pytest.approx(-200 + np.log(0.5), rel=1e-5)


def test_a_temperature_is_that_of_all_classes(x64):
    found = targets()
    tempered = found.tempered(jnp.asarray(2.0))
    expected = jax.nn.softmax(jnp.log(found.probs) / 2)
    np.testing.assert_allclose(tempered.probs, expected, rtol=1e-9)
