"""Two parts of the data in sequence are one pass over both, where the model allows it."""

import dataclasses

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import KINDS

from laplace_kit import curv
from laplace_kit.approx import DiagonalStructure, FullStructure, LowRankStructure, log_evidence
from laplace_kit.approx.diagonal import fit_diagonal
from laplace_kit.approx.dual import DualStructure, fit_dual
from laplace_kit.approx.full import fit_full
from laplace_kit.approx.kronecker import fit_kronecker
from laplace_kit.approx.low_rank import fit_low_rank
from laplace_kit.approx.update import Expansion, combine, newton_step, updated
from laplace_kit.curv.mode import examine_mode
from laplace_kit.curv.objective import restrict
from laplace_kit.data import as_data, batch_spec
from laplace_kit.eval.moments import linearized_moments
from laplace_kit.tree import replace

RNG = np.random.default_rng(0)
MLP_LAYERS = ((0, 4, 16), (16, 19, 31))  # of the flat parameters: bias, kernel, end


def fit_structure(kind, operator, rank):
    if kind == "low_rank":
        return fit_low_rank(operator, rank)
    if kind in ("kron", "ekfac"):
        return fit_kronecker(operator, corrected=kind == "ekfac")
    return {"full": fit_full, "diagonal": fit_diagonal}[kind](operator)


def dense(structure, size) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(structure.mv))(jnp.eye(size)))


# --- linear models with Gaussian noise ------------------------------------------------------------


def halves():
    regression = exact.regression()
    return regression, *(
        dataclasses.replace(regression, x=regression.x[part], y=regression.y[part])
        for part in (slice(6), slice(6, None))
    )


def expansion(regression, kind, theta) -> Expansion:
    """Measure the data of a regression at flat parameters."""
    data = as_data((jnp.asarray(regression.x), jnp.asarray(regression.y)))
    likelihood = exact.lk.Gaussian(regression.noise_std)
    objective, _ = restrict(exact.linear, regression.unravel(theta), likelihood)
    found = examine_mode(objective.planned(batch_spec(data)[0]), data)
    operator = curv.GGNOperator(exact.linear, objective.params, data, likelihood)
    structure = fit_structure(kind, operator, 8)
    return Expansion(found.log_likelihood, found.gradient, structure, found.num_data)


@pytest.mark.parametrize("kind", ["full", "low_rank", "kron", "ekfac"])
def test_two_halves_in_sequence_are_one_pass(kind, x64):
    """All these structures are exact here; the prior's mean is not zero."""
    everything, first, second = halves()
    precision, mean = exact.priors(8)
    if kind in ("kron", "ekfac"):
        precision = np.repeat([0.7, 2.0], [2, 6])
    mode, _ = first.posterior(precision, mean)
    new = expansion(second, kind, mode)
    update = updated(expansion(first, kind, mode), new, jnp.asarray(precision))

    theta, cov = everything.posterior(precision, mean)
    twins.assert_close(mode + update.step, theta)
    twins.assert_close(update.posterior.covariance(), cov)
    assert update.jitter == 0
    at_once = expansion(everything, kind, theta)
    found = update.expansion
    twins.assert_close(found.log_likelihood, at_once.log_likelihood)
    twins.assert_close(found.gradient, at_once.gradient)
    assert found.num_data == at_once.num_data == len(everything.x)
    twins.assert_close(dense(found.structure, 8), dense(at_once.structure, 8))
    evidence = log_evidence(
        found.log_likelihood, found.structure, jnp.asarray(precision), theta - mean
    )
    twins.assert_close(evidence, everything.log_evidence(precision, mean))

    x = RNG.normal(size=(4, 3))
    params = everything.unravel(mode + np.asarray(update.step))
    objective, _ = restrict(exact.linear, params, exact.lk.Gaussian(0.3))
    f_mean, _, f_cov = linearized_moments(objective, update.posterior, jnp.asarray(x), full=True)
    design = everything.design(x)
    twins.assert_close(f_mean, (design @ theta).reshape(4, 2))
    design = design.reshape(4, 2, 8)
    twins.assert_close(f_cov, np.einsum("ncp,pq,ndq->ncd", design, cov, design))


def test_three_parts_in_any_order_are_one_pass(x64):
    everything, first, second = halves()
    precision, mean = exact.priors(8)
    theta, cov = everything.posterior(precision, mean)
    last = dataclasses.replace(second, x=second.x[:2], y=second.y[:2])
    middle = dataclasses.replace(second, x=second.x[2:], y=second.y[2:])
    for start, *parts in ((first, middle, last), (last, first, middle)):
        mode, _ = start.posterior(precision, mean)
        known = expansion(start, "full", mode)
        for part in parts:
            update = updated(known, expansion(part, "full", mode), jnp.asarray(precision))
            known, mode = update.expansion, mode + np.asarray(update.step)
        twins.assert_close(mode, theta)
        twins.assert_close(update.posterior.covariance(), cov)


