"""Binary labels: probabilities, exact logarithms, temperature."""

import jax.numpy as jnp
import numpy as np
from scipy import special

from laplace_kit.targets import BinaryTargets, Outputs
from laplace_kit.targets.binary import binary

F, VAR = np.array([[0.3, -60.0], [2.0, 60.0]]), np.array([[0.5, 0.0], [4.0, 0.0]])


def test_probit_logits_and_their_exact_logarithms(x64):
    found = binary(Outputs(jnp.asarray(F), jnp.asarray(VAR)))
    logits = F / np.sqrt(1 + np.pi / 8 * VAR)
    np.testing.assert_allclose(found.probs, special.expit(logits), rtol=1e-12)
    for y in (0, 1):
        expected = special.log_expit(logits if y else -logits)
        labels = jnp.full(F.shape, y, np.uint8)
        np.testing.assert_allclose(found.log_prob(labels), expected, rtol=1e-12)
    both = np.stack([special.expit(-logits), special.expit(logits)], axis=-1)
    np.testing.assert_allclose(found.class_probabilities, both, rtol=1e-12)


def test_draws_are_averaged_as_probabilities(x64):
    draws = np.random.default_rng(0).normal(size=(3, 40, 2))
    f = jnp.asarray(draws)
    found = binary(Outputs(f.mean(axis=1), f.var(axis=1, ddof=1), draws=f))
    np.testing.assert_allclose(found.probs, special.expit(draws).mean(axis=1), rtol=1e-12)


def test_a_temperature_divides_the_logits_known_or_not(x64):
    logits = F[:1, :1]
    outputs = Outputs(jnp.asarray(logits), jnp.zeros((1, 1)))
    probs = jnp.asarray(special.expit(logits))
    for known in (jnp.asarray(logits), None):
        cooled = BinaryTargets(outputs, probs, known).tempered(0.5)
        np.testing.assert_allclose(cooled.probs, special.expit(logits / 0.5), rtol=1e-12)
