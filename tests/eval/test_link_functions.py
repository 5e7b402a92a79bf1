"""Links that are functions of one's own: what they are given, and what they must return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from laplace_kit.eval import link as lk


def gaussian():
    rng = np.random.default_rng(0)
    mean = 2 * rng.normal(size=(6, 4))
    root = rng.normal(size=(6, 4, 4))
    return mean.astype(np.float32), (root @ root.swapaxes(1, 2)).astype(np.float32)


def variances(cov):
    return np.diagonal(cov, axis1=1, axis2=2).copy()


def test_a_function_is_called_with_the_moments_and_gives_the_probabilities():
    mean, cov = gaussian()
    seen = []

    def halved(m, s):
        seen.append((m.shape, s.shape))
        return jax.nn.softmax(m / 2)

    expected = special.softmax(mean / 2, axis=1)
    for spread in (cov, variances(cov)):
        found = lk.class_probabilities(halved, mean, spread)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        logits = lk.class_logits(halved, mean, spread)
        np.testing.assert_allclose(logits, np.log(expected), rtol=1e-4, atol=1e-6)
    assert seen == [((6, 4), (6, 4, 4))] * 2 + [((6, 4), (6, 4))] * 2


@pytest.mark.parametrize("name", ["probit", "bridge", "mean_field_1", "mean_field_2"])
def test_a_built_in_link_as_a_function_is_that_link(name):
    mean, cov = gaussian()
    found = lk.class_probabilities(getattr(lk, name), mean, cov)
    np.testing.assert_allclose(found, lk.class_probabilities(name, mean, cov), rtol=1e-5)


def test_rows_that_do_not_sum_to_one_are_normalised_and_zeros_stay():
    mean, cov = gaussian()
    weights = np.array([1.0, 2.0, 0.0, 5.0], np.float32)
    found = lk.class_probabilities(lambda m, s: jnp.broadcast_to(weights, m.shape), mean, cov)
    np.testing.assert_allclose(found, np.tile(weights / 8, (6, 1)), rtol=1e-6)


def test_a_function_of_binary_outputs():
    mean = np.linspace(-3, 3, 6, dtype="float32").reshape(3, 2)
    var = np.full_like(mean, 4.0)
    expected = special.expit(mean / np.sqrt(1 + np.pi / 8 * 4))

    def probit(m, v):
        assert m.shape == v.shape == (3, 2)
        return jax.nn.sigmoid(m / jnp.sqrt(1 + jnp.pi / 8 * v))

    np.testing.assert_allclose(lk.bernoulli_probabilities(probit, mean, var), expected, rtol=1e-5)
    found = lk.bernoulli_logits(probit, mean, var)
    np.testing.assert_allclose(found, special.logit(expected), rtol=1e-4, atol=1e-6)


def test_functions_that_return_something_else():
    mean, cov = gaussian()
    with pytest.raises(ValueError, match=r"float32 of shape \(6,\) for a mean of shape \(6, 4\)"):
        lk.class_probabilities(lambda m, s: m.sum(axis=1), mean, cov)
    with pytest.raises(ValueError, match=r"link that returned int32.*expected floating-point"):
        lk.class_probabilities(lambda m, s: m.astype(int), mean, cov)
    with pytest.raises(ValueError, match=r"link=3, expected one of .*a function \(mean, covar"):
        lk.check_link(3)


def test_functions_whose_values_are_no_probabilities():
    mean, cov = gaussian()

    def low(m, s):
        return jax.nn.softmax(m).at[2, 1].set(-0.1)

    def none(m, s):
        return jnp.where(jnp.arange(len(m))[:, None] > 3, 0.0, jax.nn.softmax(m))

    def infinite(m, s):
        return jax.nn.softmax(m).at[1, 0].set(jnp.inf)

    def high(m, v):
        return jnp.where(jnp.arange(m.size).reshape(m.shape) == 4, 1.5, 0.5)

    at_least = "of at least zero, not all of them zero"
    with pytest.raises(ValueError, match=rf"probabilities at 1 of 6 labels.*\(2,\).*{at_least}"):
        lk.class_logits(low, mean, cov)
    with pytest.raises(ValueError, match=rf"at 2 of 6 labels, the first at \(4,\).*{at_least}"):
        lk.class_probabilities(none, mean, cov)
    with pytest.raises(ValueError, match=rf"at 1 of 6 labels, the first at \(1,\).*{at_least}"):
        lk.class_logits(infinite, mean, cov)
    binary = jnp.zeros((3, 2))
    with pytest.raises(ValueError, match=r"at 1 of 6 labels.*\(2, 0\), expected.*zero to one"):
        lk.bernoulli_probabilities(high, binary, binary + 1)

    def certain(m, v):
        return jnp.where(m < 0, 0.0, 1.0)

    np.testing.assert_array_equal(
        lk.bernoulli_probabilities(certain, binary.at[0].set(-1), binary), [[0, 0], [1, 1], [1, 1]]
    )
    unknown = lk.class_probabilities(lambda m, s: jax.nn.softmax(m), mean * np.nan, cov)
    assert jnp.isnan(unknown).all()  # the outputs' fault, and reported as such elsewhere
    found = jax.jit(lambda m: lk.class_probabilities(low, m, cov))(mean)
    np.testing.assert_array_equal(jnp.isnan(found).any(axis=1), np.arange(6) == 2)
