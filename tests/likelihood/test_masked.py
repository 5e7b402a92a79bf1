"""Missing entries: each likelihood with a mask equals itself on what was observed."""

import jax
import jax.numpy as jnp
import numpy as np
import output_space
import pytest
import twins

from laplace_kit import curv
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    FromLoss,
    Gaussian,
    HeteroscedasticGaussian,
    Masked,
    MultivariateGaussian,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
)
from laplace_kit.likelihood.base import check_targets
from laplace_kit.likelihood.masked import (
    has_mask,
    targets_seen,
    targets_without_mask,
    with_mask_of,
    without_mask,
)

RNG = np.random.default_rng(0)
F = RNG.normal(size=(2, 4))
NOISE = np.asarray([0.3, 1.0, 2.5, 0.7])

# name: likelihood, targets, mask over the entries, and the likelihood of a single entry
CASES = {
    "gaussian": (Gaussian(0.7), RNG.normal(size=(2, 4)), [[1, 0, 1, 1], [0, 0, 1, 0]]),
    "noises": (Gaussian(NOISE), RNG.normal(size=(2, 4)), [[1, 0, 1, 1], [0, 0, 1, 0]]),
    "bernoulli": (Bernoulli(), RNG.integers(0, 2, (2, 4)), [[1, 0, 1, 1], [0, 0, 1, 0]]),
    "poisson": (Poisson(), RNG.poisson(2.0, (2, 4)), [[1, 0, 1, 1], [0, 0, 1, 0]]),
    "heavy tails": (StudentT(0.6), RNG.normal(size=(2, 4)), [[1, 0, 1, 1], [0, 0, 1, 0]]),
    "counts": (NegativeBinomial(0.4), RNG.poisson(2.0, (2, 4)), [[1, 0, 1, 1], [0, 0, 1, 0]]),
    "ordinal": (Ordinal(3), RNG.integers(0, 3, (2, 4)), [[1, 0, 1, 1], [0, 0, 1, 0]]),
    "columns": (Poisson(), RNG.poisson(2.0, (2, 4)), [[1, 0, 0, 1]]),
    "heteroscedastic": (HeteroscedasticGaussian(), RNG.normal(size=(2, 2)), [[1, 0], [0, 0]]),
    "labels": (Categorical(), np.asarray([3, 1]), [0, 1]),
    "smoothed": (Categorical(label_smoothing=0.2), np.asarray([3, 1]), [0, 1]),
    "class weights": (Categorical(np.asarray([2.0, 0.3, 1.0, 0.5])), np.asarray([3, 1]), [0, 1]),
    "soft labels": (Categorical(), RNG.dirichlet(np.ones(4), 2), [1, 0]),
}
cases = pytest.mark.parametrize("name", CASES)


def case(name: str) -> tuple:
    """Return likelihood, outputs, targets, mask; and which outputs belong to what was seen."""
    likelihood, y, mask = CASES[name]
    f, y, mask = map(twins.array, (F, y, mask))
    full = np.broadcast_to(mask, likelihood.entry_shape(f.shape)).astype(bool)
    if isinstance(likelihood, Categorical):
        seen = np.repeat(full[:, None], 4, axis=1)
    else:
        seen = np.tile(full, (1, 2)) if isinstance(likelihood, HeteroscedasticGaussian) else full
    return likelihood, f, y, mask, full, seen


@cases
def test_equals_the_likelihood_of_what_was_observed(name, x64):
    likelihood, f, y, mask, full, seen = case(name)
    value, gradient, product, squared = output_space.forms(Masked(likelihood), f, (y, mask))
    losses = np.asarray(likelihood.entry_losses(f, y))
    _, all_gradients, all_products, _ = output_space.forms(likelihood, f, y)
    kept = np.outer(seen, seen)
    twins.assert_close(value, losses[full].sum())
    twins.assert_close(gradient, np.where(seen, all_gradients, 0))
    twins.assert_close(product, np.where(kept, all_products, 0))
    twins.assert_close(squared, np.where(kept, all_products, 0))
    root = output_space.matrix(Masked(likelihood), "hessian_sqrt_mv", f, (y, mask))
    np.testing.assert_array_equal(root[~seen.ravel()], 0)
    np.testing.assert_array_equal(Masked(likelihood).observed(f, (y, mask)), full)


