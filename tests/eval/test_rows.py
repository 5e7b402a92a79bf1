"""Rows of predictives are cut and joined, and what all inputs share is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import laplace_kit as lk
from laplace_kit.eval.outputs import Predictive, with_joint_covariance
from laplace_kit.eval.rows import by_row, filled_rows, first_rows
from laplace_kit.targets.outputs import Outputs
from tests.twins import compilations

F = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)


@pytest.mark.parametrize(
    "likelihood",
    [
        lk.Gaussian(0.5),
        lk.MultivariateGaussian(np.eye(2, dtype=np.float32)),
        lk.StudentT(),
        lk.Poisson(),
        lk.Categorical(),
        lk.Bernoulli(),
        lk.Ordinal(3),
    ],
)
def test_first_rows_are_those_of_fewer_inputs(likelihood):
    def predictive(f):
        f = jnp.asarray(f)
        return Predictive(likelihood.targets(Outputs(f, jnp.full_like(f, 0.25))), likelihood)

    whole, expected = predictive(F), predictive(F[:3])
    with compilations() as programs:
        found = first_rows(whole, 3)
    assert programs == []
    assert first_rows(whole, 5) is whole
    y = jnp.zeros((3, 2))
    if likelihood.has_classes:
        y = jnp.zeros(expected.targets.class_probabilities.shape[:-1], int)
    np.testing.assert_allclose(found.log_prob(y), expected.log_prob(y), rtol=1e-6)
    np.testing.assert_array_equal(found.f_var, expected.f_var)


def test_traced_predictives_are_cut_too():
    @jax.jit
    def mean(f):
        outputs = Outputs(f, jnp.ones_like(f))
        return first_rows(Predictive(lk.Poisson().targets(outputs)), 3).mean

    expected = lk.Poisson().targets(Outputs(jnp.asarray(F[:3]), jnp.ones((3, 2)))).mean
    np.testing.assert_allclose(mean(F), expected, rtol=1e-6)


def test_joint_covariances_are_cut_on_both_axes():
    joint = np.random.default_rng(1).normal(size=(5, 2, 5, 2)).astype(np.float32)
    outputs = Outputs(jnp.asarray(F), jnp.ones_like(F))
    whole = with_joint_covariance(Predictive(lk.Gaussian().targets(outputs)), jnp.asarray(joint))
    np.testing.assert_array_equal(first_rows(whole, 3).joint_cov, joint[:3, :, :3])


def test_rows_are_filled_with_copies_of_the_last():
    outputs = Outputs(jnp.asarray(F), jnp.ones_like(F))
    found = filled_rows(Predictive(lk.Categorical().targets(outputs)), 8)
    np.testing.assert_array_equal(found.f_mean, F[[0, 1, 2, 3, 4, 4, 4, 4]])
    np.testing.assert_array_equal(found.probs[4:], np.broadcast_to(found.probs[4], (4, 2)))


def test_rows_are_joined():
    one = Predictive(lk.Gaussian(0.5).targets(Outputs(jnp.asarray(F), jnp.ones_like(F))))
    both = by_row(lambda *rows: jnp.concatenate(rows), [one, one])
    np.testing.assert_array_equal(both.mean, np.concatenate([F, F]))
    assert both.var.shape == (10, 2)