def test_diagonal_step_is_that_of_independent_parameters(x64):
    everything, first, second = halves()
    precision, mean = exact.priors(8)
    mode, _ = first.posterior(precision, mean)
    old, new = (expansion(part, "diagonal", mode) for part in (first, second))
    update = updated(old, new, jnp.asarray(precision))
    total = np.diag(everything.curvature()) + precision
    twins.assert_close(update.step, -new.gradient / total)
    twins.assert_close(update.posterior.variance(), 1 / total)


# --- the sum of two curvatures --------------------------------------------------------------------


def other_data() -> twins.Problem:
    problem = twins.problem("mlp", "float64")
    return dataclasses.replace(problem, x=0.7 * problem.x[::-1] + 0.2)


def of_other_data(kind):
    return fit_structure(kind, curv.GGNOperator(*other_data().args), exact.RANK)


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_the_dense_matrix(kind, x64):
    structure = exact.fitted(kind, "float64").structure
    twins.assert_close(dense(structure, 31), exact.curvature(kind), rtol=1e-9)


@pytest.mark.parametrize("kind", ["full", "diagonal", "low_rank"])
def test_sum_is_that_of_the_dense_matrices(kind, x64):
    """Also for low rank, as the sum may have the ranks of both."""
    old, new = exact.fitted(kind, "float64").structure, of_other_data(kind)
    total = combine(old, new)
    twins.assert_close(dense(total, 31), dense(old, 31) + dense(new, 31))
    if kind == "low_rank":
        twins.assert_close(total.vectors @ total.vectors.T, np.eye(2 * exact.RANK))


def test_dual_keeps_rows_until_they_are_more_than_the_parameters(x64):
    """A dual curvature is added to a full matrix as a matrix."""
    problem, other = twins.problem("mlp", "float64"), other_data()
    few = dataclasses.replace(other, x=other.x[:3], y=other.y[:3])
    first, second, third = (
        fit_dual(curv.GGNOperator(*part.args)) for part in (problem, few, other)
    )
    matrices = [dense(part, 31) for part in (first, second, third)]
    total = combine(first, second)
    assert isinstance(total, DualStructure)
    assert total.design.shape == (30, 31)
    twins.assert_close(dense(total, 31), matrices[0] + matrices[1])
    total = combine(total, third)
    assert isinstance(total, FullStructure)
    twins.assert_close(total.matrix, sum(matrices))
    for pair in ((total, second), (second, total)):
        twins.assert_close(combine(*pair).matrix, sum(matrices) + matrices[1])


def truncated(matrix, rank) -> LowRankStructure:
    values, vectors = np.linalg.eigh(matrix)
    kept, zeros = jnp.asarray(vectors[:, -rank:].T), jnp.zeros(rank)
    leading = jnp.maximum(jnp.asarray(values[-rank:]), 0)
    return LowRankStructure(leading, kept, zeros, jnp.asarray(values[0]))


def test_low_rank_keeps_the_leading_eigenpairs_and_bounds_what_is_left_out(x64):
    """Both know 40 of P = 120 directions, and the sum keeps 50."""
    scale = 0.9 ** np.arange(120)
    roots = RNG.normal(size=(2, 120, 120)) * scale
    matrices = [root @ root.T for root in roots]
    old, new = (truncated(matrix, 40) for matrix in matrices)
    total = combine(old, new)
    assert total.vectors.shape == (50, 120)
    twins.assert_close(
        dense(total, 120), dense(truncated(dense(old, 120) + dense(new, 120), 50), 120)
    )
    kept, truth = np.asarray(total.vectors), sum(matrices)
    residuals = np.linalg.norm(kept @ truth - total.values[:, None] * kept, axis=1)
    assert np.all(residuals <= total.residuals)
    assert total.residuals.max() < 0.1 * total.values[0]
    assert np.linalg.eigvalsh(truth).min() >= total.smallest - 1e-10


def test_low_rank_of_the_whole_space_leaves_nothing_out(x64):
    whole = truncated(exact.curvature("full"), 31)
    total = combine(whole, whole)
    twins.assert_close(dense(total, 31), 2 * exact.curvature("full"))
    assert total.residuals.max() < 1e-10 * total.values[0]


