"""What all likelihoods have in common: SciPy's densities, automatic derivatives, samples."""

import jax
import jax.numpy as jnp
import numpy as np
import output_space
import pytest
import scipy.stats
import twins

from laplace_kit import likelihood as lk
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    Factorized,
    FromLoss,
    Gaussian,
    HeteroscedasticGaussian,
    Masked,
    MultivariateGaussian,
    Poisson,
)
from laplace_kit.likelihood.base import check_targets

RNG = np.random.default_rng(0)
F = np.asarray([[0.3, -1.2, 0.8], [2.0, 0.1, -0.7]])


def with_soft_labels(f, y):
    return -jnp.sum(y * jax.nn.log_softmax(f))


# name: likelihood, outputs, targets, loss by definition
CASES = {
    "gaussian": (Gaussian(twins.NOISE_STD), F, F[::-1].copy(), twins.gaussian_loss),
    "gaussian without event": (Gaussian(twins.NOISE_STD), F[0, 0], F[1, 1], twins.gaussian_loss),
    "categorical": (Categorical(), F[0], 2, twins.categorical_loss),
    "several labels": (Categorical(), F, np.asarray([2, 0]), twins.categorical_loss),
    "soft labels": (Categorical(), F[0], np.asarray([0.2, 0.5, 0.3]), with_soft_labels),
    "bernoulli": (Bernoulli(), F, np.asarray([[0, 1, 1], [1, 0, 1]]), twins.bernoulli_loss),
    "probabilities": (Bernoulli(), F[0], np.asarray([0.1, 0.5, 1.0]), twins.bernoulli_loss),
    "poisson": (Poisson(), F, np.asarray([[0, 1, 5], [7, 2, 0]]), twins.poisson_loss),
    "loss": (FromLoss(twins.log_cosh_loss), F, F[::-1].copy(), twins.log_cosh_loss),
}


def case(name: str, dtype: str = "float64") -> tuple:
    likelihood, f, y, loss = CASES[name]
    f, y = jnp.asarray(f, dtype), jnp.asarray(y)
    return likelihood, f, y if jnp.issubdtype(y.dtype, jnp.integer) else y.astype(dtype), loss


