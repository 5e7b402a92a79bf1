"""Sets of the most probable classes against an enumeration of all subsets."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit import tree
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.prediction_sets import probability_after
from laplace_kit.likelihood import Bernoulli, Categorical, Gaussian
from laplace_kit.targets import BinaryTargets, ClassTargets, NoTargets, Outputs

PROBS = np.random.default_rng(0).dirichlet(np.ones(4), (5, 2))


def predictive_of(likelihood, probs) -> Predictive:
    probs = jnp.asarray(probs)
    outputs = Outputs(jnp.zeros(probs.shape), probs)
    if likelihood is None:
        return Predictive(NoTargets(outputs))
    if not likelihood.has_classes:
        return Predictive(likelihood.targets(outputs), likelihood)
    kind = BinaryTargets if isinstance(likelihood, Bernoulli) else ClassTargets
    return Predictive(kind(outputs, probs), likelihood)


@pytest.mark.parametrize("level", [0.05, 0.5, 0.9, 0.999])
def test_sets_are_the_smallest_that_reach_the_level(level, x64):
    found = np.asarray(predictive_of(Categorical(), PROBS).prediction_set(level))
    assert found.shape == PROBS.shape
    for p, members in zip(PROBS.reshape(-1, 4), found.reshape(-1, 4), strict=True):
        sizes = [
            len(subset)
            for size in range(1, 5)
            for subset in itertools.combinations(range(4), size)
            if p[list(subset)].sum() >= level
        ]
        assert members.sum() == min(sizes)
        assert p[members].sum() >= level
        assert p[members].min() >= p[~members].max(initial=0.0)


def test_ties_and_certainty():
    probs = np.asarray([[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]])
    found = predictive_of(Categorical(), probs).prediction_set(0.5)
    np.testing.assert_array_equal(found, [[1, 1, 0, 0], [0, 1, 0, 0]])
    np.testing.assert_allclose(probability_after(jnp.asarray(probs))[0], [0.75, 0.5, 0.25, 0])


def test_no_set_holds_a_class_of_probability_zero():
    """A level that rounds to one, and probabilities that sum to a little less."""
    probs = np.asarray([[0.99, 0.0, 0.0], [0.5, 0.4999, 0.0]], "float32")
    found = predictive_of(Categorical(), probs).prediction_set(1 - 1e-9)
    np.testing.assert_array_equal(found, [[1, 0, 0], [1, 1, 0]])


def test_what_is_left_keeps_its_digits_where_its_complement_rounds_to_one():
    probs = jnp.asarray([1e-9, 1.0, 3e-12, 2e-10], jnp.float32)
    np.testing.assert_allclose(probability_after(probs), [2.03e-10, 1.203e-9, 0, 3e-12], rtol=1e-6)


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
def test_logits_are_the_predictives_own_or_those_of_its_probabilities(likelihood):
    logits = jnp.asarray([[150.0, -3.0, 0.0]])
    binary = isinstance(likelihood, Bernoulli)
    probs = jax.nn.sigmoid(logits) if binary else jax.nn.softmax(logits)
    predictive = predictive_of(likelihood, probs)
    expected = jnp.stack([0 * logits, logits], axis=-1) if binary else logits
    own = tree.replace(predictive.targets, logits=logits).class_logits
    np.testing.assert_array_equal(own, expected)
    found = predictive.targets.class_logits
    np.testing.assert_allclose(
        jax.nn.softmax(found), jax.nn.softmax(expected), rtol=1e-5, atol=1e-37
    )
    assert np.isfinite(found).all()


def test_binary_labels_have_the_classes_0_and_1():
    found = predictive_of(Bernoulli(), [[0.95, 0.3], [0.6, 0.05]]).prediction_set(0.9)
    np.testing.assert_array_equal(found, [[[0, 1], [1, 1]], [[1, 1], [1, 0]]])


def test_what_has_no_classes_is_refused():
    with pytest.raises(TypeError, match=r"predictive.interval"):
        predictive_of(Gaussian(), PROBS).prediction_set()
    with pytest.raises(TypeError, match="without a likelihood"):
        predictive_of(None, PROBS).prediction_set()
    with pytest.raises(ValueError, match="between 0 and 1"):
        predictive_of(Categorical(), PROBS).prediction_set(1.0)
