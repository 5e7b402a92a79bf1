"""Weights of examples: a weight k is k copies in every sum, a weight of zero is absence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit import curv
from laplace_kit.approx.dual import fit_dual
from laplace_kit.approx.posterior import factorise
from laplace_kit.weights import as_weights

KEY = jax.random.key(3)
WEIGHTS = np.asarray([2, 1, 0, 3, 1, 0, 2])
ROWS = np.repeat(np.arange(7), WEIGHTS)


# --- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[1, 0, 2], [True, False, True], [0.5, 0.0, 2.5]])
@pytest.mark.parametrize("convert", [list, np.asarray, jnp.asarray])
def test_weights_are_floating_point(values, convert, x64):
    found = as_weights(convert(values), 3)
    assert found.dtype == "float64"
    np.testing.assert_array_equal(found, np.asarray(values, float))


def test_weights_keep_half_precision_apart():
    assert as_weights(jnp.ones(2, jnp.bfloat16), 2).dtype == "float32"
    assert as_weights(np.ones(2, np.float16), 2).dtype == "float32"


def test_weights_of_the_host_need_no_program():
    with twins.compilations() as names:
        as_weights(np.arange(11.0), 11)
    assert names == []


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_the_first_wrong_weight_is_named(convert):
    with pytest.raises(ValueError, match=r"first -3\.0 at example 1 \(2 in all\)"):
        as_weights(convert([1.0, -3.0, jnp.nan]), 3)


# --- operators ------------------------------------------------------------------------------------


@functools.cache
def problem() -> twins.Problem:
    return twins.problem("mlp", "float64")


def per_example(fn) -> np.ndarray:
    """Return a derivative of each example's loss in the flat parameters."""
    flat, unravel = ravel_pytree(problem().params)

    def loss(theta, x, y):
        return problem().loss(problem().model_fn(unravel(theta), x[None])[0], y)

    each = jax.jit(jax.vmap(fn(loss), (None, 0, 0)))
    return np.asarray(each(flat, problem().x, problem().y))


KINDS = {
    "ggn": curv.GGNOperator,
    "hessian": curv.HessianOperator,
    "empirical_fisher": curv.EmpiricalFisherOperator,
    "mc_fisher": functools.partial(curv.MonteCarloFisherOperator, key=KEY, num_samples=2),
}


def operators(kind, weights):
    """Return the operator on weighted examples, in one chunk, in several, and over a stream."""
    p = problem()
    data = (p.x, p.y, weights)
    for batch_size in (None, 3):
        yield KINDS[kind](p.model_fn, p.params, data, p.likelihood, batch_size=batch_size)
    stream = [tuple(part[rows] for part in data) for rows in (slice(0, 4), slice(4, 7))]
    yield KINDS[kind](p.model_fn, p.params, stream, p.likelihood, batch_size=3)


@pytest.mark.parametrize("kind", KINDS)
def test_operators_weigh_examples_as_copies(kind, x64):
    p = problem()
    copies = KINDS[kind](p.model_fn, p.params, (p.x[ROWS], p.y[ROWS]), p.likelihood)
    expected, v = np.asarray(copies.to_dense()), p.vectors(1)[0]
    for operator in operators(kind, WEIGHTS):
        twins.assert_close(operator.to_dense(), expected, rtol=1e-12)
        twins.assert_close(operator.diagonal(), np.diag(expected), rtol=1e-12)
        twins.assert_close(operator.mv(v), expected @ np.asarray(v), rtol=1e-12)


def test_matrices_are_weighted_sums_of_those_of_examples(x64):
    weights = np.random.default_rng(0).exponential(size=7)
    gradients, hessians = per_example(jax.grad), per_example(jax.hessian)
    expected = {
        "empirical_fisher": np.einsum("n,np,nq->pq", weights, gradients, gradients),
        "hessian": np.einsum("n,npq->pq", weights, hessians),
    }
    for kind, matrix in expected.items():
        for operator in operators(kind, weights):
            twins.assert_close(operator.to_dense(), matrix, rtol=1e-10)


def test_products_of_a_batch_are_weighted(x64):
    p = problem()
    v = p.vectors(1)[0]
    batch, copies = (p.x, p.y, WEIGHTS), (p.x[ROWS], p.y[ROWS])
    for mv in (
        curv.ggn_mv,
        curv.hessian_mv,
        curv.empirical_fisher_mv,
        functools.partial(curv.mc_fisher_mv, key=KEY),
    ):
        found = jax.jit(lambda w, mv=mv: mv(p.model_fn, p.params, (*batch[:2], w), v, p.likelihood))
        expected = mv(p.model_fn, p.params, copies, v, p.likelihood)
        twins.assert_close(found(jnp.asarray(WEIGHTS, float)), expected, rtol=1e-12)


