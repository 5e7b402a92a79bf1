"""Losses of single targets: exact where probabilities round to zero, and counts by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from laplace_kit.eval.evaluation import evaluate
from laplace_kit.eval.link import LINKS
from laplace_kit.eval.outputs import Predictive, from_gaussian, from_samples
from laplace_kit.likelihood import Bernoulli, Categorical, Poisson
from laplace_kit.targets import ClassTargets, Outputs
from laplace_kit.tune.criteria import as_loss


def losses(predictive, y):
    return -predictive.log_prob(y)


# --- probabilities that round to zero -------------------------------------------------------------

# In float32 a probability below 1e-38 is zero: 87 nats are then the largest loss there is.
SATURATED = np.array([[200.0, 0.0, -50.0], [0.0, 300.0, 1.0], [1.0, 2.0, 3.0]], np.float32)
LABELS = np.array([2, 0, 1])


def at_the_mode(likelihood, outputs, link="probit", var=0.0, key=None):
    f = jnp.asarray(outputs)
    spread = jnp.full_like(f, var)
    return from_gaussian(likelihood, f, spread, None, link=link, key=key, num_samples=2)


def test_a_saturated_mode_loses_what_its_logits_say():
    predictive = at_the_mode(Categorical(), SATURATED)
    assert predictive.probs[0, 2] == predictive.probs[1, 0] == 0
    found = losses(predictive, jnp.asarray(LABELS))
    expected = -special.log_softmax(SATURATED.astype(float), axis=1)[np.arange(3), LABELS]
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # 250, 300 and 1.41
    assert evaluate(Categorical(), predictive, jnp.asarray(LABELS))["nll"] == pytest.approx(
        expected.mean(), rel=1e-6
    )
    soft = jnp.asarray(np.eye(3, dtype=np.float32)[LABELS])
    np.testing.assert_allclose(losses(predictive, soft), expected, 1e-6)


def test_a_saturated_binary_mode_loses_what_its_logits_say():
    logits, y = np.array([150.0, -120.0, 30.0, 0.5], np.float32), np.array([0.0, 1.0, 0.0, 1.0])
    predictive = at_the_mode(Bernoulli(), logits)
    found = losses(predictive, jnp.asarray(y))
    expected = np.where(y == 1, np.logaddexp(0, -logits), np.logaddexp(0, logits.astype(float)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # 150, 120, 30 and 0.47
    assert evaluate(Bernoulli(), predictive, jnp.asarray(y, int))["nll"] == pytest.approx(
        expected.mean(), rel=1e-6
    )


@pytest.mark.parametrize("link", LINKS)
def test_every_link_has_the_logarithms_that_float64_has(link):
    key, labels = jax.random.key(0), jnp.asarray(LABELS)
    found = losses(at_the_mode(Categorical(), 2 * SATURATED, link, 0.04, key), labels)
    with jax.enable_x64(True):  # whose smallest number is e^-708
        precise = at_the_mode(Categorical(), 2 * SATURATED.astype(float), link, 0.04, key)
        expected = -np.log(np.asarray(precise.probs)[np.arange(3), LABELS])
    if link == "monte_carlo":  # the draws of float64 are others
        np.testing.assert_allclose(found[:2], [500, 600], rtol=0.01)
    else:
        np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_averages_over_draws_of_the_weights_keep_what_each_draw_rounds_to_zero():
    samples = np.stack([SATURATED, SATURATED - np.array([5.0, 0.0, 0.0], np.float32)], axis=1)
    log_p = special.log_softmax(samples.astype(float), axis=2)[np.arange(3), :, LABELS]
    found = from_samples(Categorical(), jnp.asarray(samples), full=False)
    np.testing.assert_allclose(
        losses(found, jnp.asarray(LABELS)),
        np.log(2) - special.logsumexp(log_p, axis=1),
        rtol=1e-6,
    )
    logits = samples[..., 0]
    binary = from_samples(Bernoulli(), jnp.asarray(logits), full=False)
    np.testing.assert_allclose(
        losses(binary, jnp.zeros(3)),
        np.log(2) - special.logsumexp(-np.logaddexp(0, logits.astype(float)), axis=1),
        rtol=1e-6,
    )


def test_probabilities_without_logits_count_as_the_smallest_number_at_least():
    probs = jnp.asarray([[1.0, 0.0], [0.25, 0.75]], jnp.float32)
    predictive = Predictive(ClassTargets(Outputs(jnp.zeros((2, 2)), jnp.zeros((2, 2))), probs))
    tiny = np.finfo(np.float32).tiny
    found = losses(predictive, jnp.asarray([1, 1]))
    np.testing.assert_allclose(found, [-np.log(tiny), -np.log(0.75)], rtol=1e-6)


def test_held_out_losses_are_exact():
    predictive = at_the_mode(Categorical(), SATURATED)
    loss = as_loss("nll", Categorical())(predictive, jnp.asarray(LABELS), None)
    expected = -special.log_softmax(SATURATED.astype(float), axis=1)[np.arange(3), LABELS]
    assert loss == pytest.approx(expected.mean(), rel=1e-6)


# --- counts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "var", "count"),
    [(5, 0.25, 148), (5, 0.25, 300), (8, 1.0, 3000), (8, 1.0, 200), (20, 1.0, 5), (2, 4.0, 0)],
)
def test_counts_far_narrower_than_their_rates(x64, mean, var, count):
    f_mean = jnp.full((1, 1), float(mean))
    predictive = at_the_mode(Poisson(), f_mean, var=var)
    found = losses(predictive, jnp.full((1, 1), count))
    f = np.linspace(mean - 25 * var**0.5, mean + 25 * var**0.5, 200_001)
    log_p = (
        count * f - np.exp(f) - special.gammaln(count + 1) + stats.norm.logpdf(f, mean, var**0.5)
    )
    expected = -special.logsumexp(log_p) - np.log(f[1] - f[0])
    assert float(found[0, 0]) == pytest.approx(expected, abs=1e-6)


def test_counts_of_a_known_rate(x64):
    f_mean, counts = jnp.array([[1.0, 8.0, -3.0]]), jnp.array([[3, 2900, 0]])
    predictive = at_the_mode(Poisson(), f_mean)
    found = losses(predictive, counts)
    np.testing.assert_allclose(found, -stats.poisson.logpmf(counts, np.exp(f_mean)), rtol=1e-9)