@pytest.mark.parametrize("kind", ["kron", "ekfac"])
def test_kronecker_sum_is_the_diagonal_in_the_basis_of_the_partial_traces(kind, x64):
    old, new = exact.fitted(kind, "float64").structure, of_other_data(kind)
    exactly = dense(old, 31) + dense(new, 31)
    expected = np.zeros((31, 31))
    for bias, kernel, end in MLP_LAYERS:
        places = np.r_[kernel:end, bias:kernel]
        out = kernel - bias
        block = exactly[np.ix_(places, places)]
        split = block.reshape(len(places) // out, out, -1, out)
        factors = np.einsum("ioko->ik", split), np.einsum("ioip->op", split)
        basis = np.kron(*(np.linalg.eigh(factor)[1] for factor in factors))
        values = np.diag(basis.T @ block @ basis)
        expected[np.ix_(places, places)] = (basis * values) @ basis.T
    total = combine(old, new)
    assert total.name == "EKFAC"
    twins.assert_close(dense(total, 31), expected, rtol=1e-9)
    twins.assert_close(total.spectrum().values.sum(), np.trace(exactly))
    # In either of the old bases the diagonal of the sum is further from it.
    error = np.linalg.norm(dense(total, 31) - exactly)
    for part in (old, new):
        basis = dense(replace(part, blocks=tuple(map(with_distinct_values, part.blocks))), 31)
        vectors = np.linalg.eigh(basis)[1]
        values = np.diag(vectors.T @ exactly @ vectors)
        assert error < np.linalg.norm((vectors * values) @ vectors.T - exactly)


def with_distinct_values(block):
    """Give a block eigenvalues that tell its eigenvectors."""
    values = 1.0 + jnp.arange(block.values.size).reshape(block.values.shape)
    return replace(block, values=values * (1 + block.layout.weight.start))


@pytest.mark.parametrize("kind", ["kron", "ekfac"])
def test_kronecker_twice_the_same_is_twice_as_much(kind, x64):
    structure = exact.fitted(kind, "float64").structure
    twins.assert_close(dense(combine(structure, structure), 31), 2 * dense(structure, 31))


def test_structures_that_do_not_go_together_are_refused(x64):
    full, diagonal = FullStructure(jnp.eye(3)), DiagonalStructure(jnp.ones(3))
    with pytest.raises(TypeError, match="Full and Diagonal, expected two of the same kind"):
        combine(full, diagonal)
    with pytest.raises(ValueError, match=r"number of parameters \(3 and 2\), expected the same"):
        combine(diagonal, DiagonalStructure(jnp.ones(2)))
    kron = exact.fitted("kron", "float64").structure
    with pytest.raises(ValueError, match=r"differ in the layers, .*kind of inputs"):
        combine(kron, replace(kron, blocks=kron.blocks[:1]))


# --- the step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_step_solves_with_the_posterior_precision(kind, x64):
    la, gradient = exact.fitted(kind, "float64"), jnp.asarray(RNG.normal(size=31))
    step = jax.jit(newton_step)(la.posterior, gradient)
    matrix = exact.curvature(kind) + np.eye(31)
    twins.assert_close(step, -np.linalg.solve(matrix, gradient), rtol=1e-9)


def test_expansion_moves_as_the_quadratic_that_it_is(x64):
    matrix, step = np.cov(RNG.normal(size=(4, 9))), RNG.normal(size=4)
    gradient = RNG.normal(size=4)
    structure = FullStructure(jnp.asarray(matrix))
    known = Expansion(jnp.asarray(-2.0), jnp.asarray(gradient), structure, num_data=5)
    moved = jax.jit(Expansion.moved)(known, jnp.asarray(step))
    value = -2.0 - gradient @ step - 0.5 * step @ matrix @ step
    twins.assert_close(moved.log_likelihood, value)
    twins.assert_close(moved.gradient, gradient + matrix @ step)
    back = moved.moved(-jnp.asarray(step))
    twins.assert_close(back.log_likelihood, -2.0)
    twins.assert_close(back.gradient, gradient)


def test_single_precision_and_compiled():
    vectors = jnp.asarray([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    structure = LowRankStructure(jnp.asarray([3.0, 1.0]), vectors, jnp.zeros(2), jnp.zeros(()))
    known = Expansion(jnp.zeros(()), jnp.zeros(3), structure, num_data=5)
    new = replace(known, gradient=jnp.asarray([1.0, 2.0, 3.0]))
    update = jax.jit(updated)(known, new, jnp.full(3, 0.5))
    matrix = 2 * np.asarray(vectors).T @ np.diag([3.0, 1.0]) @ vectors + 0.5 * np.eye(3)
    assert update.step.dtype == jnp.float32
    twins.assert_close(update.step, -np.linalg.solve(matrix, [1.0, 2.0, 3.0]), dtype="float32")
