"""Likelihoods against SciPy's densities, automatic derivatives and samples; and their messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import twins

from laplace_kit import likelihood as lk
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    FromLoss,
    Gaussian,
    HeteroscedasticGaussian,
    Poisson,
)

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
cases = pytest.mark.parametrize("name", CASES)


def case(name: str, dtype: str = "float64") -> tuple:
    likelihood, f, y, loss = CASES[name]
    f, y = jnp.asarray(f, dtype), jnp.asarray(y)
    return likelihood, f, y if jnp.issubdtype(y.dtype, jnp.integer) else y.astype(dtype), loss


@functools.partial(jax.jit, static_argnames="method")
def matrix(likelihood, method, f, y):
    """Return the columns that a product makes of the unit vectors, flattened."""
    product = functools.partial(getattr(likelihood, method), f, y)
    units = jnp.eye(f.size, dtype=f.dtype).reshape(f.size, *f.shape)
    return jax.vmap(product, out_axes=-1)(units).reshape(f.size, f.size)


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
@cases
def test_curvature_in_the_outputs(name, dtype):
    with twins.precision(dtype):
        likelihood, f, y, loss = case(name, dtype)

        @jax.jit
        def forms(likelihood, f, y):
            root = matrix(likelihood, "hessian_sqrt_mv", f, y)
            product = matrix(likelihood, "hessian_mv", f, y)
            value = likelihood.negative_log_prob(f, y)
            return value, likelihood.output_gradient(f, y), product, root @ root.T

        @jax.jit
        def definitions(f, y):
            hessian = jax.hessian(loss)(f, y).reshape(f.size, f.size)
            return loss(f, y), jax.grad(loss)(f, y), hessian, hessian

        found = forms(likelihood, f, y)
        assert all(array.dtype == dtype for array in found)
        for array, expected in zip(found, definitions(f, y), strict=True):
            twins.assert_close(array, expected, dtype=dtype)


@pytest.mark.parametrize("name", ["gaussian", "categorical", "bernoulli", "poisson"])
def test_samples_have_the_stated_distribution(name, x64):
    likelihood, f, _, _ = case(name)
    f = f if name == "categorical" else f[0]
    num = 20_000

    @jax.jit
    def draw(key):
        y = jax.vmap(lambda key: likelihood.sample(key, f))(jax.random.split(key, num))
        return y, jax.vmap(lambda y: likelihood.output_gradient(f, y))(y)

    y, gradients = draw(jax.random.key(3))
    assert likelihood.is_valid(f, y[0])
    # Fisher's identities: the score has mean zero, its covariance is the expected Hessian.
    outer = jnp.einsum("mi,mj->mij", gradients, gradients)
    hessian = matrix(likelihood, "hessian_mv", f, y[0])
    for terms, expected in ((gradients, jnp.zeros_like(f)), (outer, hessian)):
        error_bar = terms.std(axis=0) / num**0.5
        assert (jnp.abs(terms.mean(axis=0) - expected) < 4.5 * error_bar + 1e-12).all()


def heteroscedastic() -> tuple:
    f = jnp.asarray([[0.3, -1.2, 0.8, 0.1], [1.0, 0.2, -2.0, 3.0]])
    return HeteroscedasticGaussian(), f, jnp.asarray([[0.5, -1.0], [1.2, 0.0]])


def test_log_probability_with_a_noise_for_each_output_is_that_of_scipy(x64):
    likelihood, f, y = heteroscedastic()
    density = scipy.stats.norm.logpdf(y, f[:, :2], np.exp(-np.asarray(f[:, 2:]) / 2))
    assert likelihood.negative_log_prob(f, y) == pytest.approx(-density.sum(), rel=1e-12)


def test_curvature_with_a_noise_for_each_output_is_the_expected_hessian(x64):
    """By quadrature over the targets; outputs do not interact, so that one node serves all."""
    likelihood, f, y = heteroscedastic()
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    targets = f[:, :2] + jnp.exp(-f[:, 2:] / 2) * nodes[:, None, None]
    hessians = jax.vmap(jax.hessian(likelihood.negative_log_prob), (None, 0))(f, targets)
    expected = np.tensordot(weights / weights.sum(), hessians, 1).reshape(8, 8)
    root = matrix(likelihood, "hessian_sqrt_mv", f, y)
    twins.assert_close(matrix(likelihood, "hessian_mv", f, y), expected)
    twins.assert_close(root @ root.T, expected)
    assert np.linalg.eigvalsh(jax.hessian(likelihood.negative_log_prob)(f[0], y[0])).min() < 0


def test_samples_with_a_noise_for_each_output_have_that_noise(x64):
    likelihood, f, _ = heteroscedastic()
    keys = jax.random.split(jax.random.key(0), 20_000)
    y = jax.vmap(likelihood.sample, (0, None))(keys, f)
    std = np.exp(-np.asarray(f[:, 2:]) / 2)
    assert np.abs((y.mean(axis=0) - f[:, :2]) / (std / 20_000**0.5)).max() < 4
    assert np.abs(y.std(axis=0) / std - 1).max() < 4 / 40_000**0.5


@pytest.mark.parametrize(("outputs", "targets"), [((5, 3), (5, 1)), ((5, 4), (5, 4)), ((4,), (2,))])
def test_a_noise_for_each_output_wants_twice_as_many_outputs(outputs, targets):
    spec = jax.ShapeDtypeStruct(targets, jnp.float32)
    with pytest.raises(ValueError, match=r"expected outputs \(N, 2 C\), the C means before"):
        HeteroscedasticGaussian().check_shapes(outputs, spec)


def test_samples_suit_the_targets_of_several_labels():
    f = jnp.asarray([[50.0, 0.0, 0.0], [0.0, 0.0, 50.0]])
    np.testing.assert_array_equal(Categorical().sample(jax.random.key(0), f), [0, 2])


@pytest.mark.parametrize(
    ("likelihood", "f", "y"),
    [
        (Categorical(), [1e4, -1e4, 0.0], 1),
        (Categorical(), [1e4, -1e4, 0.0], [0.0, 0.5, 0.5]),
        (Bernoulli(), [1e4, -1e4, 50.0], [0.0, 1.0, 0.0]),
        (Poisson(), [-1e4, 80.0, 0.0], [3.0, 0.0, 1e6]),
        (Gaussian(1e-3), [1e4, -1e4, 0.0], [0.0, 0.0, 0.0]),
        (FromLoss(twins.categorical_loss), [1e4, -1e4, 0.0], 1),
    ],
)
def test_extreme_outputs_stay_finite(likelihood, f, y):
    f, y = jnp.asarray(f), jnp.asarray(y)
    root = matrix(likelihood, "hessian_sqrt_mv", f, y)
    product = matrix(likelihood, "hessian_mv", f, y)
    gradient = likelihood.output_gradient(f, y)
    for array in (likelihood.negative_log_prob(f, y), gradient, product, root):
        assert jnp.isfinite(array).all()
    twins.assert_close(root @ root.T, product, rtol=1e-5)


def test_noise_is_a_leaf_to_differentiate(x64):
    f, y = jnp.asarray(F), jnp.asarray(F[::-1].copy())

    def loss(std):
        return Gaussian(std).negative_log_prob(f, y)

    square = float(jnp.sum((y - f) ** 2))
    std = 0.7
    found = jax.jit(jax.grad(loss))(std)
    assert found == pytest.approx(-square / std**3 + f.size / std, rel=1e-12)
    assert jax.tree.leaves(Gaussian(std)) == [std]


# --- any loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "poisson", "gaussian"])
def test_from_loss_equals_its_closed_form(name, x64):
    closed, f, y, loss = case(name)
    ours = FromLoss(loss)
    twins.assert_close(matrix(ours, "hessian_mv", f, y), matrix(closed, "hessian_mv", f, y))
    root = matrix(ours, "hessian_sqrt_mv", f, y)
    twins.assert_close(root @ root.T, matrix(closed, "hessian_mv", f, y), rtol=1e-8)


@pytest.mark.parametrize("logit", [5.0, 9.0, 14.0])
def test_from_loss_of_a_confident_prediction(logit):
    f, y = jnp.asarray([logit, 0.3, 0.0, -0.2]), jnp.asarray(0)
    root = matrix(FromLoss(twins.categorical_loss), "hessian_sqrt_mv", f, y)
    expected = matrix(Categorical(), "hessian_mv", f, y)
    np.testing.assert_allclose(root @ root.T, expected, atol=2e-6)


def test_root_of_a_loss_that_is_not_convex_is_nan(x64):
    saddle = FromLoss(lambda f, y: f[0] ** 2 - 0.1 * f[1] ** 2)
    f, y = jnp.asarray([1.0, 2.0]), jnp.asarray(0.0)
    assert jnp.isnan(matrix(saddle, "hessian_sqrt_mv", f, y)).all()
    np.testing.assert_allclose(matrix(saddle, "hessian_mv", f, y), np.diag([2.0, -0.2]))


def test_from_loss_samples_with_its_sampler():
    likelihood = FromLoss(twins.log_cosh_loss, sampler=lambda key, f: f + 1)
    np.testing.assert_array_equal(likelihood.sample(jax.random.key(0), jnp.zeros(2)), 1)
    with pytest.raises(TypeError, match=r"no sampler.*curvature='ggn'"):
        FromLoss(twins.log_cosh_loss).sample(jax.random.key(0), jnp.zeros(2))


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_std", [0.0, -1.0, float("nan"), float("inf"), np.ones(3)])
def test_noise_must_be_positive(noise_std):
    with pytest.raises((ValueError, TypeError), match="noise_std"):
        Gaussian(noise_std)


@pytest.mark.parametrize(
    "noise_std", [1, 0.5, np.float64(2), np.float32(2), np.asarray(0.3), jnp.ones(())]
)
def test_noise_may_be_any_positive_scalar(noise_std):
    f = jnp.asarray([1.0])
    found = Gaussian(noise_std).hessian_mv(f, f, f)
    np.testing.assert_allclose(found, 1 / np.asarray(noise_std) ** 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "dtype", "words"),
    [
        ("gaussian", (5, 1), (5,), "float32", ["(5,)", "(5, 1)", "same shape; reshape"]),
        ("bernoulli", (5,), (5, 1), "float32", ["(5, 1)", "(5,)", "y.reshape((5,))"]),
        ("poisson", (5, 2), (5, 3), "int32", ["(5, 3)", "(5, 2)"]),
        ("categorical", (5,), (5,), "int32", ["(N, C)", "lk.Bernoulli()"]),
        ("categorical", (5, 1), (5,), "int32", ["at least two", "lk.Bernoulli()"]),
        ("categorical", (5, 3), (5, 1), "int32", ["(5, 1)", "(5,)", "squeeze or reshape"]),
        ("categorical", (5, 3), (5, 4), "float32", ["(5, 4)", "one-hot or soft labels (5, 3)"]),
        ("categorical", (5, 3), (5,), "float32", ["float32", "0 to 2", "y.astype(int)"]),
    ],
)
def test_shapes_that_do_not_go_together_are_named(name, outputs, targets, dtype, words):
    f, y = jax.ShapeDtypeStruct(outputs, jnp.float32), jax.ShapeDtypeStruct(targets, dtype)
    with pytest.raises(ValueError, match="found") as error:
        lk.check_targets(lk.as_likelihood(name), f, y)
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
    ],
)
def test_shapes_that_go_together_pass(name, outputs, targets, dtype):
    f, y = jax.ShapeDtypeStruct(outputs, jnp.float32), jax.ShapeDtypeStruct(targets, dtype)
    lk.check_targets(lk.as_likelihood(name), f, y)


def test_outputs_and_targets_must_be_arrays():
    f = jax.ShapeDtypeStruct((5, 2), jnp.float32)
    with pytest.raises(ValueError, match="expected one array with a leading axis"):
        lk.check_targets(Gaussian(), (f, f), f)
    with pytest.raises(ValueError, match=r"targets of type dict.*lk\.FromLoss"):
        lk.check_targets(Gaussian(), f, {"y": f})
    lk.check_targets(FromLoss(twins.log_cosh_loss), f, {"y": f})
    with pytest.raises(ValueError, match="expected 5 targets"):
        lk.check_targets(FromLoss(twins.log_cosh_loss), f, jax.ShapeDtypeStruct((4,), jnp.float32))


@pytest.mark.parametrize(
    ("likelihood", "good", "bad"),
    [
        (Gaussian(), [0.0, -1e9], [[np.nan, 0.0], [0.0, np.inf]]),
        (Categorical(), 1, [-1, 2]),
        (Categorical(), [0.25, 0.75], [[0.5, 0.6], [1.5, -0.5], [np.nan, 1.0]]),
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


def test_names_become_likelihoods():
    for name, kind in (("gaussian", Gaussian), ("categorical", Categorical)):
        assert isinstance(lk.as_likelihood(name), kind)
    ours = Gaussian(0.3)
    assert lk.as_likelihood(ours) is ours
    with pytest.raises(ValueError, match=r"likelihood='bernouli'.* Did you mean 'bernoulli'"):
        lk.as_likelihood("bernouli")
    with pytest.raises(TypeError, match=r"likelihood of type function.*lk\.FromLoss\(loss\)"):
        lk.as_likelihood(twins.log_cosh_loss)
