"""The changes that tuning makes to a posterior, against the dense covariance."""

import jax.numpy as jnp
import numpy as np
import pytest
import twins

import laplace_kit as lk
from laplace_kit.tune.posterior import Tunable, as_tempered, as_tuned, untempered
from laplace_kit.tune.result import Tuning


@pytest.fixture
def la(x64):
    problem = twins.problem("mlp", "float64")
    data = problem.x, problem.y
    options = {"likelihood": problem.likelihood, "structure": "full"}
    return lk.fit(problem.model_fn, problem.params, data, **options)


def found(precision):
    one = jnp.ones(())
    path = jnp.asarray([[1.0], [precision]]), jnp.asarray([0.0, 1.0])
    flags = jnp.asarray([False]), jnp.asarray(False)
    return Tuning(jnp.asarray(precision), one, one, *path, *flags, "evidence")


def covariance(la, precision, temperature=1.0):
    matrix = np.asarray(la.structure.matrix)
    return temperature * np.linalg.inv(matrix + precision * np.eye(len(matrix)))


def test_a_posterior_can_be_tuned(la):
    assert isinstance(la, Tunable)


def test_precision_and_temperature_are_those_of_the_covariance_and_on_record(la):
    tuned = as_tuned(la, found(3.0))
    twins.assert_close(tuned.posterior.covariance(), covariance(la, 3.0))
    assert tuned.tuning.prior_precision == 3.0
    tempered = as_tempered(tuned, 0.25)
    twins.assert_close(tempered.posterior.covariance(), covariance(la, 3.0, 0.25))
    assert tempered.tuning.temperature == 0.25
    twins.assert_close(
        untempered(tempered).refactorised().posterior.covariance(), covariance(la, 3.0)
    )


def test_a_temperature_alone_records_no_tuning(la):
    assert as_tempered(la, 0.5).tuning is None