def test_finite_differences_are_weighted(x64):
    p = problem()
    operator = curv.FiniteDifferenceHessianOperator(
        p.model_fn, p.params, (p.x, p.y, WEIGHTS), p.likelihood
    )
    exact = curv.HessianOperator(p.model_fn, p.params, (p.x[ROWS], p.y[ROWS]), p.likelihood)
    v = p.vectors(1)[0]
    twins.assert_close(operator.mv(v), exact.mv(v), rtol=1e-7)


def test_gradients_of_examples_are_weighted(x64):
    p = problem()
    args = p.model_fn, p.params, (p.x, p.y, WEIGHTS), p.likelihood
    expected = WEIGHTS[:, None] * per_example(jax.grad)
    found = curv.per_example_gradients(*args)
    flat = jax.vmap(lambda g: ravel_pytree(g)[0])(found)
    twins.assert_close(flat, expected, rtol=1e-10)
    norms = curv.per_example_gradient_norms(*args)
    twins.assert_close(norms, np.linalg.norm(expected, axis=1), rtol=1e-10)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_kronecker_factors_are_means_over_weights(sharing, x64):
    p = twins.problem("convnet", "float64")
    weights = np.arange(len(p.y)) % 3
    rows = np.repeat(np.arange(len(p.y)), weights)
    factors = [
        curv.kronecker_factors(
            curv.GGNOperator(p.model_fn, p.params, data, p.likelihood), weight_sharing=sharing
        )
        for data in ((p.x, p.y, weights), (p.x[rows], p.y[rows]))
    ]
    jax.tree.map(functools.partial(twins.assert_close, rtol=1e-11), *factors)


def test_the_design_matrix_is_that_of_the_weighted_sum(x64):
    ggn = next(operators("ggn", WEIGHTS))
    rows = curv.design_matrix(ggn).rows.to_dense().reshape(-1, ggn.shape[0])
    twins.assert_close(rows.T @ rows, ggn.to_dense(), rtol=1e-11)


def test_losses_along_directions_are_weighted(x64):
    p = problem()
    found, expected = (
        curv.loss_along(p.model_fn, p.params, data, p.likelihood, p.vectors(1), np.arange(2.0))
        for data in ((p.x, p.y, WEIGHTS), (p.x[ROWS], p.y[ROWS]))
    )
    twins.assert_close(found.losses, expected.losses, rtol=1e-12)


# --- posteriors -----------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
NUM, NUM_CLASSES = 12, 3
X, LABELS = RNG.normal(size=(NUM, 3)), RNG.integers(0, NUM_CLASSES, NUM)
NUMBERS = RNG.normal(size=(NUM, NUM_CLASSES))
COUNTS = np.asarray([1, 0, 2, 1, 3, 0, 1, 1, 2, 1, 0, 1])
COPIES = np.repeat(np.arange(NUM), COUNTS)
PARAMS = {
    "hidden": {"kernel": 0.5 * RNG.normal(size=(3, 4)), "bias": np.zeros(4)},
    "out": {"kernel": 0.5 * RNG.normal(size=(4, NUM_CLASSES)), "bias": np.zeros(NUM_CLASSES)},
}


