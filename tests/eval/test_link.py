"""Links against softmax, quadrature, hand-written numpy twins and the invariances they have."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from laplace_kit.eval import link as lk

CLOSED_FORM = tuple(name for name in lk.LINKS if name != "monte_carlo")
KEY = jax.random.key(0)
DTYPES = ("float32", "float64")


def precision(dtype):
    return jax.enable_x64(True) if dtype == "float64" else nullcontext()


def tolerance(dtype, slack=100.0):
    return slack * float(np.finfo(dtype).eps)


def gaussian(seed=0, num_examples=6, num_classes=4, dtype="float64"):
    rng = np.random.default_rng(seed)
    mean = 2 * rng.normal(size=(num_examples, num_classes))
    root = rng.normal(size=(num_examples, num_classes, num_classes))
    return mean.astype(dtype), (root @ root.swapaxes(1, 2)).astype(dtype)


def variances(cov):
    return np.diagonal(cov, axis1=1, axis2=2).copy()


def diagonal(var):
    return var[:, :, None] * np.eye(var.shape[1], dtype=var.dtype)


def np_softmax(logits):
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def probit_twin(mean, cov):
    return np_softmax(mean / np.sqrt(1 + np.pi / 8 * variances(cov)))


def bridge_twin(mean, cov):
    probs = []
    for m, s in zip(mean, cov, strict=True):
        ones, num = np.ones(len(m)), len(m)
        m = m - s @ ones * (ones @ m) / (ones @ s @ ones)
        s = s - np.outer(s @ ones, s @ ones) / (ones @ s @ ones)
        alpha = (1 - 2 / num + np.exp(m) / num**2 * np.exp(-m).sum()) / np.diag(s)
        probs.append(alpha / alpha.sum())
    return np.array(probs)


def mean_field_twin(mean, gap_var):
    probs = np.zeros_like(mean)
    num_examples, num_classes = mean.shape
    for n in range(num_examples):
        for k in range(num_classes):
            terms = (mean[n, k] - mean[n]) / np.sqrt(1 + np.pi / 8 * gap_var(n, k))
            probs[n, k] = 1 / np.exp(-terms).sum()
    return probs / probs.sum(axis=1, keepdims=True)


def mean_field_1_twin(mean, cov):
    var = variances(cov)
    return mean_field_twin(mean, lambda n, k: var[n, k] + var[n])


def mean_field_2_twin(mean, cov):
    var = variances(cov)
    return mean_field_twin(mean, lambda n, k: var[n, k] + var[n] - 2 * cov[n, k])


TWINS = {
    "probit": probit_twin,
    "bridge": bridge_twin,
    "mean_field_1": mean_field_1_twin,
    "mean_field_2": mean_field_2_twin,
}


def two_class_quadrature(mean, cov):
    """E[softmax(f)] of two classes: the first is the sigmoid of the gap, a scalar Gaussian."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    gap = mean[:, 0] - mean[:, 1]
    std = np.sqrt(cov[:, 0, 0] + cov[:, 1, 1] - 2 * cov[:, 0, 1])
    sigmoids = 1 / (1 + np.exp(-(gap[:, None] + std[:, None] * nodes)))
    first = sigmoids @ weights / weights.sum()
    return np.stack([first, 1 - first], axis=1)


