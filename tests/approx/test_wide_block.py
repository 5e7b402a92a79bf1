"""Layers with a wide side of low rank: their matrices, posteriors, priors, sums and files."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit import curv
from laplace_kit.approx import wide_block
from laplace_kit.approx.kronecker import KroneckerStructure, fit_kronecker
from laplace_kit.approx.posterior import factorise
from laplace_kit.approx.update import combine
from laplace_kit.approx.wide_block import WideBlock, WidePosteriorBlock

RNG = np.random.default_rng(5)
WIDTH, THIN, OUT = 9, 2, 3
RANK = 3


def adapter(params, x):
    """One adapter: wide inputs, and with them a bias, then wide outputs; and a narrow head."""
    hidden = x @ params["a"] + params["a_bias"]
    return jnp.tanh(x + jnp.tanh(hidden) @ params["b"]) @ params["head"]


def problem(seed=5, num=11):
    rng, own = np.random.default_rng(seed), np.random.default_rng(5)
    shapes = {"a": (WIDTH, THIN), "a_bias": (THIN,), "b": (THIN, WIDTH), "head": (WIDTH, OUT)}
    params = {name: twins.array(0.6 * own.normal(size=shape)) for name, shape in shapes.items()}
    scales = 2.0 ** -np.arange(WIDTH)  # a spectrum that falls
    x = twins.array(rng.normal(size=(num, WIDTH)) * scales)
    return params, x, twins.array(rng.integers(0, OUT, num))


def fit(rank=RANK, corrected=False, max_width=4, data=None, params=None, **options):
    own, x, y = problem()
    spec = lk.Kronecker(corrected=corrected, max_width=max_width, rank=rank)
    return lk.fit(
        adapter,
        own if params is None else params,
        (x, y) if data is None else data,
        likelihood="categorical",
        structure=spec,
        **options,
    )


def dense(structure) -> np.ndarray:
    """Return the matrix that the arrays of the blocks say, by NumPy."""
    num = sum(block.layout.size for block in structure.blocks)
    total = np.zeros((num, num))
    for block in structure.blocks:
        assert isinstance(block, WideBlock)
        _, width, out = block.layout.shape
        narrow = out if block.axis == 1 else width
        basis = np.eye(narrow) if block.basis is None else np.asarray(block.basis[0])
        u, s, r = (np.asarray(part[0]) for part in (block.vectors, block.values, block.rest))
        matrix = np.zeros((width * out,) * 2)
        for o in range(narrow):
            wide, thin = (u * s[:, o]) @ u.T + np.diag(r[:, o]), np.outer(basis[:, o], basis[:, o])
            matrix += np.kron(wide, thin) if block.axis == 1 else np.kron(thin, wide)
        places = np.asarray(block.layout.to_matrix(jnp.arange(float(num)))).ravel().astype(int)
        total[np.ix_(places, places)] = matrix
    return total


def operator_of(la, data):
    return curv.GGNOperator(la.objective.model_fn, la.objective.params, data, la.likelihood)


# --- the curvature --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("corrected", [False, True], ids=["kron", "ekfac"])
@pytest.mark.parametrize("subset", [None, "last_layer"])
def test_of_full_rank_it_is_the_structure_of_matrices(corrected, subset, x64):
    _, x, y = problem(num=40)
    wide = fit(WIDTH + 1, corrected, data=(x, y), subset=subset)
    full = fit(RANK, corrected, max_width=None, data=(x, y), subset=subset)
    assert all(isinstance(block, WideBlock) for block in wide.structure.blocks)
    assert not any(isinstance(block, WideBlock) for block in full.structure.blocks)
    eye = jnp.eye(wide.posterior.size)
    found, expected = (jax.vmap(la.structure.mv)(eye) for la in (wide, full))
    np.testing.assert_allclose(found, expected, atol=1e-8 * float(jnp.abs(expected).max()))
    np.testing.assert_allclose(
        wide.log_marginal_likelihood(), full.log_marginal_likelihood(), rtol=1e-8
    )


@pytest.mark.parametrize("subset", [None, "last_layer"])
def test_of_low_rank_a_factor_is_below_the_matrix_and_has_its_diagonal(subset, x64):
    data = problem(num=40)[1:]
    la = fit(subset=subset, data=data)
    operator = operator_of(la, data)
    exactly = curv.kronecker_factors(operator)
    found = curv.kronecker_factors(operator, max_width=4, rank=RANK)
    sides = 0
    for whole, part in zip(exactly, found, strict=True):
        for a, b in ((whole.inputs, part.inputs), (whole.gradients, part.gradients)):
            if isinstance(b, jax.Array):
                np.testing.assert_allclose(a, b, atol=1e-12)
                continue
            sides += 1
            a, matrix = np.asarray(a[0]), np.asarray(b.to_dense()[0])
            assert b.vectors.shape == (1, len(a), RANK)
            twins.assert_close(b.vectors[0].T @ b.vectors[0], np.eye(RANK))
            twins.assert_close(np.diag(matrix), np.diag(a))
            low_rank = matrix - np.diag(b.rest[0])
            assert np.linalg.eigvalsh(a - low_rank).min() > -1e-10 * np.abs(a).max()
            best = np.linalg.eigvalsh(a)[:-RANK].sum()  # what the best of this rank leaves
            # Expected at most 1 + R / (R - 1) times that, with 2 R test vectors.
            assert np.trace(a - low_rank) < 2.5 * best + 1e-10
    assert sides == (3 if subset is None else 1)


def test_corrected_values_are_the_moments_inside_and_outside_of_the_span(x64):
    for subset in (None, "last_layer"):
        data = problem(num=40)[1:]
        la = fit(corrected=True, subset=subset, data=data)
        ggn = np.asarray(operator_of(la, data).to_dense())
        num = len(ggn)
        for block in la.structure.blocks:
            _, width, out = block.layout.shape
            places = np.asarray(block.layout.to_matrix(jnp.arange(float(num)))).ravel().astype(int)
            own = ggn[np.ix_(places, places)]
            vectors, basis = np.asarray(block.vectors[0]), np.asarray(block.basis[0])
            outside = np.eye(len(vectors)) - vectors @ vectors.T
            for o in range(basis.shape[1]):
                q = basis[:, [o]]
                lift = np.kron(np.eye(width), q) if block.axis == 1 else np.kron(q, np.eye(out))
                along = lift.T @ own @ lift
                found = np.append(block.values[0, :, o], block.rest[0, :, o])
                parts = vectors.T @ along @ vectors, outside @ along @ outside
                expected = np.concatenate([np.diag(part) for part in parts])
                np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(own).max())


@pytest.mark.parametrize("subset", [None, "last_layer"])
def test_sketches_add_up_over_chunks_and_streams(subset, x64):
    _params, x, y = problem()
    whole = fit(subset=subset, corrected=True)
    chunked = fit(subset=subset, corrected=True, batch_size=2)
    streamed = fit(subset=subset, corrected=True, data=twins.batches(x, y, 4, 4, 3))
    for other in (chunked, streamed):
        twins.assert_close(dense(other.structure), dense(whole.structure), rtol=1e-9)


# --- the posterior --------------------------------------------------------------------------------


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("max_width", "corrected", "subset"),
    [(4, False, None), (4, True, "last_layer"), (0, True, None)],
)
def test_the_posterior_is_that_of_the_matrix(max_width, corrected, subset, x64):
    la = fit(corrected=corrected, subset=subset, max_width=max_width)
    prior = {"a": 0.5, "a_bias": 2.0, "b": 0.3, "head": 0.9}
    if subset is not None:
        prior = {"a": None, "a_bias": None, "b": None, "head": 0.9}
    la = la.with_prior(prior)
    matrix, precision = dense(la.structure), np.asarray(la.expand(prior))
    eye = jnp.eye(len(matrix))
    twins.assert_close(jax.vmap(la.structure.mv)(eye), matrix)
    covariance = np.linalg.inv(matrix + np.diag(precision))
    twins.assert_close(la.posterior.covariance(), covariance)
    twins.assert_close(la.posterior.variance(), np.diag(covariance))
    root = np.asarray(la.posterior.scale_mv(eye)).T
    twins.assert_close(root @ root.T, covariance)
    twins.assert_close(la.posterior.scale_rmv(eye).T, root.T)

    x = problem(seed=8, num=6)[1]
    flat, unravel = ravel_pytree(la.objective.params)
    jacobian = jax.jacobian(lambda t: la.objective.model_fn(unravel(t), x))(flat)
    f_cov = np.einsum("ncp,pq,mdq->ncmd", jacobian, covariance, jacobian)
    twins.assert_close(la.predict(x).f_cov, np.einsum("ncnd->ncd", f_cov))
    twins.assert_close(la.predict(x, joint=True).joint_cov, f_cov)
    twins.assert_close(la.predict(x, covariance="diagonal").f_var, np.einsum("ncnc->nc", f_cov))
    evidence = exact.evidence(
        la.expansion.log_likelihood, matrix, precision, np.asarray(la.deviation)
    )
    twins.assert_close(la.log_marginal_likelihood(), evidence)
    tempered = la.with_temperature(2.0)
    twins.assert_close(tempered.posterior.covariance(), 2 * covariance)


def test_draws_have_the_covariance_that_is_reported():
    la = fit(corrected=True)
    num = 20_000
    draws = np.asarray(la.posterior.sample(jax.random.key(0), num), float)
    expected = np.asarray(la.posterior.covariance(), float)
    scale = np.sqrt(np.diag(expected))
    error = np.abs(draws.T @ draws / num - expected) / np.outer(scale, scale)
    assert error.max() < 5.5 / np.sqrt(num)


def test_the_evidence_of_one_precision_is_that_of_the_eigenvalues(x64):
    la = fit(corrected=True)
    values = np.linalg.eigvalsh(dense(la.structure))
    spectrum = la.structure.spectrum()
    for delta in (1e-3, 1.0, 1e3):
        found = [
            fn(jnp.asarray(delta))
            for fn in (
                spectrum.log_det,
                spectrum.effective_parameters,
                spectrum.undetermined_parameters,
            )
        ]
        shares = values / (values + delta)
        expected = np.log(values + delta).sum(), shares.sum(), (1 - shares).sum()
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert spectrum.size == len(values)
    assert 0 <= spectrum.smallest <= values.min() + 1e-12
    assert spectrum.largest >= values.max() - 1e-12


@pytest.mark.parametrize("per_leaf", [False, True])
def test_tuning_finds_the_best_precision_of_the_matrix(per_leaf, x64):
    la = fit().tune(per_leaf=per_leaf)
    matrix, deviation = dense(la.structure), np.asarray(la.deviation)
    best = np.asarray(la.expand(la.prior.precision))

    def evidence(precision):
        return exact.evidence(float(la.log_likelihood), matrix, precision, deviation)

    top = evidence(best)
    np.testing.assert_allclose(la.log_marginal_likelihood(), top)
    groups = np.asarray(
        ravel_pytree(
            {k: jnp.full(v.shape, float(i)) for i, (k, v) in enumerate(sorted(la.params.items()))}
        )[0]
    )
    steps = [np.ones(len(best))] if not per_leaf else [groups == i for i in range(4)]
    for step in steps:
        for factor in (0.9, 1.1):
            assert evidence(best * np.where(step, factor, 1.0)) < top


# --- priors ---------------------------------------------------------------------------------------


def test_entries_along_the_wide_side_may_have_priors_of_their_own(x64):
    la = fit()
    prior = jax.tree.map(jnp.ones_like, la.params)
    prior["a"] = jnp.broadcast_to(jnp.arange(1.0, WIDTH + 1)[:, None], (WIDTH, THIN))
    prior["b"] = jnp.broadcast_to(jnp.arange(2.0, WIDTH + 2), (THIN, WIDTH))
    prior["a_bias"] = jnp.full(THIN, 5.0)
    flat = ravel_pytree(prior)[0]
    assert la.structure.for_prior(flat).dense == ()
    posterior, _ = factorise(la.structure, flat)
    assert {type(block) for block in posterior.blocks} == {WidePosteriorBlock}
    covariance = np.linalg.inv(dense(la.structure) + np.diag(flat))
    twins.assert_close(posterior.covariance(), covariance)


def test_entries_along_the_narrow_side_are_multiplied_out_or_refused(x64, monkeypatch):
    la = fit()
    flat = jnp.asarray(np.exp(RNG.normal(size=la.posterior.size)))
    matrix = dense(la.structure)
    covariance = np.linalg.inv(matrix + np.diag(flat))
    twins.assert_close(la.with_prior(flat).posterior.covariance(), covariance)
    deviation = np.asarray(la.deviation)
    evidence = jax.jit(jax.value_and_grad(lambda d: la.log_marginal_likelihood(d)))
    value, gradient = evidence(flat)
    expected = exact.evidence(float(la.log_likelihood), matrix, np.asarray(flat), deviation)
    twins.assert_close(value, expected)
    twins.assert_close(gradient, 0.5 * (1 / flat - deviation**2 - np.diag(covariance)))

    monkeypatch.setattr(wide_block, "MOST_ENTRIES", 10)
    with pytest.raises(ValueError, match="differ within a layer") as error:
        la.with_prior(flat)
    assert "one value per leaf" in str(error.value)
    # A prior that leaves share has derivatives in every entry.
    same = jnp.full(la.posterior.size, 0.7)
    _, gradient = jax.value_and_grad(lambda d: la.log_marginal_likelihood(d))(same)
    own = np.diag(np.linalg.inv(matrix + 0.7 * np.eye(len(matrix))))
    twins.assert_close(gradient, 0.5 * (1 / 0.7 - deviation**2 - own))


# --- sums, files, words ---------------------------------------------------------------------------


def test_the_sum_of_two_keeps_the_trace_and_is_exact_for_one_twice(x64):
    params, x, y = problem()
    halves = [
        curv.GGNOperator(adapter, params, (x[part], y[part]), "categorical")
        for part in (slice(None, 6), slice(6, None))
    ]
    one, other = (fit_kronecker(half, max_width=4, rank=RANK) for half in halves)
    total = combine(one, other)
    assert isinstance(total, KroneckerStructure)
    assert total.corrected
    matrices = dense(one) + dense(other)
    twins.assert_close(np.trace(dense(total)), np.trace(matrices))
    assert np.linalg.eigvalsh(dense(total)).min() > -1e-10
    twice = dense(combine(one, one))
    twins.assert_close(twice, 2 * dense(one))


def test_of_full_rank_the_sum_is_that_of_matrices(x64):
    params, x, y = problem(num=40)
    halves = [
        curv.GGNOperator(adapter, params, (x[part], y[part]), "categorical")
        for part in (slice(None, 20), slice(20, None))
    ]
    options = {"max_width": 4, "rank": WIDTH + 1}, {}
    wide, full = (combine(*(fit_kronecker(half, **o) for half in halves)) for o in options)
    twins.assert_close(dense(wide), jax.vmap(full.mv)(jnp.eye(65)), rtol=1e-8)


def test_curvatures_of_other_forms_are_not_added(x64):
    params, x, y = problem()
    operator = curv.GGNOperator(adapter, params, (x, y), "categorical")
    low_rank, full = (fit_kronecker(operator, max_width=width, rank=RANK) for width in (4, None))
    with pytest.raises(ValueError, match="differ in the forms of their factors"):
        combine(low_rank, full)


def test_updates_and_files_keep_it(x64, tmp_path):
    la = fit(corrected=True)
    newer = la.update(problem(seed=9)[1:])
    assert all(isinstance(block, WideBlock) for block in newer.structure.blocks)
    newer.save(tmp_path / "la.npz")
    loaded = lk.load(tmp_path / "la.npz", adapter)
    assert loaded.choice.spec == lk.Kronecker(max_width=4, rank=RANK)
    x = problem(seed=8, num=6)[1]
    np.testing.assert_array_equal(loaded.predict(x).f_cov, newer.predict(x).f_cov)


def test_coverage_and_choice_name_the_sides(x64):
    la = fit()
    assert {leaf.path: leaf.low_rank for leaf in la.coverage} == {
        "a": ("inputs",), "a_bias": ("inputs",), "b": ("outputs",), "head": ("inputs",)
    }  # fmt: skip
    assert not any(leaf.diagonal for leaf in la.coverage)
    lines = str(la.coverage).splitlines()
    assert lines[0].endswith("low-rank factors")
    assert lines[1].endswith("inputs")
    remark = "3 of 6 factors, of more than 4 rows, are of rank 3 plus a diagonal"
    assert la.choice.because == f"it was asked for; {remark}"
    both = fit(max_width=0)
    assert both.coverage["b"].low_rank == ("inputs",)
    assert both.coverage["b"].diagonal == ("outputs",)
    assert both.choice.because.endswith("are of rank 3 plus a diagonal, and 3 are diagonal")


def test_outputs_with_a_bias_of_their_own_stay_diagonal(x64):
    """A bias may have another prior precision, which the narrow side would mix."""
    params = {"w": twins.array(RNG.normal(size=(2, 6))), "b": twins.array(RNG.normal(size=6))}
    data = twins.array(RNG.normal(size=(9, 2))), twins.array(RNG.integers(0, 6, 9))
    la = lk.fit(
        lambda params, x: x @ params["w"] + params["b"],
        params,
        data,
        likelihood="categorical",
        structure=lk.Kronecker(max_width=4),
        prior_precision={"w": 1.0, "b": 3.0},
    )
    assert la.coverage["w"].diagonal == ("outputs",)
    assert not la.coverage["w"].low_rank


@pytest.mark.parametrize(
    ("options", "words"),
    [({"rank": 0}, "rank=0, expected a whole number of eigenvectors"), ({"wide": "thin"}, "wide=")],
)
def test_options_are_checked(options, words):
    with exact.as_users_call(), pytest.raises(ValueError, match=words):
        lk.Kronecker(**options)


# --- many adapters --------------------------------------------------------------------------------


def test_layers_that_are_one_have_the_posterior_of_single_ones(x64, monkeypatch):
    """Several adapters at several positions, processed together or each by itself."""
    width, num = 7, 3

    def normal(*shape):
        return twins.array(0.7 * RNG.normal(size=shape))

    layers = [{"a": normal(width, 2), "b": normal(2, width)} for _ in range(num)]
    params = {"layers": layers, "head": normal(width, 3)}
    data = normal(6, 4, width), twins.array(RNG.integers(0, 3, 6))

    def fitted():
        def model_fn(params, x):  # a new function, whose plan is not known
            for layer in params["layers"]:
                x = x + jnp.tanh(x @ layer["a"] @ layer["b"])
            return x.mean(axis=1) @ params["head"]

        spec = lk.Kronecker(max_width=4, rank=2)
        subset = lk.approx.layers("a", "b")
        return lk.fit(
            model_fn, params, data, likelihood="categorical", structure=spec, subset=subset
        )

    single = fitted()
    monkeypatch.setattr("laplace_kit.curv.capture.stacking.LAYERS_WORTH_STACKING", num)
    stacked = fitted()
    assert [len(la.structure.blocks) for la in (single, stacked)] == [2 * num, 2]
    assert all(isinstance(block, WideBlock) for block in stacked.structure.blocks)
    twins.assert_close(stacked.posterior.covariance(), single.posterior.covariance(), rtol=1e-8)
    twins.assert_close(stacked.predict(data[0]).f_cov, single.predict(data[0]).f_cov, rtol=1e-8)
    evidence = single.log_marginal_likelihood()
    twins.assert_close(stacked.log_marginal_likelihood(), evidence, rtol=1e-9)
