"""Labels of several classes: probabilities, exact logarithms, temperature."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from laplace_kit.targets import ClassTargets, Outputs
from laplace_kit.targets.classes import classes

F = np.array([[0.3, -1.0, 2.0], [200.0, 0.0, -300.0]])
VAR = np.array([[0.5, 1.0, 2.0], [0.0, 0.0, 0.0]])
LOGITS = F / np.sqrt(1 + np.pi / 8 * VAR)


@pytest.fixture
def found(x64):
    return classes(Outputs(jnp.asarray(F), jnp.asarray(VAR)))


def test_probit_probabilities_and_their_exact_logarithms(found):
    np.testing.assert_allclose(found.probs, special.softmax(LOGITS, axis=1), rtol=1e-12)
    expected = special.log_softmax(LOGITS, axis=1)
    np.testing.assert_allclose(found.log_prob(jnp.asarray([1, 2])), expected[[0, 1], [1, 2]])
    soft = np.array([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(found.log_prob(jnp.asarray(soft)), (soft * expected).sum(axis=1))


def test_draws_are_averaged_as_probabilities(x64):
    draws = np.random.default_rng(0).normal(size=(3, 40, 4))
    f = jnp.asarray(draws)
    found = classes(Outputs(f.mean(axis=1), f.var(axis=1, ddof=1), draws=f))
    np.testing.assert_allclose(found.probs, special.softmax(draws, axis=2).mean(axis=1), rtol=1e-12)


def test_a_temperature_divides_the_logits_known_or_not(found):
    expected = special.softmax(LOGITS[:1] / 3, axis=1)
    np.testing.assert_allclose(found.tempered(3.0).probs[:1], expected, rtol=1e-12)
    unknown = ClassTargets(found.outputs, found.probs)
    np.testing.assert_allclose(unknown.tempered(3.0).probs[:1], expected, rtol=1e-12)


def test_drawing_the_logits_takes_a_key(found):
    with pytest.raises(ValueError, match=r"key=jax\.random\.key"):
        found.uncertainty()