# --- formulas --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CLOSED_FORM)
@pytest.mark.parametrize("num_classes", [2, 5])
def test_closed_forms_match_numpy(name, num_classes, dtype):
    mean, cov = gaussian(num_classes=num_classes, dtype=dtype)
    for covariance, full in ((cov, cov), (variances(cov), diagonal(variances(cov)))):
        expected = TWINS[name](mean.astype(float), full.astype(float))
        with precision(dtype):
            probs = lk.class_probabilities(name, mean, covariance)
            assert probs.dtype == dtype
            np.testing.assert_allclose(probs, expected, atol=tolerance(dtype), rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", lk.LINKS)
def test_zero_covariance_gives_softmax(name, dtype):
    mean, cov = gaussian(dtype=dtype)
    for covariance in (np.zeros_like(mean), np.zeros_like(cov)):
        with precision(dtype):
            probs = lk.class_probabilities(name, mean, covariance, key=KEY, num_samples=3)
            assert probs.dtype == dtype
            np.testing.assert_allclose(probs, np_softmax(mean), atol=tolerance(dtype), rtol=0)


@pytest.mark.parametrize("name", lk.LINKS)
def test_compiles_and_differentiates(name):
    mean, cov = gaussian(dtype="float32")

    def first(m, s):
        return lk.class_probabilities(name, m, s, key=KEY, num_samples=8)[:, 0].sum()

    probs = jax.jit(lambda m, s: lk.class_probabilities(name, m, s, key=KEY, num_samples=8))
    np.testing.assert_allclose(
        probs(mean, cov), lk.class_probabilities(name, mean, cov, key=KEY, num_samples=8), atol=1e-6
    )
    for covariance in (cov, variances(cov), np.zeros_like(cov) if name != "monte_carlo" else cov):
        grads = jax.jit(jax.grad(first, argnums=(0, 1)))(mean, covariance)
        assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", ["probit", "mean_field_1", "mean_field_2"])
def test_large_variance_gives_uniform(name):
    mean, cov = gaussian(dtype="float32")
    np.testing.assert_allclose(lk.class_probabilities(name, mean, 1e20 * cov), 0.25, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_bridge_reads_the_shape_of_the_covariance_and_not_its_size(scale):
    mean, cov = gaussian(dtype="float32")
    expected = lk.bridge(mean, cov)
    np.testing.assert_allclose(lk.bridge(mean, np.float32(scale) * cov), expected, atol=1e-5)


def test_bridge_of_two_classes_is_softmax_of_conditioned_mean():
    mean, cov = gaussian(num_classes=2)
    row_sums = cov.sum(axis=2)
    shift = row_sums * (mean.sum(axis=1) / row_sums.sum(axis=1))[:, None]
    with precision("float64"):
        np.testing.assert_allclose(lk.bridge(mean, cov), np_softmax(mean - shift), atol=1e-12)


def test_bridge_where_the_sum_is_certain_is_the_limit():
    mean, cov = gaussian(num_classes=4)
    centre = np.eye(4) - 1 / 4
    singular = centre @ cov @ centre
    with precision("float64"):
        probs = lk.bridge(mean, singular)
        np.testing.assert_allclose(probs, bridge_twin(mean, singular + 1e-8 * np.eye(4)), atol=1e-6)


def test_bridge_is_finite_where_conditioning_leaves_nothing():
    mean, cov = gaussian(dtype="float32")
    rank_one = np.einsum("nc,nd->ncd", cov[:, 0], cov[:, 0])
    one_class = np.zeros_like(mean)
    one_class[:, 1] = 1
    for covariance in (rank_one, one_class):
        probs = lk.bridge(mean, covariance)
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)


def test_bridge_gives_all_mass_to_a_certain_class():
    probs = lk.bridge(np.zeros((1, 3), "float32"), np.array([[0, 1, 1]], "float32"))
    np.testing.assert_allclose(probs, [[1, 0, 0]], atol=1e-6)


def test_mean_field_2_of_variances_is_mean_field_1():
    mean, cov = gaussian(dtype="float32")
    np.testing.assert_array_equal(lk.mean_field_2(mean, variances(cov)), lk.mean_field_1(mean, cov))


# --- the integral ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_monte_carlo_converges_to_quadrature(dtype):
    mean, cov = gaussian(num_examples=3, num_classes=2, dtype=dtype)
    num_samples = 100_000
    for covariance, full in ((cov, cov), (variances(cov), diagonal(variances(cov)))):
        expected = two_class_quadrature(mean.astype(float), full.astype(float))
        with precision(dtype):
            probs = lk.monte_carlo(mean, covariance, key=KEY, num_samples=num_samples)
            assert probs.dtype == dtype
            np.testing.assert_allclose(probs, expected, atol=4 * 0.5 / num_samples**0.5)


@pytest.mark.parametrize("name", ["probit", "mean_field_1", "mean_field_2"])
def test_two_classes_are_near_quadrature(name):
    # With one logit certain all three are the scalar probit of MacKay (1992), good to 0.02.
    gap = np.linspace(-4, 4, 9, dtype="float32")
    mean = np.stack([gap, np.zeros_like(gap)], axis=1)
    for var in (0.1, 1.0, 10.0):
        covariance = np.tile(np.array([var, 0], "float32"), (9, 1))
        expected = two_class_quadrature(mean, diagonal(covariance))
        probs = lk.class_probabilities(name, mean, covariance)
        np.testing.assert_allclose(probs, expected, atol=0.02)


def test_mean_field_2_knows_that_shared_noise_cancels():
    mean, _ = gaussian(dtype="float32")
    shared = np.full((6, 4, 4), 9.0, "float32")
    np.testing.assert_allclose(lk.mean_field_2(mean, shared), np_softmax(mean), atol=1e-6)
    probs = lk.monte_carlo(mean, shared, key=KEY, num_samples=50)
    np.testing.assert_allclose(probs, np_softmax(mean), atol=1e-3)


# --- invariances -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mean_field_1", "mean_field_2", "monte_carlo"])
def test_a_constant_added_to_all_logits_changes_nothing(name):
    mean, cov = gaussian()
    with precision("float64"):
        probs = lk.class_probabilities(name, mean, cov, key=KEY, num_samples=20)
        moved = lk.class_probabilities(name, mean + 7.0, cov, key=KEY, num_samples=20)
        np.testing.assert_allclose(moved, probs, atol=1e-12)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_a_constant_changes_nothing_where_classes_are_exchangeable(name):
    mean, _ = gaussian()
    cov = np.broadcast_to(2 * np.eye(4) + 0.5, (6, 4, 4))
    with precision("float64"):
        moved = lk.class_probabilities(name, mean + 7.0, cov)
        np.testing.assert_allclose(moved, lk.class_probabilities(name, mean, cov), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    mean=hnp.arrays("float32", (2, 4), elements=st.floats(-1e4, 1e4, width=32)),
    root=hnp.arrays("float32", (2, 4, 3), elements=st.floats(-1e3, 1e3, width=32)),
    order=st.permutations(range(4)),
    name=st.sampled_from(CLOSED_FORM),
)
def test_probabilities_follow_their_classes(mean, root, order, name):
    """Valid for singular covariances and huge logits; equivariant where rounding is small."""
    probs = np.asarray(lk.class_probabilities(name, mean, root @ root.swapaxes(1, 2)))
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-5)
    mean, var = mean / 100, np.square(root).sum(axis=2) / 1e4 + 1
    probs = np.asarray(lk.class_probabilities(name, mean, var))
    permuted = lk.class_probabilities(name, mean[:, order], var[:, order])
    np.testing.assert_allclose(permuted, probs[:, order], atol=1e-3)


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_permutation_equivariance(name):
    mean, cov = gaussian()
    order = np.array([2, 0, 3, 1])
    with precision("float64"):
        probs = lk.class_probabilities(name, mean, cov)
        permuted = lk.class_probabilities(name, mean[:, order], cov[:, order][:, :, order])
        np.testing.assert_allclose(permuted, probs[:, order], atol=1e-12)