@pytest.mark.parametrize("name", ["gaussian", "heteroscedastic", "smoothed", "bernoulli"])
def test_sampled_gradients_where_something_was_observed(name, x64):
    likelihood, f, y, mask, _, seen = case(name)
    output_space.assert_scores(Masked(likelihood), f, (y, mask))
    gradient = Masked(likelihood).sampled_gradient(jax.random.key(0), f, (y, mask))
    np.testing.assert_array_equal(np.asarray(gradient)[~seen], 0)
    assert np.asarray(gradient)[seen].all()


@cases
def test_a_mask_of_ones_changes_nothing(name):
    likelihood, f, y, mask, *_ = case(name)
    found = output_space.forms(Masked(likelihood), f, (y, jnp.ones_like(mask)))
    for one, other in zip(found, output_space.forms(likelihood, f, y), strict=True):
        twins.assert_close(one, other, dtype="float32")


def test_missing_entries_may_be_anything(x64):
    """Neither a placeholder nor an overflowing output there reaches the derivatives."""
    f = jnp.asarray([0.3, 1e4, jnp.nan])
    y, mask = jnp.asarray([2.0, jnp.nan, -7.0]), jnp.asarray([True, False, False])
    found = output_space.forms(Masked(Poisson()), f, (y, mask))
    expected = output_space.forms(Poisson(), f[:1], y[:1])
    twins.assert_close(found[0], expected[0])
    twins.assert_close(found[1], np.pad(expected[1], (0, 2)))
    for one, other in zip(found[2:], expected[2:], strict=True):
        twins.assert_close(one, np.pad(other, ((0, 2), (0, 2))))


def test_targets_that_are_seen_have_zeros_where_some_are_missing():
    f, y = jnp.ones(3), jnp.asarray([2.0, jnp.nan, jnp.inf])
    seen = targets_seen(Masked(Gaussian()), f, (y, jnp.asarray([1, 0, 0])))
    np.testing.assert_array_equal(seen, [2.0, 0.0, 0.0])
    assert targets_seen(Gaussian(), f, y) is y


def test_mask_and_ignored_labels_together(x64):
    f, likelihood = jnp.asarray(F), Categorical(ignore_index=-1)
    y, mask = jnp.asarray([-1, 2]), jnp.asarray([1, 1])
    masked = output_space.forms(Masked(likelihood), f, (y, mask))
    for one, other in zip(masked, output_space.forms(likelihood, f, y), strict=True):
        twins.assert_close(one, other)
    np.testing.assert_array_equal(Masked(likelihood).observed(f, (y, mask)), [False, True])


def test_samples_have_nothing_missing():
    likelihood, f = Masked(HeteroscedasticGaussian()), jnp.asarray(F)
    y, mask = likelihood.sample(jax.random.key(0), f)
    expected = HeteroscedasticGaussian().sample(jax.random.key(0), f)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(mask, np.ones((2, 2)))
    assert likelihood.is_valid(f, (y, mask))


def test_noise_under_a_mask_is_a_leaf(x64):
    f, y, mask = jnp.asarray(F), jnp.zeros((2, 4)), jnp.asarray([[1, 0, 1, 1], [0, 0, 1, 0]])

    def loss(std):
        return Masked(Gaussian(std)).negative_log_prob(f, (y, mask))

    found = jax.jit(jax.grad(loss))(0.7)
    observed = F[np.asarray(mask) == 1]
    assert found == pytest.approx(np.sum(-(observed**2) / 0.7**3 + 1 / 0.7), rel=1e-12)


