"""Fisher matrices: the empirical one, and the sampled one given its labels and on average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

from laplace_kit import curv
from laplace_kit.approx.low_rank import fit_low_rank
from laplace_kit.approx.posterior import factorise
from laplace_kit.curv.fingerprint import fingerprint
from laplace_kit.data import Chunk
from laplace_kit.likelihood import Categorical, FromLoss, Gaussian, Masked

KEY = jax.random.key(5)


def monte_carlo(problem: twins.Problem, **options) -> curv.MonteCarloFisherOperator:
    return curv.MonteCarloFisherOperator(*problem.args, key=KEY, **options)


def sampled_fisher(problem: twins.Problem, num_samples: int) -> np.ndarray:
    """The dense matrix from labels drawn one by one with the key of their example."""
    theta, outputs = twins.flat(problem)

    def gradient(index, f):
        example = jax.tree.map(lambda leaf: leaf[index], (problem.x, problem.y))
        keys = jax.random.split(jax.random.fold_in(KEY, fingerprint(example)), num_samples)
        labels = [problem.likelihood.sample(key, f) for key in keys]
        return jnp.stack([jax.grad(problem.loss)(f, y) for y in labels]) / num_samples**0.5

    def matrix():
        f = outputs(theta)
        factors = jnp.stack([gradient(index, f[index]) for index in range(len(f))])
        return twins.gauss_newton(twins.jacobian(problem), factors)

    return np.asarray(jax.jit(matrix)())


# --- empirical ------------------------------------------------------------------------------------


@pytest.mark.accelerator
@pytest.mark.parametrize(("name", "dtype"), twins.CASES)
def test_empirical_fisher_is_the_dense_matrix(name, dtype):
    with twins.precision(dtype):
        problem = twins.problem(name, dtype)
        operator = curv.EmpiricalFisherOperator(*problem.args)
        twins.assert_is(operator, twins.dense(twins.empirical_fisher, name), dtype)


def test_empirical_fisher_in_chunks(x64):
    problem = twins.problem("several_axes", "float64")
    operator = curv.EmpiricalFisherOperator(*problem.args, batch_size=2, scale=3.0)
    twins.assert_is(operator, 3 * twins.dense(twins.empirical_fisher, "several_axes"), "float64")


# --- Monte Carlo ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*twins.MAIN, "bare"])
def test_sampled_fisher_is_the_dense_matrix_of_its_labels(name, x64):
    problem = twins.problem(name, "float64")
    operator = monte_carlo(problem, num_samples=2)
    twins.assert_is(operator, sampled_fisher(problem, num_samples=2), "float64")


@pytest.mark.parametrize("name", ["mlp", "two_inputs"])
def test_sampled_fisher_is_the_ggn_on_average(name, x64):
    problem = twins.problem(name, "float64")
    num_samples = 4000
    operator = monte_carlo(problem, num_samples=num_samples)
    v = problem.vectors(1)[0]

    @jax.jit
    def terms(operator, v):
        """One for each label: their spread is the error bar."""
        theta, outputs = twins.flat(problem)
        f, tangent = jax.jvp(outputs, (theta,), (v,))
        chunk = Chunk(problem.x, problem.y, jnp.ones(len(f)))
        factor = operator.output_factor(f, chunk, jnp.arange(num_samples)) * num_samples**0.5
        return jnp.einsum("nm...,n...->nm", factor, tangent) ** 2

    found = np.asarray(terms(operator, v))
    quadratic = found.mean(axis=1).sum()
    standard_error = np.sqrt(found.var(axis=1, ddof=1).sum() / num_samples)
    twins.assert_close(v @ operator.mv(v), quadratic)
    expected = np.asarray(v) @ twins.dense(twins.ggn, name) @ np.asarray(v)
    assert standard_error < 0.05 * expected
    assert abs(quadratic - expected) < 4 * standard_error


def test_labels_depend_neither_on_chunks_nor_on_the_form_of_the_data(x64):
    problem = twins.problem("mlp", "float64")
    model_fn, params, (x, y), likelihood = problem.args
    v = problem.vectors(1)[0]
    whole = monte_carlo(problem) @ v
    twins.assert_close(monte_carlo(problem, batch_size=2) @ v, whole)
    for data in (twins.batches(x, y, 3, 3, 1), twins.Loader(x, y, 4)):
        over_loader = curv.MonteCarloFisherOperator(
            model_fn, params, data, likelihood, key=KEY, batch_size=2
        )
        twins.assert_close(over_loader @ v, whole)
    order = np.random.default_rng(0).permutation(len(y))
    data = (x[order], y[order])
    permuted = curv.MonteCarloFisherOperator(model_fn, params, data, likelihood, key=KEY)
    twins.assert_close(permuted @ v, whole)
    other = curv.MonteCarloFisherOperator(*problem.args, key=jax.random.key(6)) @ v
    assert jnp.abs(other - whole).max() > 0.1 * jnp.abs(whole).max()


class Shuffling:
    """A loader that yields its examples in another order in every pass."""

    def __init__(self, x, y, batch_size):
        self.x, self.y, self.batch_size = np.asarray(x), np.asarray(y), batch_size
        self.rng = np.random.default_rng(0)

    def __iter__(self):
        order = self.rng.permutation(len(self.y))
        for low in range(0, len(order), self.batch_size):
            rows = order[low : low + self.batch_size]
            yield self.x[rows], self.y[rows]


def test_over_a_loader_that_shuffles_it_is_one_matrix(x64):
    problem = twins.problem("mlp", "float64")
    model_fn, params, (x, y), likelihood = problem.args
    operator = curv.MonteCarloFisherOperator(
        model_fn, params, Shuffling(x, y, 3), likelihood, key=KEY, num_samples=2
    )
    v, expected = problem.vectors(1)[0], np.asarray(monte_carlo(problem, num_samples=2).to_dense())
    for _ in range(3):
        twins.assert_close(operator @ v, expected @ np.asarray(v))
    structure = fit_low_rank(operator, 6, key=jax.random.key(1))
    values, vectors = np.linalg.eigh(expected)
    leading = vectors[:, -6:]
    cov = np.linalg.inv((leading * values[-6:]) @ leading.T + np.eye(len(v)))
    posterior, _ = factorise(structure, jnp.ones(len(v)))
    twins.assert_close(posterior.variance(), np.diag(cov), rtol=1e-6)


def test_equal_inputs_have_labels_of_their_own_where_targets_differ(x64):
    """Copies of one example have equal labels; the mean over keys is the Fisher matrix."""
    x, y = jnp.zeros((3, 1)), jnp.asarray([0.5, 1.0, 1.0])[:, None]

    def squares(key):
        """The squares of what is drawn: N(0, 1)."""
        operator = curv.MonteCarloFisherOperator(
            lambda p, x: x + p, jnp.zeros(1), (x, y), Gaussian(), key=key
        )
        chunk = Chunk(x, y, jnp.ones(3))
        return operator.output_factor(x, chunk, jnp.arange(1)).ravel() ** 2

    found = np.asarray(jax.jit(jax.vmap(squares))(jax.random.split(KEY, 4000)))
    np.testing.assert_array_equal(found[:, 1], found[:, 2])
    correlation = np.corrcoef(found[:, 0], found[:, 1])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(4000)
    standard_error = np.sqrt(2 / 4000)
    np.testing.assert_allclose(found.mean(axis=0), 1, atol=4 * standard_error)


@pytest.mark.parametrize("kind", ["ignore_index", "mask"])
def test_where_no_label_was_observed_none_is_drawn(kind, x64):
    problem = twins.problem("several_axes", "float64")
    seen = np.asarray([[1, 1], [1, 0], [0, 0], [0, 1], [1, 1]], bool)
    if kind == "ignore_index":
        likelihood, y = Categorical(ignore_index=-1), jnp.where(seen, problem.y, -1)
    else:
        likelihood, y = Masked(Categorical()), (problem.y, jnp.asarray(seen))
    operator = curv.MonteCarloFisherOperator(
        problem.model_fn, problem.params, (problem.x, y), likelihood, key=KEY, num_samples=2
    )
    theta, outputs = twins.flat(problem)

    def factor(x, y, f, seen):
        keys = jax.random.split(jax.random.fold_in(KEY, fingerprint((x, y))), 2)
        labels = jax.vmap(problem.likelihood.sample, (0, None))(keys, f)
        gradients = jax.vmap(jax.grad(problem.loss), (None, 0))(f, labels)
        return jnp.where(seen[:, None], gradients, 0) / 2**0.5

    @jax.jit
    def matrix():
        factors = jax.vmap(factor)(problem.x, y, outputs(theta), seen)
        return twins.gauss_newton(twins.jacobian(problem), factors)

    twins.assert_is(operator, np.asarray(matrix()), "float64")


def test_symmetric_and_positive_semi_definite(x64):
    problem = twins.problem("two_inputs", "float64")
    operator = monte_carlo(problem, num_samples=3)
    vectors = problem.vectors(2)
    matrix, _, _, products = jax.jit(twins.forms)(operator, vectors[0], vectors)
    twins.assert_close(products[0] @ vectors[1], products[1] @ vectors[0])
    twins.assert_close(matrix, matrix.T, rtol=1e-14)
    eigenvalues = jnp.linalg.eigvalsh(matrix)
    assert eigenvalues.min() > -1e-12 * eigenvalues.max()


def test_number_of_samples_must_be_positive():
    problem = twins.problem("mlp")
    with pytest.raises(ValueError, match="Found num_samples=0, expected a whole number of labels"):
        monte_carlo(problem, num_samples=0)


def test_a_loss_without_sampler_says_what_to_pass():
    problem = twins.problem("bare")
    likelihood = FromLoss(twins.log_cosh_loss)
    operator = curv.MonteCarloFisherOperator(*problem.args[:3], likelihood, key=KEY)
    with pytest.raises(TypeError, match=r"found no sampler.*pass FromLoss\(loss, sampler="):
        operator.mv(problem.vectors(1)[0])


# --- pure functions -------------------------------------------------------------------------------


def test_pure_functions_with_the_batch_as_argument(x64):
    problem = twins.problem("mlp", "float64")

    @jax.jit
    def products(params, batch, v, key):
        empirical = curv.empirical_fisher_mv(mlp, params, batch, v, "categorical", scale=2.0)
        return empirical, curv.mc_fisher_mv(
            mlp, params, batch, v, "categorical", key=key, num_samples=2, scale=2.0
        )

    mlp, v = problem.model_fn, problem.vectors(1)[0]
    empirical, sampled = products(problem.params, (problem.x, problem.y), v, KEY)
    expected = 2 * twins.dense(twins.empirical_fisher, "mlp") @ np.asarray(v)
    twins.assert_close(empirical, expected)
    twins.assert_close(sampled, 2 * sampled_fisher(problem, 2) @ np.asarray(v))
