"""What only Kronecker posteriors have: layers, exact cases, priors that differ within a layer."""

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

import laplace_kit as lk
from laplace_kit import curv
from laplace_kit.approx import eigenblock
from laplace_kit.approx.dense_block import DenseBlock
from laplace_kit.approx.eigenblock import Eigenblock, PosteriorBlock
from laplace_kit.approx.kronecker import KroneckerStructure, fit_kronecker
from laplace_kit.approx.posterior import factorise
from laplace_kit.approx.update import combine
from laplace_kit.curv.capture.layout import Layout, Move, Slot, to_flat

RNG = np.random.default_rng(0)


def normal(*shape):
    return twins.array(RNG.normal(size=shape))


# --- the exact posterior --------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["kron", "ekfac"])
@pytest.mark.parametrize("prior", [0.7, {"bias": 4.0, "weight": 0.2}], ids=["one", "per_leaf"])
def test_linear_regression_is_exact(structure, prior, x64):
    regression = exact.regression()
    values = [prior, prior] if isinstance(prior, float) else [prior["bias"], prior["weight"]]
    precision = np.repeat(values, [2, 6])
    theta, cov = regression.posterior(precision, np.zeros(8))
    la = lk.fit(
        exact.linear,
        regression.unravel(theta),
        (jnp.asarray(regression.x), jnp.asarray(regression.y)),
        likelihood=lk.Gaussian(regression.noise_std),
        structure=structure,
        prior_precision=prior,
    )
    twins.assert_close(la.posterior.covariance(), cov)
    evidence = regression.log_evidence(precision, np.zeros(8))
    twins.assert_close(la.log_marginal_likelihood(), evidence)
    x = RNG.normal(size=(4, 3))
    design = regression.design(x).reshape(4, 2, 8)
    twins.assert_close(
        la.predict(jnp.asarray(x)).f_cov, np.einsum("ncp,pq,ndq->ncd", design, cov, design)
    )


def test_eigenvectors_are_not_held_twice():
    x = jnp.asarray(RNG.normal(size=(20, 3)), jnp.float32)
    la = lk.fit(
        lambda params, x: x @ params["w"],
        {"w": jnp.ones((3, 2))},
        (x, x[:, :2]),
        likelihood=lk.Gaussian(),
        structure="kron",
    )
    (block,) = la.structure.blocks
    for posterior in (la.posterior, la.with_prior(3.0).posterior):
        assert posterior.blocks[0].left is block.left
        assert posterior.blocks[0].right is block.right


# --- parameters of shape () -----------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["kron", "ekfac"])
def test_a_mean_alone_is_exact(structure):
    y = jnp.arange(5.0)
    la = lk.fit(
        lambda params, x: jnp.broadcast_to(params["mu"], x.shape[:1]),
        {"mu": jnp.mean(y)},
        (jnp.ones((5, 3)), y),
        likelihood=lk.Gaussian(2.0),
        structure=structure,
    )
    precision = 5 / 2.0**2 + 1
    np.testing.assert_allclose(la.predict(jnp.ones((1, 3))).f_var, [1 / precision], rtol=1e-6)
    wider = la.with_prior({"mu": 3.0}).posterior.variance()
    np.testing.assert_allclose(wider, [1 / (precision + 2)], rtol=1e-6)


def with_scalars(params, x):
    """A PReLU with a slope, a gated residual, an offset, and logits with a scale."""
    z = x @ params["w"]
    h = jnp.where(z > 0, z, params["slope"] * z)
    h = x + jax.nn.sigmoid(params["gate"]) * h
    return jnp.exp(params["log_scale"]) * (h @ params["v"] + params["offset"])


