"""Merged posteriors of parts of the data are the posterior of all of them, where it is Gaussian."""

import dataclasses
import itertools

import exact
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit.approx import merged


def parts(*stops: int):
    """Return the whole regression problem of `exact`, and its parts."""
    everything = exact.regression()
    bounds = [0, *stops, len(everything.x)]
    return everything, [
        dataclasses.replace(everything, x=everything.x[low:high], y=everything.y[low:high])
        for low, high in itertools.pairwise(bounds)
    ]


@pytest.mark.parametrize("stops", [(6,), (3, 7)], ids=["halves", "thirds"])
def test_linear_regression_in_parts(stops, x64):
    everything, some = parts(*stops)
    precision, mean = exact.priors(8)
    found = merged([part.fit(precision, mean, structure="full") for part in some])
    theta, cov = everything.posterior(precision, mean)
    twins.assert_close(ravel_pytree(found.params)[0], theta, rtol=1e-8)
    twins.assert_close(found.posterior.covariance(), cov, rtol=1e-8)
    evidence = everything.log_evidence(precision, mean)
    twins.assert_close(found.log_marginal_likelihood(), evidence, rtol=1e-8)
    assert found.num_data == 11
    assert found.diagnostics().gradient_norm < 1e-8
    assert len(found.examples.y) == 11


def test_the_order_does_not_matter_and_the_temperature_stays(x64):
    _, some = parts(6)
    precision, mean = exact.priors(8)
    fitted = [part.fit(precision, mean, structure="full").with_temperature(0.5) for part in some]
    one, other = merged(fitted), merged(fitted[::-1])
    twins.assert_close(ravel_pytree(one.params)[0], ravel_pytree(other.params)[0], rtol=1e-8)
    twins.assert_close(one.posterior.covariance(), other.posterior.covariance(), rtol=1e-8)
    cold = merged([la.with_temperature(1.0) for la in fitted])
    twins.assert_close(ravel_pytree(one.params)[0], ravel_pytree(cold.params)[0], rtol=1e-8)
    twins.assert_close(one.posterior.covariance(), cold.posterior.covariance() / 2, rtol=1e-8)


def test_what_must_be_shared(x64):
    _, (first, second) = parts(6)
    ones, zeros = np.ones(8), np.zeros(8)
    la = first.fit(ones, zeros, structure="full")
    other = second.fit(ones, zeros, structure="full")
    with pytest.raises(ValueError, match=r"Found 1 posterior\(s\), expected at least two"):
        merged([la])
    with pytest.raises(ValueError, match="differ in the prior precision, expected the same; set"):
        merged([la, other.with_prior(2.0)])
    with pytest.raises(ValueError, match="differ in the prior mean"):
        merged([la, second.fit(ones, ones, structure="full")])
    with pytest.raises(ValueError, match="differ in the temperature"):
        merged([la, other.with_temperature(0.5)])
    noise = 2 * np.asarray(other.likelihood.noise_std)
    with pytest.raises(ValueError, match="differ in the likelihood, expected the same; set one"):
        merged([la, other.with_noise(noise)])
    with pytest.raises(ValueError, match="differ in the parameters"):
        merged([la, exact.fitted("full", "float64")])
    with pytest.raises(TypeError, match="expected two of the same kind"):
        merged([la, second.fit(ones, zeros, structure="diagonal")])


def test_nothing_of_the_parts_changes(x64):
    _, some = parts(6)
    fitted = [part.fit(np.ones(8), np.zeros(8), structure="full") for part in some]
    before = [ravel_pytree(la.params)[0] for la in fitted]
    assert isinstance(merged(fitted), lk.Laplace)
    for la, params in zip(fitted, before, strict=True):
        np.testing.assert_array_equal(ravel_pytree(la.params)[0], params)