# --- values and derivatives -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "density"),
    [
        ("gaussian", lambda f, y: scipy.stats.norm.logpdf(y, f, twins.NOISE_STD)),
        ("categorical", lambda f, y: scipy.special.log_softmax(f)[y]),
        ("bernoulli", lambda f, y: scipy.stats.bernoulli.logpmf(y, scipy.special.expit(f))),
        ("poisson", lambda f, y: scipy.stats.poisson.logpmf(y, np.exp(f))),
    ],
)
def test_log_probability_is_that_of_scipy(name, density, x64):
    likelihood, f, y, _ = case(name)
    expected = -np.sum(density(np.asarray(f), np.asarray(y)))
    assert likelihood.negative_log_prob(f, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_curvature_in_the_outputs(name, dtype):
    with twins.precision(dtype):
        output_space.assert_derivatives(*case(name, dtype), dtype=dtype)


@pytest.mark.parametrize(
    ("likelihood", "f", "y"),
    [
        (HeteroscedasticGaussian(), F[:, :2], F[:, :1]),
        (MultivariateGaussian(jnp.asarray([[2.0, 0.3], [0.3, 1.0]])), F[0, :2], F[1, :2]),
        (Masked(Categorical()), F, (np.asarray([2, 0]), np.asarray([True, False]))),
        (Masked(Gaussian(0.5)), F[0], (F[1], np.asarray([1, 0, 1]))),
        (Categorical(np.asarray([1.0, 2.0, 0.5]), ignore_index=-1), F, np.asarray([2, -1])),
        (FromLoss(twins.categorical_loss), RNG.normal(size=11), 4),  # more than one block
    ],
)
def test_the_diagonal_in_the_outputs_is_that_of_the_product(likelihood, f, y, x64):
    f, y = jnp.asarray(f), jax.tree.map(jnp.asarray, y)
    product = output_space.matrix(likelihood, "hessian_mv", f, y)
    found = jax.jit(lambda likelihood, f, y: likelihood.hessian_diagonal(f, y))(likelihood, f, y)
    twins.assert_close(found, np.diagonal(product).reshape(f.shape))


@pytest.mark.parametrize("name", ["gaussian", "categorical", "bernoulli", "poisson"])
def test_samples_have_the_stated_distribution(name, x64):
    likelihood, f, y, _ = case(name)
    f, y = (f, y) if name == "categorical" else (f[0], y[0])
    assert likelihood.is_valid(f, likelihood.sample(jax.random.key(0), f))
    output_space.assert_scores(likelihood, f, y)


@pytest.mark.parametrize(
    ("likelihood", "f", "y"),
    [
        (Categorical(), [1e4, -1e4, 0.0], 1),
        (Categorical(), [1e4, -1e4, 0.0], [0.0, 0.5, 0.5]),
        (Categorical(label_smoothing=0.1, ignore_index=-1), [1e4, -1e4, 0.0], 1),
        (Categorical(ignore_index=-1), [1e4, -1e4, 0.0], -1),
        (Bernoulli(), [1e4, -1e4, 50.0], [0.0, 1.0, 0.0]),
        (Poisson(), [-1e4, 80.0, 0.0], [3.0, 0.0, 1e6]),
        (Gaussian(1e-3), [1e4, -1e4, 0.0], [0.0, 0.0, 0.0]),
        (FromLoss(twins.categorical_loss), [1e4, -1e4, 0.0], 1),
    ],
)
def test_extreme_outputs_stay_finite(likelihood, f, y):
    found = output_space.forms(likelihood, jnp.asarray(f), jnp.asarray(y))
    assert all(np.isfinite(array).all() for array in found)
    twins.assert_close(found[3], found[2], rtol=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "event", "y"),
    [
        (Gaussian(), (2, 3), jnp.zeros((2, 3))),
        (HeteroscedasticGaussian(), (2, 4), jnp.zeros((2, 2))),
        (Bernoulli(), (3,), jnp.zeros(3)),
        (Poisson(), (), jnp.asarray(0.0)),
        (Categorical(), (2, 3), jnp.zeros(2, int)),
        (Categorical(), (2, 3), jnp.full((2, 3), 1 / 3)),
        (Masked(Gaussian()), (3,), (jnp.zeros(3), jnp.ones(3))),
    ],
)
def test_entries_of_independent_targets(likelihood, event, y):
    """Losses, validity and presence are of one shape; every output belongs to one entry."""

    @jax.jit
    def of_entries(likelihood, f, y):
        losses = likelihood.entry_losses(f, y)
        numbers = likelihood.to_outputs(jnp.arange(losses.size).reshape(losses.shape), f)
        depends = jax.jacobian(likelihood.entry_losses)(f, y).reshape(losses.size, f.size) != 0
        present = likelihood.valid_entries(f, y), likelihood.observed(f, y)
        return losses, likelihood.negative_log_prob(f, y), numbers, depends, present

    f = jnp.full(event, 0.1)
    losses, loss, numbers, depends, present = of_entries(likelihood, f, y)
    assert isinstance(likelihood, Factorized)
    assert losses.shape == likelihood.entry_shape(event)
    assert all(flags.shape == losses.shape and flags.all() for flags in present)
    np.testing.assert_allclose(np.sum(losses), loss, rtol=1e-6)
    own = np.arange(losses.size)[:, None] == np.asarray(numbers).reshape(1, -1)
    assert numbers.shape == event
    assert not (np.asarray(depends) & ~own).any()


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "dtype", "words"),
    [
        (
            "gaussian",
            (5, 1),
            (5,),
            "float32",
            ["(5,)", "(5, 1)", "same shape", "np.asarray(y).reshape((5, 1))"],
        ),
        ("bernoulli", (5,), (5, 1), "float32", ["(5, 1)", "(5,)", "np.asarray(y).reshape((5,))"]),
        ("poisson", (5, 2), (5, 3), "int32", ["(5, 3)", "(5, 2)", "one target for each output"]),
        ("categorical", (5,), (5,), "int32", ["(N, C)", "lk.Bernoulli()"]),
        ("categorical", (5, 1), (5,), "int32", ["at least two", "lk.Bernoulli()"]),
        ("categorical", (5, 3), (5, 1), "int32", ["(5, 1)", "(5,)", "np.asarray(y).reshape((5,))"]),
        (
            "categorical",
            (5, 3),
            (5, 4),
            "float32",
            ["(5, 4)", "one-hot or soft labels (5, 3)", "a label for"],
        ),
        (
            "categorical",
            (5, 3),
            (5,),
            "float32",
            ["float32", "0 to 2", "np.asarray(y).astype(int)"],
        ),
        ("gaussian", (5, 3), (5,), "int32", ["(5,)", "class labels", "lk.Categorical()"]),
    ],
)
def test_shapes_that_do_not_go_together_are_named(name, outputs, targets, dtype, words):
    f, y = jax.ShapeDtypeStruct(outputs, jnp.float32), jax.ShapeDtypeStruct(targets, dtype)
    with pytest.raises(ValueError, match="found") as error:
        check_targets(lk.as_likelihood(name), f, y)
    message = str(error.value)
    assert message.startswith(type(lk.as_likelihood(name)).__name__)
    assert "expected" in message
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "dtype"),
    [
        ("gaussian", (5, 2), (5, 2), "int32"),
        ("categorical", (5, 3), (5,), "uint8"),
        ("categorical", (5, 3), (5, 3), "int32"),
        ("categorical", (5, 4, 3), (5, 4), "int32"),
        ("categorical", (5, 4, 6, 3), (5, 4, 6), "int32"),
    ],
)
def test_shapes_that_go_together_pass(name, outputs, targets, dtype):
    f, y = jax.ShapeDtypeStruct(outputs, jnp.float32), jax.ShapeDtypeStruct(targets, dtype)
    check_targets(lk.as_likelihood(name), f, y)