@pytest.mark.parametrize("structure", ["kron", "ekfac"])
def test_scalars_have_their_exact_curvature(structure, x64):
    scalars = {"slope": 0.2, "gate": 0.5, "offset": -0.3, "log_scale": 0.1}
    params = {"w": normal(3, 3), "v": normal(3, 2)} | {
        n: jnp.asarray(s) for n, s in scalars.items()
    }
    x, y = normal(9, 3), jnp.asarray(RNG.integers(0, 2, 9))
    problem = twins.Problem(with_scalars, params, x, y, lk.Categorical(), twins.categorical_loss)
    ggn = np.asarray(jax.jit(lambda: twins.ggn(problem))())
    prior = {name: 0.5 + i for i, name in enumerate(sorted(params))}
    la = lk.fit(
        with_scalars,
        params,
        (x, y),
        likelihood="categorical",
        structure=structure,
        prior_precision=prior,
    )
    cov = np.asarray(la.posterior.covariance())
    paths = np.repeat(sorted(params), [jnp.size(params[name]) for name in sorted(params)])
    for name in scalars:
        (place,) = np.flatnonzero(paths == name)
        expected = np.zeros(len(paths))
        expected[place] = 1 / (ggn[place, place] + prior[name])
        twins.assert_close(cov[place], expected)
    jac = np.asarray(jax.jit(lambda: twins.jacobian(problem))())
    twins.assert_close(la.predict(x).f_cov, np.einsum("ncp,pq,ndq->ncd", jac, cov, jac))


# --- weights behind operations that leave them as they are ----------------------------------------


