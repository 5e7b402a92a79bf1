"""From a model and data to a posterior: every road to the same answer, every wrong turn refused."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from exact import KINDS
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit.approx.choice import Sizes, structure_bytes

N = 7


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
    assert found.batch_size == batch_size


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
}


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


@pytest.mark.parametrize("name", ["predicate", "elements"])
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
    assert seen == ["hidden/0/bias", "hidden/0/kernel", "out/bias", "out/kernel"]


def test_empty_leaves_are_frozen(x64):
    """As of a layer without inputs: there is nothing about them to be uncertain of."""
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


# --- structure and memory -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"), [("full", "Full"), ("ekfac", "EKFAC"), ("diagonal", "Diagonal")]
)
def test_auto_takes_the_richest_that_fits_the_memory(kind, name):
    factors = 4**2 + 4**2 + 5**2 + 3**2
    limit = structure_bytes(kind, Sizes(31, 1, factors, 4))
    limit = max(limit, 1100)  # one example's rows in one direction
    la = fit(mlp("float32"), structure="auto", rank=1, memory_limit=limit)
    assert la.structure.name == name
    matrix = exact.curvature(kind)  # found in chunks of few examples
    values = np.diag(matrix) if kind == "diagonal" else np.linalg.eigvalsh(matrix)
    found = la.structure.spectrum().values
    found, values = (found, values) if kind == "diagonal" else (np.sort(found), np.sort(values))
    twins.assert_close(found, values, dtype="float32")


def test_defaults_are_full_at_this_size():
    la = lk.fit(*mlp("float32").args[:3], likelihood="categorical")
    assert type(la.structure).__name__ == "FullStructure"
    assert float(la.prior_precision) == 1
    assert not la.prior_mean.any()


def test_half_precision_parameters_are_fitted_in_single():
    problem = mlp("float32")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.params)
    x = problem.x.astype(jnp.bfloat16)
    la = lk.fit(
        problem.model_fn, half, (x, problem.y), likelihood="categorical", prior_precision=0.1
    )
    assert la.posterior.dtype == la.prior_mean.dtype == la.log_likelihood.dtype == "float32"
    np.testing.assert_array_equal(la._expand(la.prior_precision), np.full(31, 0.1, np.float32))
    assert jax.tree.leaves(la.sample(jax.random.key(0), 2))[0].dtype == jnp.bfloat16
    reference = exact.fitted("full", "float32").with_prior(0.1)
    found, expected = la.predict(x).f_var, reference.predict(problem.x).f_var
    twins.assert_close(found.astype(jnp.float32), expected, rtol=0.1)


@pytest.mark.parametrize("stream", [False, True])
def test_progress_is_shown_on_request_and_changes_nothing(stream, capsys):
    problem = mlp("float32")
    data = twins.batches(problem.x, problem.y, 4, 3) if stream else (problem.x, problem.y)
    quiet = fit(problem, data, structure="diagonal")
    assert capsys.readouterr() == ("", "")
    shown = fit(problem, data, structure="diagonal", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "fitting the diagonal ggn" in err
    jax.tree.map(np.testing.assert_array_equal, shown.structure, quiet.structure)


# --- what is refused ------------------------------------------------------------------------------


def linear(params, x):
    return x @ params["weight"]


def refused(error, message, **changes):
    """Fit a small regression with something changed and expect an error that says so."""
    arguments = {"params": {"weight": jnp.ones((3, 1))}, "x": np.ones((N, 3), np.float32)}
    arguments |= {"y": np.zeros((N, 1), np.float32), "likelihood": "gaussian"} | changes
    params, x, y = (arguments.pop(name) for name in ("params", "x", "y"))
    data = arguments.pop("data", (x, y))
    with exact.as_users_call(), pytest.raises(error, match=message) as caught:
        lk.fit(linear, params, data, **arguments)
    return str(caught.value)


def test_targets_without_the_output_axis():
    message = (
        r"Gaussian: found targets of shape \(7,\) for outputs \(7, 1\), expected the same shape"
    )
    assert "y.reshape((7, 1))" in refused(ValueError, message, y=np.zeros(N))


def test_labels_out_of_range_name_the_example_and_the_batch():
    params = {"weight": jnp.ones((3, 2))}
    y, x = np.asarray([0, 1, 0, 1, 2, 0, 1]), np.ones((N, 3), np.float32)
    changes = {"params": params, "likelihood": "categorical"}
    message = r"targets out of range; expected integer labels from 0 to C - 1.*first at example 4 "
    refused(ValueError, message, y=y, **changes)
    message = r"targets out of range.*first at example 1 of batch 1"
    refused(ValueError, message, data=twins.batches(x, y, 3, 3, 1), **changes)


def test_numbers_that_are_not_finite():
    x, bad = np.ones((N, 3), np.float32), np.ones((N, 3), np.float32)
    bad[2, 1] = np.nan
    refused(ValueError, r"inputs that are not finite.*first at example 2.*clean or drop", x=bad)
    y = np.where(np.arange(N) == 5, np.inf, 0.0)[:, None]
    refused(ValueError, r"targets that are not finite.*first at example 5", y=y)
    params = {"weight": jnp.full((3, 1), jnp.nan)}
    refused(
        ValueError, r"3 values that are not finite in the parameters at 'weight'", params=params
    )
    params = {"weight": jnp.full((3, 1), 3e38)}
    refused(ValueError, r"model outputs that are not finite; expected finite", params=params, x=x)


def test_data_that_are_no_data():
    refused(
        ValueError,
        r"empty data \(shapes \(0, 3\), \(0, 1\)\)",
        x=np.ones((0, 3)),
        y=np.ones((0, 1)),
    )
    refused(ValueError, r"empty data: no batch came", data=[])
    one_shot = ((np.ones((2, 3)), np.ones((2, 1))) for _ in range(2))
    refused(TypeError, r"one-shot iterator \(generator\).*wrap it as list\(data\)", data=one_shot)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"structure": "diagnal"},
            r"structure='diagnal', expected one of.*Did you mean 'diagonal'",
        ),
        ({"curvature": "gnn"}, r"curvature='gnn', expected one of.*Did you mean 'ggn'"),
        ({"likelihood": "gausian"}, r"likelihood='gausian', expected.*Did you mean 'gaussian'"),
        ({"curvature": "mc_fisher"}, r"no key, expected one.*pass key=jax\.random\.key\(0\)"),
        ({"subset": "weights"}, r"subset='weights', expected None, a predicate.*leaves are weight"),
        ({"subset": lambda path: False}, r"no free floating-point parameter.*leaves are weight"),
        ({"subset": {"bias": True}}, r"`subset` has the structure.*whose leaves are weight"),
        ({"prior_precision": 0.0}, r"prior_precision with values from 0 to 0, expected positive"),
        ({"prior_precision": {"weight": -1.0}}, r"values from -1 to -1, expected positive"),
        ({"prior_precision": np.ones(2)}, r"`prior_precision` of shape \(2,\), expected a scalar"),
        ({"prior_mean": {"bias": 0.0}}, r"`prior_mean` with the structure.*leaves are weight"),
        ({"rank": 0}, r"rank=0, expected a number from 1 to P=3"),
        ({"rank": 4, "structure": "low_rank"}, r"rank=4, expected a number from 1 to P=3"),
        ({"batch_size": 0}, r"batch_size=0, expected a positive number"),
        ({"memory_limit": -1}, r"memory_limit=-1, expected a positive number of bytes"),
        ({"params": {"weight": jnp.ones((3, 1), int)}}, r"no free floating-point parameter"),
    ],
)
def test_options_that_cannot_be_right(changes, message):
    refused(ValueError, message, **changes)


def test_a_misspelt_keyword_is_refused_by_python_itself():
    with pytest.raises(TypeError, match="struture"):
        lk.fit(*mlp("float32").args[:3], likelihood="categorical", struture="full")


def test_a_structure_that_cannot_fit_names_the_estimate_and_what_would():
    message = (
        r"structure='full' for P=31 parameters, which needs about 11\.26 KiB, expected at most"
    )
    with pytest.raises(ValueError, match=message) as error:
        fit(mlp("float32"), rank=2, memory_limit=10_000)
    assert "memory limit of 9.766 KiB" in str(error.value)
    fitting = " or ".join(
        f"structure={name!r}" for name in ("ekfac", "kron", "low_rank", "diagonal")
    )
    assert f"what would fit: {fitting}" in str(error.value)


def test_a_model_of_single_examples():
    with pytest.raises(ValueError, match=r"expected a leading axis.*lk\.model\.batched\(fn\)"):
        lk.fit(
            lambda params, x: jnp.sum(x * params),
            jnp.ones(3),
            (np.ones((N, 3), np.float32), np.zeros((N, 1), np.float32)),
            likelihood="gaussian",
        )


def test_nothing_is_computed_before_the_options_are_checked():
    def untouched(params, x):
        raise AssertionError("the model was called")

    for changes in ({"structure": "diagnal"}, {"rank": 0}, {"prior_precision": -1.0}):
        options = {"likelihood": "gaussian"} | changes
        with exact.as_users_call(), pytest.raises(ValueError, match="Found"):
            lk.fit(untouched, jnp.ones(3), (np.ones((N, 3)), np.ones((N, 1))), **options)