def test_outputs_and_targets_must_be_arrays():
    f = jax.ShapeDtypeStruct((5, 2), jnp.float32)
    with pytest.raises(ValueError, match="expected one array with a leading axis"):
        check_targets(Gaussian(), (f, f), f)
    for name in ("gaussian", "heteroscedastic_gaussian", "categorical", "bernoulli", "poisson"):
        with pytest.raises(ValueError, match=r"targets of type tuple.*\(y, mask\).*lk\.FromLoss"):
            check_targets(lk.as_likelihood(name), f, (f, f))


@pytest.mark.parametrize(
    ("likelihood", "good", "bad"),
    [
        (Gaussian(), [0.0, -1e9], [[np.nan, 0.0], [0.0, np.inf]]),
        (Categorical(), 1, [-1, 2]),
        (Categorical(), [0.25, 0.75], [[0.5, 0.6], [1.5, -0.5], [np.nan, 1.0]]),
        (Categorical(ignore_index=-1), -1, [-2, 2]),
        (Bernoulli(), [0.0, 0.5], [[0.0, 2.0], [-1.0, 1.0], [np.nan, 1.0]]),
        (Poisson(), [0.0, 12.0], [[0.5, 1.0], [-1.0, 1.0], [np.nan, 1.0]]),
        (FromLoss(twins.log_cosh_loss), [0.0, 12.0], [[np.nan, 1.0]]),
    ],
)
def test_values_outside_the_support_are_found(likelihood, good, bad):
    f = jnp.zeros(2)
    assert likelihood.is_valid(f, jnp.asarray(good))
    assert not any(likelihood.is_valid(f, jnp.asarray(y)) for y in bad)
    assert likelihood.support