def model_fn(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def fit(data, likelihood="categorical", **options):
    return lk.fit(model_fn, PARAMS, data, likelihood=likelihood, key=KEY, **options)


def assert_same(found, expected, rtol=1e-8):
    assert found.num_data == expected.num_data
    twins.assert_close(found.log_likelihood, expected.log_likelihood, rtol=1e-10)
    twins.assert_close(found.gradient, expected.gradient, rtol=1e-9)
    covariances = (la.posterior.covariance() for la in (found, expected))
    twins.assert_close(*covariances, rtol=rtol)
    evidences = (la.log_marginal_likelihood() for la in (found, expected))
    twins.assert_close(*evidences, rtol=rtol)


ALL = [
    {"structure": structure, "curvature": curvature, "subset": subset}
    for structure in ("full", "diagonal", "kron", "ekfac", "low_rank")
    for curvature in ("ggn", "empirical_fisher", "mc_fisher")
    for subset in (None, "last_layer")
]
FAST = [
    {"structure": "full"},
    {"structure": "full", "subset": "last_layer"},
    {"structure": "low_rank"},
    {"structure": "diagonal", "subset": "last_layer"},
    {"structure": "kron", "subset": "last_layer"},
    {"structure": "ekfac", "curvature": "mc_fisher"},
]


@pytest.mark.parametrize(
    "options", FAST + [pytest.param(o, marks=pytest.mark.slow) for o in ALL], ids=str
)
def test_posteriors_of_weights_are_those_of_copies(options, x64):
    expected = fit((X[COPIES], LABELS[COPIES]), **options)
    assert_same(fit((X, LABELS), weights=COUNTS, **options), expected)
    parts = [slice(0, 5), slice(5, 10), slice(10, 12)]
    assert_same(fit([(X[s], LABELS[s], COUNTS[s]) for s in parts], **options), expected)


def test_the_dual_form_has_the_same_weights(x64):
    operator = next(operators("ggn", WEIGHTS))
    posterior, _ = factorise(fit_dual(operator), jnp.full(operator.shape[0], 0.7))
    expected = np.linalg.inv(np.asarray(operator.to_dense()) + 0.7 * np.eye(operator.shape[0]))
    twins.assert_close(posterior.covariance(), expected, rtol=1e-9)


@pytest.mark.parametrize("curvature", ["ggn", "hessian", "mc_fisher"])
def test_class_weights_are_weights_of_the_examples_of_a_class(curvature, x64):
    class_weights = np.asarray([0.5, 3.0, 1.5])
    options = {"structure": "full", "curvature": curvature, "prior_precision": 50.0}
    found = fit((X, LABELS), lk.Categorical(class_weights), **options)
    expected = fit((X, LABELS), weights=class_weights[LABELS], **options)
    twins.assert_close(found.log_likelihood, expected.log_likelihood, rtol=1e-10)
    twins.assert_close(found.gradient, expected.gradient, rtol=1e-9)
    twins.assert_close(found.posterior.covariance(), expected.posterior.covariance(), rtol=1e-9)
    metrics = (la.with_prior(70.0).evaluate((X, LABELS)) for la in (found, expected))
    assert next(metrics) == pytest.approx(next(metrics), rel=1e-8)


def test_padding_of_weight_zero_is_absence(x64):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    padded = np.concatenate([x, np.zeros((4, 3))]), np.concatenate([y, np.zeros(4, int)])
    options = {"structure": "kron", "batch_size": 16}
    found = fit(padded, weights=np.arange(64) < 60, **options)
    assert found.num_data == 60
    assert_same(found, fit((x, y), **options))


def test_what_holds_without_weights_is_an_integer():
    assert type(fit((X, LABELS), structure="diagonal").num_data) is int
    weighted = fit((X, LABELS), structure="diagonal", weights=np.full(NUM, 0.25))
    assert weighted.num_data == 3.0
    assert weighted.card()["training examples"] == "3, by their weights"


def test_examples_of_weight_zero_have_to_be_valid():
    x = np.where(COUNTS[:, None] == 0, np.nan, X).astype(np.float32)
    with pytest.raises(ValueError, match=r"inputs that are not finite.*first at example 1 \(3"):
        fit((x, LABELS, COUNTS), structure="diagonal")
    labels = np.where(COUNTS == 0, -1, LABELS)
    with pytest.raises(ValueError, match=r"out of range.*at example 1 with the target -1"):
        fit((X, labels, COUNTS), structure="diagonal")


def test_a_stream_whose_weights_are_all_zero_is_refused():
    with pytest.raises(ValueError, match="weights that are all zero"):
        fit([(X, LABELS, np.zeros(NUM)), (X, LABELS, np.zeros(NUM))], structure="diagonal")


# --- what is made of a posterior ------------------------------------------------------------------

AT_A_BOUND = pytest.mark.filterwarnings("ignore:The held-out loss is smallest at a bound")


def test_the_evidence_and_the_temperature_are_those_of_copies(x64):
    found = fit((X, LABELS), weights=COUNTS, structure="diagonal").tune()
    expected = fit((X[COPIES], LABELS[COPIES]), structure="diagonal").tune()
    twins.assert_close(found.prior_precision, expected.prior_precision, rtol=1e-6)
    # draws differ from copy to copy, as each row has its own
    assert float(found.temperature) == pytest.approx(float(expected.temperature), rel=0.1)


def test_the_noise_is_that_of_the_weighted_residuals(x64):
    weights = np.random.default_rng(2).exponential(size=NUM)
    la = fit((X, NUMBERS, weights), "gaussian", structure="diagonal").tune()
    squares = (NUMBERS - np.asarray(model_fn(PARAMS, X))) ** 2
    expected = np.sqrt(np.average(squares.mean(axis=1), weights=weights))
    assert float(la.likelihood.noise_std) == pytest.approx(expected, rel=1e-6)


@AT_A_BOUND
def test_folds_are_weighted(x64):
    """Copies lie in the fold of their example: rows of the same number modulo that of folds."""
    weights = np.repeat([2, 1], NUM // 2)
    rows = np.concatenate([np.arange(NUM), np.arange(NUM // 2)])
    data, copies = (X, LABELS, weights), (X[rows], LABELS[rows])
    options = {"method": "cross_validation", "num_folds": 3, "bounds": (1e-2, 1e2)}
    found = fit(data, structure="diagonal").tune(data=data, **options)
    expected = fit(copies, structure="diagonal").tune(data=copies, **options)
    twins.assert_close(found.tuning.objective, expected.tuning.objective, rtol=1e-8)
    twins.assert_close(found.prior_precision, expected.prior_precision, rtol=1e-6)


@AT_A_BOUND
def test_a_fold_without_weight_is_not_counted(x64):
    weights = (np.arange(NUM) % 3 != 1).astype(float)
    la = fit((X, LABELS, weights), structure="diagonal")
    options = {"method": "cross_validation", "num_folds": 3, "bounds": (1e-1, 1e1)}
    assert np.isfinite(la.tune(data=(X, LABELS, weights), **options).tuning.objective).all()


@AT_A_BOUND
def test_held_out_data_are_weighted(x64):
    la = fit((X, LABELS), structure="diagonal")
    found = la.tune(data=(X, LABELS, COUNTS), temperature=True)
    expected = la.tune(data=(X[COPIES], LABELS[COPIES]), temperature=True)
    twins.assert_close(found.tuning.objective, expected.tuning.objective, rtol=1e-8)
    twins.assert_close(found.prior_precision, expected.prior_precision, rtol=1e-6)
    twins.assert_close(found.temperature, expected.temperature, rtol=1e-6)


def test_new_data_bring_their_weights(x64):
    la = fit((X, LABELS), structure="full")
    found = la.update((X, LABELS, COUNTS))
    expected = la.update((X[COPIES], LABELS[COPIES]))
    assert_same(found, expected)
    np.testing.assert_array_equal(found.examples.weights, [*np.ones(NUM), *COUNTS])


def squares(f, y):
    return jnp.sum((f - y) ** 2)


@pytest.mark.parametrize("likelihood", ["categorical", "masked", "gaussian", "poisson", "loss"])
def test_metrics_are_weighted(likelihood, x64):
    y = {"categorical": LABELS, "masked": (NUMBERS, NUMBERS > -1), "gaussian": NUMBERS}
    y |= {"poisson": np.floor(3 * abs(NUMBERS)), "loss": NUMBERS}
    kinds = {"masked": lk.Masked(lk.Gaussian()), "loss": lk.FromLoss(squares)}
    la = fit((X, y[likelihood]), kinds.get(likelihood, likelihood), structure="diagonal")
    found = la.evaluate((X, y[likelihood], COUNTS))
    copies = jax.tree.map(lambda a: a[COPIES], (X, y[likelihood]))
    assert found == pytest.approx(la.evaluate(copies), rel=1e-8)
    assert found != pytest.approx(la.evaluate((X, y[likelihood])), rel=1e-4)


def test_whole_weights_of_a_report_are_repeated_examples(tmp_path, x64):
    la = fit((X, LABELS), structure="diagonal")
    shifted = {"wide": (2 * X, LABELS, COUNTS)}
    found = la.report((X, LABELS, COUNTS), tmp_path / "a", shifted=shifted).metrics
    copies = (2 * X)[COPIES], LABELS[COPIES]
    expected = la.report((X[COPIES], LABELS[COPIES]), tmp_path / "b", shifted={"wide": copies})
    for of in (lambda m: m["laplace"], lambda m: m["shifted"]["wide"]["map"]):
        assert of(found) == pytest.approx(of(expected.metrics), rel=1e-5)
    ours, theirs = (
        of["bootstrap"]["test"]["intervals"]["laplace"] for of in (found, expected.metrics)
    )
    for key, ends in ours.items():
        assert ends == pytest.approx(theirs[key], rel=1e-5, abs=1e-7)


def test_a_report_leaves_out_examples_of_weight_zero(tmp_path):
    la, kept = fit((X, LABELS), structure="diagonal"), np.arange(NUM) % 3 > 0
    found = la.report((X, LABELS, kept.astype(float)), tmp_path / "weights")
    expected = la.report((X[kept], LABELS[kept]), tmp_path / "rows")
    # The two predict batches of different shapes, which XLA may round differently.
    assert jax.tree.structure(found.metrics) == jax.tree.structure(expected.metrics)
    for ours, theirs in zip(*map(jax.tree.leaves, (found.metrics, expected.metrics)), strict=True):
        either = theirs if isinstance(theirs, str) else pytest.approx(theirs, rel=1e-6, abs=1e-7)
        assert ours == either


def test_a_file_keeps_the_total_weight(tmp_path):
    la = fit((X, LABELS), structure="diagonal", weights=np.full(NUM, 0.3))
    la.save(tmp_path / "file")
    assert lk.load(tmp_path / "file", model_fn).num_data == la.num_data


def test_other_weights_compile_nothing():
    rng = np.random.default_rng(4)
    for _ in range(2):
        weights = rng.exponential(size=NUM)
        with twins.compilations() as names:
            la = fit((X, LABELS), structure="kron", weights=weights).tune()
            la.predict(X)
    assert names == []