@pytest.mark.parametrize("form", ["in memory", "batches"])
@pytest.mark.parametrize("kind", ["mask", "ignore_index"])
def test_curvature_of_padded_sequences_is_that_of_their_tokens(kind, form, x64):
    """The GGN over masked positions equals the one over the positions that are left."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(5, 3, 2)), rng.integers(0, 3, (5, 3))
    mask = np.arange(3) < rng.integers(1, 4, 5)[:, None]
    params = jnp.asarray(rng.normal(size=(2, 3)))

    def linear(params, x):
        return x @ params

    left = (jnp.asarray(x[mask]), jnp.asarray(y[mask]))
    expected = np.asarray(curv.GGNOperator(linear, params, left, "categorical").to_dense())
    if kind == "mask":
        likelihood, targets = Masked(Categorical()), (y, mask)
    else:
        likelihood, targets = Categorical(ignore_index=-100), np.where(mask, y, -100)
    data = jax.tree.map(jnp.asarray, (x, targets))
    if form == "batches":
        first, second = (jax.tree.map(lambda a, s=s: a[s], data) for s in (slice(3), slice(3, 5)))
        data = [first, second]
    twins.assert_close(curv.GGNOperator(linear, params, data, likelihood).to_dense(), expected)


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "likelihood",
    [FromLoss(twins.log_cosh_loss), MultivariateGaussian(np.eye(2)), Masked(Gaussian())],
)
def test_targets_that_cannot_be_masked(likelihood):
    message = rf"type {type(likelihood).__name__} to mask, expected .*lk\.Gaussian"
    with pytest.raises(TypeError, match=message):
        Masked(likelihood)


def spec(*shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("likelihood", "f", "y", "mask"),
    [
        (Gaussian(), (5, 2), spec(5, 2), (5, 2)),
        (Gaussian(), (5, 2), spec(5, 2), (5, 1)),
        (Gaussian(), (5,), spec(5), (5,)),
        (HeteroscedasticGaussian(), (5, 4), spec(5, 2), (5, 2)),
        (Categorical(), (5, 4, 3), spec(5, 4, dtype="int32"), (5, 4)),
        (Categorical(), (5, 4, 3), spec(5, 4, 3), (5, 1)),
    ],
)
def test_masks_that_go_with_the_targets(likelihood, f, y, mask):
    check_targets(Masked(likelihood), spec(*f), (y, spec(*mask)))
    check_targets(Masked(likelihood), spec(*f), [y, spec(*mask, dtype="bool")])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (spec(5, 2), r"expected a pair of arrays \(y, mask\).*pass \(x, \(y, mask\)\) as data"),
        ((spec(5, 2),), "expected a pair of arrays"),
        ((spec(5, 2), (spec(5, 2),)), "expected a pair of arrays"),
        ((spec(5, 2), spec(5)), r"mask of shape \(5,\) for targets of shape \(5, 2\)"),
        ((spec(5, 2), spec(5, 3)), r"expected one that broadcasts to \(5, 2\), with as many axes"),
        ((spec(5, 2), spec(1, 2)), r"mask of shape \(1, 2\)"),
        ((spec(5, 3), spec(5, 3)), r"Gaussian: found targets of shape \(5, 3\)"),
    ],
)
def test_masks_that_do_not(targets, message):
    with pytest.raises(ValueError, match=message):
        check_targets(Masked(Gaussian()), spec(5, 2), targets)


def test_values_outside_the_support_count_where_they_were_observed():
    likelihood, f, y = Masked(Bernoulli()), jnp.zeros(3), jnp.asarray([0.0, 1.0, 9.0])
    assert likelihood.is_valid(f, (y, jnp.asarray([1, 1, 0])))
    assert not likelihood.is_valid(f, (y, jnp.asarray([0, 0, 1])))
    assert not likelihood.is_valid(f, (y, jnp.asarray([1.0, 0.5, 0.0])))
    assert "mask of zeros and ones" in likelihood.support


def test_a_mask_is_taken_off_and_put_on():
    inner, y = Gaussian(), jnp.zeros(3)
    masked = Masked(inner)
    assert has_mask(masked)
    assert not has_mask(inner)
    assert targets_without_mask(masked, (y, y)) is y
    assert targets_without_mask(inner, y) is y
    assert without_mask(masked) is without_mask(inner) is inner
    assert with_mask_of(masked, inner).likelihood is inner
    assert with_mask_of(inner, inner) is inner
