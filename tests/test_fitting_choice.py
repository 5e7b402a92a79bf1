"""What `fit` chooses by size and memory, and what it says of it."""

import re

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

import laplace_kit as lk
from laplace_kit.approx.spec import Sizes
from laplace_kit.eval.predictive import Prediction


def mlp(dtype="float64"):
    return twins.problem("mlp", dtype)


def fit(problem, data=None, **options) -> lk.Laplace:
    data = (problem.x, problem.y) if data is None else data
    options = {"likelihood": problem.likelihood, "structure": "full"} | options
    return lk.fit(problem.model_fn, problem.params, data, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [("full", "Full"), ("ekfac", "EKFAC"), ("diagonal", "Diagonal")]
)
def test_auto_takes_the_richest_that_fits_the_memory(kind, name):
    factors = 4**2 + 4**2 + 5**2 + 3**2
    spec = {"full": lk.Full("primal"), "ekfac": lk.Kronecker(), "diagonal": lk.Diagonal()}[kind]
    limit = spec.bytes(Sizes(31, 4, factors, 3))
    limit = max(limit, 1100)  # one example's rows in one direction
    everything = {"hidden": True, "out": True}  # as it is asked for, "auto" keeps to it
    la = fit(mlp("float32"), structure="auto", rank=1, memory_limit=limit, subset=everything)
    assert la.structure.name == name
    matrix = exact.curvature(kind)  # found in chunks of few examples
    values = np.diag(matrix) if kind == "diagonal" else np.linalg.eigvalsh(matrix)
    found = la.structure.spectrum().values
    found, values = (found, values) if kind == "diagonal" else (np.sort(found), np.sort(values))
    twins.assert_close(found, values, dtype="float32")


def wide(num=40) -> twins.Problem:
    """A network of 179 parameters, of which 15 belong to the last layer."""
    rng = np.random.default_rng(11)

    def normal(*shape):
        return jnp.asarray(0.3 * rng.normal(size=shape), jnp.float32)

    params = {
        "hidden": [{"kernel": normal(40, 4), "bias": normal(4)}],
        "out": {"kernel": normal(4, 3), "bias": normal(3)},
    }
    x, y = normal(num, 40), jnp.asarray(rng.integers(0, 3, num))
    return twins.Problem(twins.mlp, params, x, y, lk.Categorical(), twins.categorical_loss)


# Of wide(): three matrices of 179 rows, four kernels of 120, EKFAC of 41 and 4, 5 and 3 rows.
FULL, DUAL, EKFAC = 12 * 179**2, 290_000, 4 * (4 * (41**2 + 4**2 + 5**2 + 3**2) + 6 * 179)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "structure", "form", "because"),
    [
        (FULL, "full", "primal", r"exact, by its primal matrix of 179 rows, at about"),
        (DUAL, "full", "dual", r"exact, by its dual matrix of 120 rows, at about"),
        (EKFAC, "ekfac", None, r"the richest that fits, at about .*; full would need about"),
    ],
)
def test_auto_goes_by_the_memory_limit_and_says_why(limit, structure, form, because):
    la = fit(wide(), structure="auto", memory_limit=limit)
    assert (la.choice.structure, la.choice.form) == (structure, form)
    assert la.choice.subset == "all of them"
    assert re.match(because, la.choice.because)
    assert la.card()["chosen because"] == la.choice.because


@pytest.mark.parametrize("stream", [False, True])
def test_auto_takes_the_last_layer_where_nothing_rich_fits_all(stream):
    """The posterior equals that of `subset="last_layer"`."""
    problem = wide()
    data = twins.batches(problem.x, problem.y, 20, 20) if stream else None
    la = fit(problem, data, structure="auto", memory_limit=EKFAC - 1)
    assert (la.choice.structure, la.choice.form) == ("full", "primal")
    assert la.choice.subset == "the last layer"
    reason = r"exact, by its primal matrix of 15 rows, at about 2\.637 KiB of 31\.24 KiB"
    assert re.fullmatch(f"{reason}; of all 179 parameters only diagonal fits", la.choice.because)
    asked = fit(problem, data, subset="last_layer", memory_limit=EKFAC - 1)
    assert asked.choice.because.startswith("it was asked for")
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(la), jax.tree.leaves(asked))


def test_auto_takes_what_fits_of_all_parameters_where_there_is_no_last_layer():
    """Here the two uses of the weight, in both layers."""
    problem = wide()
    weight = jnp.full((40, 40), 0.1)

    def tied(params, x):
        return jnp.tanh(x @ params["weight"]) @ params["weight"]

    with pytest.raises(ValueError, match="expected a last layer"):
        lk.fit(
            tied, {"weight": weight}, (problem.x, problem.x), likelihood="gaussian",
            subset="last_layer",
        )  # fmt: skip
    la = lk.fit(
        tied,
        {"weight": weight},
        (problem.x, problem.x),
        likelihood="gaussian",
        memory_limit=lk.Diagonal().bytes(Sizes(1600, 4)),
    )
    assert (la.choice.structure, la.choice.subset) == ("diagonal", "all of them")


def test_a_structure_that_cannot_fit_names_the_estimate_and_what_would():
    message = (
        r"structure='full' for P=179 parameters, which needs about 375\.5 KiB, expected at most"
    )
    with pytest.raises(ValueError, match=message) as error:
        fit(wide(num=50), rank=2, memory_limit=200_000)
    assert "memory limit of 195.3 KiB" in str(error.value)
    fitting = "structure='ekfac' or structure='low_rank' with rank=47 or structure='diagonal'"
    assert f": {fitting}. Or" in str(error.value)


def test_defaults_are_full_at_this_size():
    la = lk.fit(*mlp("float32").args[:3], likelihood="categorical")
    assert type(la.structure).__name__ == "FullStructure"
    assert la.prediction == Prediction()
    assert la.temperature == 1
    assert la.tuning is None
    assert float(la.prior_precision) == 1
    assert not la.prior_mean.any()


@pytest.mark.slow
def test_half_precision_parameters_are_fitted_in_single():
    problem = mlp("float32")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), problem.params)
    x = problem.x.astype(jnp.bfloat16)
    la = lk.fit(
        problem.model_fn, half, (x, problem.y), likelihood="categorical", prior_precision=0.1
    )
    assert la.posterior.dtype == la.prior_mean.dtype == la.log_likelihood.dtype == "float32"
    np.testing.assert_array_equal(la.expand(la.prior_precision), np.full(31, 0.1, np.float32))
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