def test_k_fac_of_weights_with_shardings_and_barriers_is_that_without():
    problem = twins.problem("mlp")
    mesh = jax.make_mesh((1,), ("a",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a"))

    def constrained(params, x):
        params = jax.lax.with_sharding_constraint(params, sharding)
        return twins.mlp(jax.lax.optimization_barrier(params), x)

    def variances(model_fn):
        data = (problem.x, problem.y)
        options = {"likelihood": "categorical", "structure": "kron"}
        return lk.fit(model_fn, problem.params, data, **options).posterior.variance()

    twins.assert_close(variances(constrained), variances(twins.mlp), dtype="float32")


# --- all kinds of layers --------------------------------------------------------------------------


def several_kinds(params, batch):
    """A table, a grouped convolution with bias, a scale, and a matrix used twice."""
    tokens, images = batch["tokens"], batch["images"]
    words = jnp.tanh(params["table"][tokens]).mean(axis=1)
    z = jax.lax.conv_general_dilated(
        images,
        params["kernel"],
        (2,),
        [(1, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=2,
    )
    z = jnp.tanh(z + params["bias"]).mean(axis=1) * params["scale"]
    h = jnp.concatenate([words, z], axis=1) @ params["twice"]
    return jnp.tanh(h) @ params["twice"] @ params["out"]


def mixture():
    params = {
        "bias": normal(4),
        "kernel": normal(3, 2, 4),
        "out": normal(6, 3),
        "scale": normal(4),
        "table": normal(5, 2),
        "twice": normal(6, 6),
    }
    x = {"tokens": jnp.asarray(RNG.integers(0, 5, (7, 3))), "images": normal(7, 5, 4)}
    return params, x, jnp.asarray(RNG.integers(0, 3, 7))


@pytest.mark.accelerator
@pytest.mark.slow
@pytest.mark.parametrize("structure", ["kron", "ekfac"])
def test_posterior_of_several_kinds_of_layers_is_that_of_its_dense_matrix(structure, x64):
    params, x, y = mixture()
    la = lk.fit(several_kinds, params, (x, y), likelihood="categorical", structure=structure)
    num = la.posterior.size
    eye = jnp.eye(num)
    basis = np.zeros((num, num))
    values = np.zeros(num)
    for block in la.structure.blocks:
        groups, width, out = block.layout.shape
        places = np.asarray(block.layout.to_matrix(jnp.arange(float(num))), int)
        for group in range(groups):
            left = np.eye(width) if block.left is None else np.asarray(block.left[group])
            right = np.eye(out) if block.right is None else np.asarray(block.right[group])
            at = places[group].ravel()
            basis[np.ix_(at, at)] = np.kron(left, right)
            values[at] = block.values[group].ravel()
    twins.assert_close(basis @ basis.T, np.eye(num))
    operator = curv.GGNOperator(several_kinds, params, (x, y), "categorical")
    if structure == "ekfac":  # the exact diagonal in the eigenbasis
        ggn = np.asarray(operator.to_dense())
        twins.assert_close(values, np.diag(basis.T @ ggn @ basis))
    matrix = (basis * values) @ basis.T
    prior = {"bias": 3.0, "kernel": 0.5, "out": 1.5, "scale": 0.9, "table": 2.0, "twice": 0.4}
    precision = np.concatenate(
        [np.full(leaf.size, prior[name]) for name, leaf in sorted(params.items())]
    )
    cov = np.linalg.inv(matrix + np.diag(precision))
    la = la.with_prior(prior)
    twins.assert_close(la.posterior.covariance(), cov)
    twins.assert_close(la.posterior.variance(), np.diag(cov))
    root = np.asarray(la.posterior.scale_mv(eye)).T
    twins.assert_close(root @ root.T, cov)
    twins.assert_close(
        la.structure.log_det(jnp.asarray(precision)), exact.log_det(matrix + np.diag(precision))
    )
    flat, unravel = ravel_pytree(params)
    jac = np.asarray(jax.jit(jax.jacobian(lambda t: several_kinds(unravel(t), x)))(flat))
    f_cov = np.einsum("ncp,pq,ndq->ncd", jac, cov, jac)
    twins.assert_close(la.predict(x).f_cov, f_cov)
    variance = la.predict(x, covariance="diagonal").f_var
    twins.assert_close(variance, np.einsum("ncc->nc", f_cov))


# --- priors ---------------------------------------------------------------------------------------


def own_priors(params):
    """Return a prior precision for every parameter, and the vector that it means."""
    priors = {name: jnp.exp(normal(*leaf.shape)) for name, leaf in params.items()}
    return priors, np.asarray(ravel_pytree(priors)[0])


@jax.jit
def facts(la, priors, x):
    """Return what follows from a prior precision whose values cannot be looked at."""
    fn = la.log_marginal_likelihood
    gradients = [jax.grad(fn)(prior) for prior in (priors, jax.tree.map(jnp.ones_like, priors))]
    posterior = la.with_prior(priors).posterior
    root = posterior.scale_mv(jnp.eye(posterior.size)).T
    variance = la.with_prior(priors).predict(x, covariance="diagonal").f_var
    return gradients, root, posterior.variance(), variance


@pytest.mark.slow
def test_every_parameter_may_have_a_prior_of_its_own(x64, tmp_path):
    params, x, y = mixture()
    la = lk.fit(several_kinds, params, (x, y), likelihood="categorical", structure="ekfac")
    priors, precision = own_priors(params)
    curvature = np.asarray(jax.vmap(la.structure.mv)(jnp.eye(la.posterior.size)))
    cov = np.linalg.inv(curvature + np.diag(precision))
    theta, unravel = ravel_pytree(params)
    theta, log_likelihood = np.asarray(theta), float(la.log_likelihood)

    other = la.with_prior(priors)
    twins.assert_close(other.posterior.covariance(), cov)
    expected = exact.evidence(log_likelihood, curvature, precision, theta)
    twins.assert_close(other.log_marginal_likelihood(), expected)
    jac = np.asarray(jax.jit(jax.jacobian(lambda t: several_kinds(unravel(t), x)))(theta))
    f_cov = np.einsum("ncp,pq,mdq->ncmd", jac, cov, jac)
    twins.assert_close(other.predict(x, joint=True).joint_cov, f_cov)
    twins.assert_close(other.predict(x).f_cov, np.einsum("ncnd->ncd", f_cov))
    twins.assert_close(other.with_temperature(2.0).posterior.covariance(), 2 * cov)

    other.save(tmp_path / "la.npz")
    loaded = lk.load(tmp_path / "la.npz", several_kinds)
    np.testing.assert_array_equal(loaded.predict(x).f_cov, other.predict(x).f_cov)

    # Inside of a transformation the same, and derivatives in every entry: of entries that happen
    # to be equal too.
    gradients, root, variance, f_var = facts(la, priors, x)
    twins.assert_close(np.asarray(root) @ np.asarray(root).T, cov)
    twins.assert_close(variance, np.diag(cov))
    twins.assert_close(f_var, np.einsum("ncnc->nc", f_cov))
    for gradient, d in zip(gradients, (precision, np.ones_like(precision)), strict=True):
        own = np.diag(np.linalg.inv(curvature + np.diag(d)))
        found = ravel_pytree(gradient)[0]
        twins.assert_close(found, 0.5 * (1 / d - theta**2 - own))


def test_only_layers_within_which_the_prior_differs_are_multiplied_out(x64):
    la = exact.fitted("ekfac", "float64")
    rng = np.random.default_rng(3)
    kernel = jnp.asarray(np.exp(rng.normal(size=(4, 3))))
    prior = {"hidden": 2.0, "out": {"bias": 5.0, "kernel": kernel}}
    precision = np.concatenate([np.full(16, 2.0), np.full(3, 5.0), np.ravel(kernel)])
    mixed, shared = la.with_prior(prior), la.with_prior({"hidden": 2.0, "out": 5.0})
    kinds = [type(block) for block in mixed.posterior.blocks]
    assert kinds == [PosteriorBlock, DenseBlock]
    twins.assert_close(mixed.posterior.covariance(), exact.covariance("ekfac", precision))
    jax.tree.map(
        np.testing.assert_array_equal, mixed.posterior.blocks[0], shared.posterior.blocks[0]
    )
    la.log_marginal_likelihood(prior)
    another = {"hidden": 3.0, "out": {"bias": 1.0, "kernel": kernel + 1}}
    with twins.compilations() as compiled:
        la.with_prior(another)
        la.log_marginal_likelihood(another)
    assert not [name for name in compiled if "posterior" in name or "evidence" in name]


def test_a_prior_within_a_large_layer_is_refused_with_the_remedy(x64, monkeypatch):
    monkeypatch.setattr(eigenblock, "MOST_ENTRIES", 15**2)  # of two layers with 16 and 15
    la = exact.fitted("kron", "float64")
    with pytest.raises(ValueError, match=r"differ within a layer \(from 1 to 16 in one of 16") as e:
        la.with_prior(np.arange(1.0, 32.0))
    assert "one value per leaf" in str(e.value)
    assert "structure='diagonal'" in str(e.value)
    la.with_prior(np.append(np.full(16, 3.0), np.arange(1.0, 16.0)))


def test_inside_a_transformation_such_a_prior_gives_nan(x64, monkeypatch):
    monkeypatch.setattr(eigenblock, "MOST_ENTRIES", 15**2)
    la = exact.fitted("ekfac", "float64")
    evidence = jax.jit(jax.value_and_grad(lambda d: la.log_marginal_likelihood(d)))
    assert np.isnan(evidence(jnp.arange(1.0, 32.0))[0])
    precision = np.append(np.full(16, 3.0), np.arange(1.0, 16.0))
    value, gradient = evidence(jnp.asarray(precision))
    theta = np.asarray(ravel_pytree(la.params)[0])
    twins.assert_close(
        value, exact.evidence(float(la.log_likelihood), exact.curvature("ekfac"), precision, theta)
    )
    own = np.diag(exact.covariance("ekfac", precision))
    twins.assert_close(gradient, 0.5 * (1 / precision - theta**2 - own))


def test_a_prior_that_leaves_share_by_its_form_multiplies_nothing_out(x64):
    la = exact.fitted("kron", "float64")
    per_leaf = jax.tree.map(lambda _: jnp.asarray(0.5), la.params)
    traced = jax.eval_shape(lambda prior: la.with_prior(prior).posterior, per_leaf)
    assert {type(block) for block in traced.blocks} == {PosteriorBlock}


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("dtype", "width", "out"), [("float32", 64, 32), ("float64", 36, 6), ("float64", 64, 32)]
)
def test_one_precision_is_one_whatever_its_rounding(dtype, width, out):
    """The sum of so many equal numbers is not exact, unlike that of powers of two."""
    with twins.precision(dtype):
        eye = tuple(twins.array(np.eye(n)[None], dtype) for n in (width, out))
        weight = Slot(0, (width - 1, out), (Move("reshape", (1, width - 1, out)),))
        bias = Slot((width - 1) * out, (out,), (Move("reshape", (1, 1, out)),))
        layout = Layout(weight, bias, (1, width, out))
        values = twins.array(RNG.uniform(size=(1, width, out)), dtype)
        structure = KroneckerStructure((Eigenblock(*eye, values, layout),), False)
        for delta in (0.1, 0.8, 3.7):
            precision = jnp.full(width * out, delta, dtype)
            posterior, _ = factorise(structure, precision)
            # The basis is the identity, so that variances are those of independent parameters.
            expected = to_flat([layout], [1 / (values + delta)])
            twins.assert_close(posterior.variance(), expected, dtype=dtype)
            assert np.isfinite(jax.jit(structure.log_det)(precision))


# --- wide sides -----------------------------------------------------------------------------------


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


def test_entries_of_a_table_may_have_priors_of_their_own(x64):
    """A lookup's inputs are not rotated, so that whole rows of the table are free."""
    params, x, y = mixture()
    la = lk.fit(several_kinds, params, (x, y), likelihood="categorical", structure="kron")
    rows = {name: jnp.full(leaf.shape, 0.5) for name, leaf in params.items()}
    rows["table"] = jnp.broadcast_to(jnp.arange(1.0, 6.0)[:, None], (5, 2))
    other = la.with_prior(rows)
    assert np.isfinite(other.log_marginal_likelihood())
    assert not any(isinstance(block, DenseBlock) for block in other.posterior.blocks)
    entries = {**rows, "table": jnp.arange(1.0, 11.0).reshape(5, 2)}
    (table,) = (b for b in la.with_prior(entries).posterior.blocks if isinstance(b, DenseBlock))
    assert table.root.shape == (5, 2, 2)


# --- use ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("kron", "K-FAC"), ("ekfac", "EKFAC")])
def test_is_called_by_its_name(kind, name, x64):
    la = exact.fitted(kind, "float64")
    assert la.structure.name == name
    assert la.card()["structure"] == name


def test_ekfac_is_nearer_to_the_curvature_than_kfac(x64):
    """Its eigenvalues are the best for the basis in the Frobenius norm (George et al. 2018)."""
    ggn = exact.curvature("full")
    error = {kind: np.linalg.norm(exact.curvature(kind) - ggn) for kind in ("kron", "ekfac")}
    assert error["ekfac"] < error["kron"]
    for kind in error:
        structure = exact.fitted(kind, "float64").structure
        twins.assert_close(structure.spectrum().values.sum(), np.trace(exact.curvature(kind)))
    assert np.trace(exact.curvature("ekfac")) == pytest.approx(np.trace(ggn))


@pytest.mark.parametrize("curvature", ["empirical_fisher", "mc_fisher"])
def test_of_fisher_matrices(curvature, x64):
    problem = twins.problem("mlp", "float64")
    key = jax.random.key(0)
    la = lk.fit(
        *problem.args[:3],
        likelihood="categorical",
        structure="ekfac",
        curvature=curvature,
        key=key,
        num_samples=4,
    )
    args = problem.args
    operator = curv.EmpiricalFisherOperator(*args)
    if curvature == "mc_fisher":
        operator = curv.MonteCarloFisherOperator(*args, key=key, num_samples=4)
    expected = fit_kronecker(operator, corrected=True)
    twins.assert_close(la.structure.spectrum().values, expected.spectrum().values)
    assert float(la.structure.spectrum().values.sum()) == pytest.approx(float(operator.trace()))


def test_other_layers_at_prediction_are_refused(x64):
    params = {"first": normal(3, 4), "last": normal(2, 2), "scale": normal(2)}

    def model(params, x):
        first = params["first"] if x.shape[1] == 3 else params["first"].T
        return jnp.tanh(x @ first)[:, :2] @ params["last"] + params["scale"]

    la = lk.fit(
        model, params, (normal(5, 3), normal(5, 2)), likelihood="gaussian", structure="kron"
    )
    with pytest.raises(ValueError, match="layers differ from those the posterior was fitted with"):
        la.predict(normal(5, 4))
