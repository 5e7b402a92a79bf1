"""From a model and data to a posterior: every way to the same answer."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import KINDS
from jax.flatten_util import ravel_pytree

import laplace_kit as lk

N = 7


def linear(params, x):
    return x @ params["weight"]


def mlp(dtype="float64"):
    return twins.problem("mlp", dtype)


def fit(problem, data=None, **options) -> lk.Laplace:
    data = (problem.x, problem.y) if data is None else data
    options = {"likelihood": problem.likelihood, "structure": "full"} | options
    return lk.fit(problem.model_fn, problem.params, data, **options)


def leaves_close(first, second, rtol=1e-9):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        scale = max(np.abs(np.asarray(b, np.float64)).max(), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * scale)


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_with_a_ragged_last_batch_equals_data_in_memory(kind, x64):
    problem, whole = mlp(), exact.fitted(kind, "float64")
    rank = exact.RANK if kind == "low_rank" else None
    data = twins.batches(problem.x, problem.y, 3, 3, 1)
    found = fit(problem, data, structure=kind, rank=rank)
    assert found.num_data == whole.num_data == N
    x = problem.x
    leaves_close(found.log_marginal_likelihood(), whole.log_marginal_likelihood())
    leaves_close(found.posterior.variance(), whole.posterior.variance(), rtol=1e-7)
    leaves_close(found.predict(x), whole.predict(x), rtol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_does_not_show(batch_size, x64):
    found, whole = fit(mlp(), batch_size=batch_size), exact.fitted("full", "float64")
    leaves_close(found.structure, whole.structure)
    leaves_close(found.log_likelihood, whole.log_likelihood)
    assert found.choice.batch_size == batch_size


def test_dictionaries_of_inputs_and_numpy_arrays(x64):
    problem = twins.problem("two_inputs", "float64")
    found = fit(problem, jax.tree.map(np.asarray, (problem.x, problem.y)))
    twins.assert_close(found.structure.matrix, twins.dense(twins.ggn, "two_inputs"))
    assert found.predict(problem.x).probs.shape == (6, 2)


def test_binary_outputs_without_an_axis_of_their_own(x64):
    rng = np.random.default_rng(3)
    x, y, weight = rng.normal(size=(N, 3)), rng.integers(0, 2, N), rng.normal(size=3)
    la = lk.fit(linear, {"weight": jnp.asarray(weight)}, (x, y), likelihood="bernoulli")
    p = 1 / (1 + np.exp(-x @ weight))
    matrix = (x.T * (p * (1 - p))) @ x
    twins.assert_close(la.structure.matrix, matrix)
    cov = np.linalg.inv(matrix + np.eye(3))
    twins.assert_close(la.predict(x).f_var, np.einsum("np,pq,nq->n", x, cov, x))
    log_likelihood = np.sum(np.log(np.where(y == 1, p, 1 - p)))
    expected = exact.evidence(log_likelihood, matrix, np.ones(3), weight)
    twins.assert_close(la.log_marginal_likelihood(), expected)


# --- curvature ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("curvature", "kind", "definition"),
    [
        ("ggn", "full", twins.ggn),
        ("hessian", "full", twins.hessian),
        ("hessian", "diagonal", twins.hessian),
        ("hessian", "low_rank", twins.hessian),
        ("empirical_fisher", "full", twins.empirical_fisher),
        ("empirical_fisher", "diagonal", twins.empirical_fisher),
        ("mc_fisher", "full", None),
        ("mc_fisher", "diagonal", None),
    ],
)
def test_every_curvature(curvature, kind, definition, x64):
    problem = mlp()
    options = {
        "curvature": curvature,
        "prior_precision": 50.0,
        "rank": 31,
        "key": jax.random.key(0),
    }
    la = fit(problem, structure=kind, **options)
    if definition is None:  # drawn labels: a matrix of its own, checked where it is made
        matrix = np.asarray(fit(problem, **options).structure.matrix)
    else:
        matrix = twins.dense(definition, "mlp")
    if kind == "diagonal":
        matrix = np.diag(np.diag(matrix))
    if kind == "low_rank":  # positive curvature alone
        values, vectors = np.linalg.eigh(matrix)
        matrix = (vectors * np.maximum(values, 0)) @ vectors.T
    cov = np.linalg.inv(matrix + 50.0 * np.eye(31))
    twins.assert_close(la.posterior.variance(), np.diag(cov), rtol=1e-8)
    twins.assert_close(la.structure.log_det(jnp.full(31, 50.0)), -exact.log_det(cov), rtol=1e-8)


def test_an_indefinite_hessian_is_refused_with_its_eigenvalue(x64):
    lowest = np.linalg.eigvalsh(twins.dense(twins.hessian, "mlp"))[0]
    assert lowest < -1
    for kind in ("full", "low_rank"):
        options = {"structure": kind, "curvature": "hessian", "prior_precision": 0.5}
        with pytest.raises(ValueError, match="indefinite curvature") as error:
            fit(mlp(), rank=31, **options)
        assert f"most negative eigenvalue is {lowest:.4g}" in str(error.value)
        assert f"raise prior_precision above {-lowest:.4g}" in str(error.value)
        assert "curvature='ggn'" in str(error.value)


# --- names and objects ----------------------------------------------------------------------------

NAMED = {
    "auto": ({"structure": "auto"}, {"structure": lk.Auto()}),
    "full": ({"structure": "full"}, {"structure": lk.Full()}),
    "primal": ({"structure": "full"}, {"structure": lk.Full(form="primal")}),
    "ekfac": (
        {"structure": "ekfac", "weight_sharing": "reduce"},
        {"structure": lk.Kronecker(weight_sharing="reduce")},
    ),
    "kron": ({"structure": "kron"}, {"structure": lk.Kronecker(corrected=False)}),
    "low_rank": (
        {"structure": "low_rank", "rank": 4, "key": jax.random.key(2)},
        {"structure": lk.LowRank(rank=4), "key": jax.random.key(2)},
    ),
    "diagonal": ({"structure": "diagonal"}, {"structure": lk.Diagonal()}),
    "ggn": ({"curvature": "ggn"}, {"curvature": lk.GGN()}),
    "hessian": ({"curvature": "hessian"}, {"curvature": lk.Hessian()}),
    "empirical_fisher": (
        {"curvature": "empirical_fisher"},
        {"curvature": lk.EmpiricalFisher()},
    ),
    "mc_fisher": (
        {"curvature": "mc_fisher", "num_samples": 2, "key": jax.random.key(2)},
        {"curvature": lk.MonteCarloFisher(jax.random.key(2), num_samples=2)},
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_an_object_is_its_name(name):
    """On a sequence, so that the sharing of its weights shows."""
    problem = twins.problem("several_axes")
    options = {"structure": "diagonal", "prior_precision": 200.0}
    named, made = (fit(problem, **options | own) for own in NAMED[name])
    assert jax.tree.structure(named) == jax.tree.structure(made)
    jax.tree.map(np.testing.assert_array_equal, named.structure, made.structure)
    assert named.choice.spec == made.choice.spec
    assert named.choice.curvature_spec == made.choice.curvature_spec


def test_two_keys_are_for_labels_and_for_the_structure(x64):
    """The key of the curvature draws the labels; that of `fit` is left to Lanczos."""
    labels = lk.MonteCarloFisher(jax.random.key(2))
    first, second = (
        fit(mlp(), structure=lk.LowRank(3), curvature=labels, key=key, prior_precision=9.0)
        for key in (None, jax.random.key(5))
    )
    twins.assert_close(first.structure.values, second.structure.values, rtol=1e-8)


def test_a_posterior_with_a_key_passes_through_a_compiled_function():
    problem = mlp("float32")
    la, other = (
        fit(problem, structure="diagonal", curvature=lk.MonteCarloFisher(jax.random.key(seed)))
        for seed in (0, 1)
    )
    compiled = jax.jit(lambda la: la.with_prior(2.0).posterior.variance())
    twins.assert_close(compiled(la), la.with_prior(2.0).posterior.variance(), dtype="float32")
    other.posterior.variance(), la.with_prior(2.0)
    with twins.compilations() as names:
        compiled(other)
    assert not names


# --- subsets and frozen leaves --------------------------------------------------------------------

OUT = {"hidden": [{"bias": False, "kernel": False}], "out": {"bias": True, "kernel": True}}
ELEMENTS = {
    "hidden": [{"bias": np.arange(4) % 2 == 0, "kernel": False}],
    "out": {"bias": True, "kernel": np.arange(12).reshape(4, 3) > 5},
}
SUBSETS = {
    "predicate": (lambda path: path.startswith("out/"), np.arange(31) >= 16),
    "groups": ({"hidden": False, "out": True}, np.arange(31) >= 16),
    "leaves": (OUT, np.arange(31) >= 16),
    "elements": (
        ELEMENTS,
        np.concatenate([np.arange(4) % 2 == 0, np.zeros(12), np.ones(3), np.arange(12) > 5]) > 0,
    ),
    "indices": (np.array([30, 2, 17, 9, 3]), np.isin(np.arange(31), [2, 3, 9, 17, 30])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBSETS)
def test_a_subset_is_the_dense_submatrix(name, x64):
    problem, (subset, chosen) = mlp(), SUBSETS[name]
    la = fit(problem, subset=subset, prior_precision=2.0)
    matrix = twins.dense(twins.ggn, "mlp")[np.ix_(chosen, chosen)]
    cov = np.linalg.inv(matrix + 2.0 * np.eye(chosen.sum()))
    twins.assert_close(la.structure.matrix, matrix)
    twins.assert_close(la.posterior.covariance(), cov, rtol=1e-9)
    jac = twins.dense(twins.jacobian, "mlp")[..., chosen]
    twins.assert_close(
        la.predict(problem.x).f_cov, np.einsum("ncp,pq,ndq->ncd", jac, cov, jac), rtol=1e-9
    )
    theta = np.asarray(twins.flat(problem)[0])
    log_likelihood = -float(twins.total_loss(problem)(twins.flat(problem)[0]))
    expected = exact.evidence(log_likelihood, matrix, np.full(chosen.sum(), 2.0), theta[chosen])
    twins.assert_close(la.log_marginal_likelihood(), expected)
    jax.tree.map(np.testing.assert_array_equal, la.params, problem.params)


def test_flat_booleans_are_the_indices_where_they_are_true(x64):
    problem, (indices, chosen) = mlp(), SUBSETS["indices"]
    found, expected = (fit(problem, subset=s, prior_precision=2.0) for s in (chosen, indices))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("kind", ["full", "ekfac"])
def test_the_last_layer_is_the_subset_of_that_name(kind, x64):
    """Exactly: the same program on the same features."""
    problem = mlp()
    found = fit(problem, subset="last_layer", structure=kind)
    named = fit(problem, subset=lambda path: path.startswith("out/"), structure=kind)
    assert found.choice.subset == "the last layer"
    assert named.choice.subset == "a subset"
    jax.tree.map(
        np.testing.assert_array_equal,
        *((la.structure, la.posterior, la.predict(problem.x)) for la in (found, named)),
    )
    evidence = found.log_marginal_likelihood()
    np.testing.assert_array_equal(evidence, named.log_marginal_likelihood())
    jax.tree.map(np.testing.assert_array_equal, found.params, problem.params)


@pytest.mark.parametrize("name", ["predicate", "elements", "indices"])
def test_what_is_frozen_never_moves(name, x64):
    problem, (subset, chosen) = mlp(), SUBSETS[name]
    draws = fit(problem, subset=subset).sample(jax.random.key(0), 4)
    flat = np.concatenate([leaf.reshape(4, -1) for leaf in jax.tree.leaves(draws)], axis=1)
    theta = np.asarray(ravel_pytree(problem.params)[0])
    np.testing.assert_array_equal(flat[:, ~chosen], np.tile(theta[~chosen], (4, 1)))
    assert np.all(flat[:, chosen] != theta[chosen])


@pytest.mark.parametrize("name", ["predicate", "elements"])
@pytest.mark.parametrize("form", ["groups", "each"])
def test_a_prior_for_all_parameters_together_with_a_subset(name, form, x64):
    problem, (subset, chosen) = mlp(), SUBSETS[name]
    groups = {"hidden": 3.0, "out": {"bias": 0.5, "kernel": 7.0}}
    flat = np.repeat([3.0, 0.5, 7.0], [16, 3, 12])
    if form == "each":
        flat = np.linspace(1.0, 4.0, 31)
        groups = ravel_pytree(problem.params)[1](jnp.asarray(flat))
    la = fit(problem, subset=subset, prior_precision=groups)
    matrix = twins.dense(twins.ggn, "mlp")[np.ix_(chosen, chosen)] + np.diag(flat[chosen])
    twins.assert_close(la.posterior.covariance(), np.linalg.inv(matrix), rtol=1e-9)


def test_integer_leaves_are_frozen(x64):
    problem = twins.problem("with_integers", "float64")
    la = fit(problem)
    twins.assert_close(la.structure.matrix, twins.dense(twins.ggn, "with_integers"))
    draws = la.sample(jax.random.key(0), 3)
    np.testing.assert_array_equal(draws["columns"], np.tile(problem.params["columns"], (3, 1)))
    assert draws["columns"].dtype == problem.params["columns"].dtype
    jax.tree.map(np.testing.assert_array_equal, la.params, problem.params)


def test_a_predicate_sees_paths():
    seen = []

    def predicate(path):
        seen.append(path)
        return "kernel" in path

    fit(mlp("float32"), subset=predicate, structure="diagonal")
    assert list(dict.fromkeys(seen)) == [
        "hidden/0/bias",
        "hidden/0/kernel",
        "out/bias",
        "out/kernel",
    ]


@pytest.mark.slow
def test_empty_leaves_are_frozen(x64):
    """A layer without inputs has no weights to be uncertain about."""
    problem = mlp()
    params = {**problem.params, "none": jnp.zeros((0, 3))}
    la = lk.fit(
        lambda p, x: twins.mlp(p, x) + x[:, :0] @ p["none"],
        params,
        (problem.x, problem.y),
        likelihood="categorical",
        structure="kron",
    )
    leaves_close(la.predict(problem.x), exact.fitted("kron", "float64").predict(problem.x))
    assert la.sample(jax.random.key(0), 2)["none"].shape == (2, 0, 3)


# --- several devices ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["Explicit", "Auto"])
def test_sharded_examples_give_the_same_posterior(axes):
    twins.run_on_eight_devices(
        f"""
        import jax, numpy as np, twins
        import laplace_kit as lk
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.{axes},))
        for name in ("mlp", "convnet"):
            problem = twins.problem(name)
            x, y = np.concatenate([problem.x] * 8), np.concatenate([problem.y] * 8)
            spread = jax.device_put((x, y), NamedSharding(mesh, PartitionSpec("data")))
            params = jax.device_put(problem.params, NamedSharding(mesh, PartitionSpec()))
            for structure in ("full", "kron", "diagonal"):
                options = dict(likelihood=problem.likelihood, structure=structure)
                one = lk.fit(problem.model_fn, problem.params, (x, y), **options).tune()
                many = lk.fit(problem.model_fn, params, spread, **options).tune()
                predictive = many.predict(spread[0])
                assert len(predictive.f_var.devices()) == 8
                for found, expected in (
                    (predictive.f_var, one.predict(x).f_var),
                    (many.log_marginal_likelihood(), one.log_marginal_likelihood()),
                ):
                    np.testing.assert_allclose(found, expected, rtol=2e-3)
        """
    )