@pytest.mark.parametrize("name", lk.LINKS)
def test_huge_logits_stay_finite(name):
    mean = np.array([[1e30, -1e30, 0.0], [3e4, 3e4, -3e4]], "float32")
    for covariance in (np.ones((2, 3), "float32"), np.tile(np.eye(3, dtype="float32"), (2, 1, 1))):
        probs = lk.class_probabilities(name, mean, covariance, key=KEY, num_samples=5)
        np.testing.assert_allclose(probs[0], [1, 0, 0], atol=1e-6)
        np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)


def test_half_precision_is_computed_in_float32():
    mean, cov = gaussian(dtype="float32")
    assert lk.probit(jnp.asarray(mean, jnp.bfloat16), cov).dtype == jnp.float32


# --- Bernoulli -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["probit", "mean_field_1", "mean_field_2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bernoulli_is_two_classes_with_a_fixed_logit(name, dtype):
    mean, cov = gaussian(dtype=dtype)
    var = variances(cov)
    pair_mean = np.stack([np.zeros_like(mean), mean], axis=-1).reshape(-1, 2)
    pair_var = np.stack([np.zeros_like(var), var], axis=-1).reshape(-1, 2)
    with precision(dtype):
        probs = lk.bernoulli_probabilities(name, mean, var)
        pairs = lk.class_probabilities(name, pair_mean, pair_var)
        assert probs.dtype == dtype
        np.testing.assert_allclose(probs.ravel(), pairs[:, 1], atol=tolerance(dtype))


