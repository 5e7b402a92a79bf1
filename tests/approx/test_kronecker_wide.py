"""Kronecker posteriors of layers whose sides are too wide for matrices: diagonal sides."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit import curv
from laplace_kit.approx.kronecker import fit_kronecker
from laplace_kit.approx.posterior import factorise
from laplace_kit.approx.update import combine


def two_layers(params, x):
    hidden = jnp.tanh(x @ params["in"]["w"] + params["in"]["b"])
    return hidden @ params["out"]["w"] + params["out"]["b"]


def wide_problem():
    """A layer of 7 inputs and 3 outputs, with the bias 8 x 3, and one of 4 x 6."""
    rng = np.random.default_rng(3)
    sizes = {"in": (7, 3), "out": (3, 6)}
    params = {k: {"w": rng.normal(size=s), "b": rng.normal(size=s[1])} for k, s in sizes.items()}
    y = jnp.asarray(rng.integers(0, 6, 9))
    return jax.tree.map(jnp.asarray, params), jnp.asarray(rng.normal(size=(9, 7))), y


def with_wide_sides(operator, structure, max_width):
    """Return the dense matrix that the structure is to be, block by block, by NumPy."""
    num = operator.shape[0]
    total, ggn = np.zeros((num, num)), np.asarray(operator.to_dense())
    pairs = zip(structure.blocks, curv.kronecker_factors(operator), strict=True)
    for block, factors in pairs:
        places = np.asarray(block.layout.to_matrix(jnp.arange(float(num)))).ravel().astype(int)
        sides = [np.asarray(factor[0]) for factor in (factors.inputs, factors.gradients)]
        sides = [np.diag(np.diag(a)) if len(a) > max_width else a for a in sides]
        matrix = np.kron(*sides)
        if structure.corrected:
            basis = np.kron(
                *(np.eye(len(a)) if len(a) > max_width else np.linalg.eigh(a)[1] for a in sides)
            )
            values = np.diag(basis.T @ ggn[np.ix_(places, places)] @ basis)
            matrix = (basis * values) @ basis.T
        total[np.ix_(places, places)] = matrix
    return total


@pytest.mark.parametrize("subset", [None, "last_layer"])
@pytest.mark.parametrize(
    ("max_width", "corrected"), [(0, False), (4, False), (7, False), (8, False), (4, True)]
)
def test_wide_sides_are_diagonal_and_the_posterior_is_that_of_the_matrix(
    max_width, corrected, subset, x64
):
    params, x, y = wide_problem()
    prior = {"in": {"w": 0.5, "b": 2.0}, "out": {"w": 0.3, "b": 0.9}}
    spec = lk.Kronecker(corrected=corrected, max_width=max_width, wide="diagonal")
    kept = prior if subset is None else {"in": {"w": None, "b": None}, "out": prior["out"]}
    la = lk.fit(two_layers, params, (x, y), likelihood="categorical", structure=spec, subset=subset)
    la = la.with_prior(kept)
    operator = curv.GGNOperator(la.objective.model_fn, la.objective.params, (x, y), la.likelihood)
    matrix = with_wide_sides(operator, la.structure, max_width)
    precision = np.asarray(la.expand(kept))
    twins.assert_close(jax.vmap(la.structure.mv)(jnp.eye(len(matrix))), matrix)
    covariance = np.linalg.inv(matrix + np.diag(precision))
    twins.assert_close(la.posterior.covariance(), covariance)
    twins.assert_close(la.posterior.variance(), np.diag(covariance))
    _, unravel = ravel_pytree(la.objective.params)
    flat = ravel_pytree(la.objective.params)[0]
    jacobian = jax.jacobian(lambda t: la.objective.model_fn(unravel(t), x))(flat)
    expected = np.einsum("ncp,pq,ndq->ncd", jacobian, covariance, jacobian)
    twins.assert_close(la.predict(x).f_cov, expected)
    expected = exact.evidence(
        la.expansion.log_likelihood, matrix, precision, np.asarray(la.deviation)
    )
    twins.assert_close(la.log_marginal_likelihood(), expected)
    if max_width == 8:  # the widest side, with the bias
        blocks = la.structure.blocks
        assert all(block.left is not None and block.right is not None for block in blocks)


def test_outputs_that_are_not_mixed_have_priors_of_their_own(x64):
    params, x, y = wide_problem()
    structure = fit_kronecker(
        curv.GGNOperator(two_layers, params, (x, y), "categorical"), max_width=4
    )
    matrix = np.asarray(jax.vmap(structure.mv)(jnp.eye(48)))
    precision = jax.tree.map(jnp.ones_like, params)
    precision["out"]["w"] = jnp.broadcast_to(jnp.arange(1.0, 7.0), (3, 6))  # by class
    precision["out"]["b"] = jnp.arange(2.0, 8.0)
    precision["in"]["b"] = jnp.full(3, 5.0)
    flat = ravel_pytree(precision)[0]
    assert structure.for_prior(flat).dense == ()
    posterior, _ = factorise(structure, flat)
    covariance = np.linalg.inv(matrix + np.diag(flat))
    twins.assert_close(posterior.covariance(), covariance)
    log_det = structure.for_prior(flat).log_det(flat)
    twins.assert_close(log_det, np.linalg.slogdet(matrix + np.diag(flat))[1])


def test_curvatures_whose_sides_are_diagonal_add_up(x64):
    params, x, y = wide_problem()
    operator = curv.GGNOperator(two_layers, params, (x, y), "categorical")
    wide, narrow = (fit_kronecker(operator, max_width=w) for w in (0, None))
    exactly = sum(np.asarray(jax.vmap(s.mv)(jnp.eye(48))) for s in (wide, narrow))
    found = np.asarray(jax.vmap(combine(wide, narrow).mv)(jnp.eye(48)))
    twins.assert_close(found, np.diag(np.diag(exactly)))
    again = np.asarray(jax.vmap(combine(wide, wide).mv)(jnp.eye(48)))
    twins.assert_close(again, 2 * np.asarray(jax.vmap(wide.mv)(jnp.eye(48))))


def test_a_width_is_a_whole_number():
    with pytest.raises(ValueError, match=r"max_width=-1, expected a whole number of inputs or out"):
        lk.Kronecker(max_width=-1)


def test_a_head_of_many_classes_holds_no_matrix_of_pairs_of_classes():
    """A factor of 4,000 classes is 61 MiB, the weights of this head 47 KiB."""
    params = {"in": {"w": jnp.ones((3, 3)), "b": jnp.zeros(3)}}
    params["out"] = {"w": jnp.ones((3, 4000)), "b": jnp.zeros(4000)}
    data = (jnp.ones((8, 3)), jnp.zeros(8, int))
    for subset in (None, "last_layer"):
        la = lk.fit(
            two_layers,
            params,
            data,
            likelihood="categorical",
            structure="kron",
            curvature=lk.MonteCarloFisher(jax.random.key(0)) if subset is None else "ggn",
            subset=subset,
            memory_limit=16 * 2**20,
        )
        spec = lk.Kronecker(corrected=False, max_width=4)
        assert la.choice.spec == spec
        assert "1 of " in la.choice.because
        assert la.record.coverage["out/w"].diagonal == ("outputs",)
        lines = str(la.record.coverage).splitlines()
        assert lines[0].endswith("diagonal factors")
        assert lines[-1].endswith("  outputs")
        assert la.structure.blocks[-1].right is None