def test_bernoulli_bridge_is_two_classes_that_sum_to_zero():
    mean, cov = gaussian()
    mean, var = mean.ravel(), variances(cov).ravel()
    pair_mean = np.stack([-mean / 2, mean / 2], axis=1)
    pair_cov = var[:, None, None] / 4 * np.array([[1.0, -1.0], [-1.0, 1.0]])
    with precision("float64"):
        probs = lk.bernoulli_probabilities("bridge", mean, var)
        np.testing.assert_allclose(probs, lk.bridge(pair_mean, pair_cov)[:, 1], atol=1e-12)


def test_bernoulli_monte_carlo_converges_to_quadrature():
    mean, var = np.array([-2.0, 0.0, 3.0], "float32"), np.array([0.5, 1.0, 9.0], "float32")
    pair_mean = np.stack([mean, np.zeros_like(mean)], axis=1)
    pair_var = np.stack([var, np.zeros_like(var)], axis=1)
    expected = two_class_quadrature(pair_mean, diagonal(pair_var))[:, 0]
    probs = lk.bernoulli_probabilities("monte_carlo", mean, var, key=KEY, num_samples=100_000)
    np.testing.assert_allclose(probs, expected, atol=4 * 0.5 / 100_000**0.5)


@pytest.mark.parametrize("name", lk.LINKS)
def test_bernoulli_without_variance_is_the_sigmoid(name):
    mean = np.linspace(-5, 5, 6, dtype="float32").reshape(3, 2)
    probs = lk.bernoulli_probabilities(name, mean, np.zeros_like(mean), key=KEY, num_samples=3)
    np.testing.assert_allclose(probs, 1 / (1 + np.exp(-mean)), atol=1e-6)


# --- errors ----------------------------------------------------------------------------------


def test_unknown_link_names_the_nearest():
    mean, cov = gaussian(dtype="float32")
    with pytest.raises(ValueError, match=r"link='probbit'.*expected one of.*mean 'probit'"):
        lk.class_probabilities("probbit", mean, cov)
    with pytest.raises(ValueError, match=r"link='bride'.*mean 'bridge'"):
        lk.bernoulli_probabilities("bride", mean, mean)


def test_monte_carlo_needs_a_key_and_a_draw():
    mean, cov = gaussian(dtype="float32")
    with pytest.raises(ValueError, match=r"no key.*expected a random key.*jax\.random\.key"):
        lk.class_probabilities("monte_carlo", mean, cov)
    with pytest.raises(ValueError, match=r"no key"):
        lk.bernoulli_probabilities("monte_carlo", mean, variances(cov))
    with pytest.raises(ValueError, match=r"num_samples=0, expected at least 1"):
        lk.monte_carlo(mean, cov, key=KEY, num_samples=0)


def test_shapes_that_do_not_go_together():
    mean, cov = gaussian(dtype="float32")
    with pytest.raises(ValueError, match=r"covariance of shape \(6,\).*\(6, 4\).*\(6, 4, 4\)"):
        lk.probit(mean, variances(cov)[:, 0])
    with pytest.raises(ValueError, match=r"\(6, 1\).*at least two classes.*bernoulli"):
        lk.bridge(mean[:, :1], mean[:, :1])
    with pytest.raises(ValueError, match=r"f_var of shape \(6, 4, 4\).*diagonals"):
        lk.bernoulli_probabilities("probit", mean, cov)
