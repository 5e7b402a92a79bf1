"""Labels: smoothed, ignored, soft, at several positions, several at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import output_space
import pytest
import twins
from scipy import special

from laplace_kit.likelihood import Bernoulli, Categorical
from laplace_kit.likelihood.base import check_targets

RNG = np.random.default_rng(0)
F = RNG.normal(size=(2, 2, 3))  # two positions by two, three classes
LABELS = np.asarray([[2, 0], [1, 1]])
SOFT = RNG.dirichlet(np.ones(3), (2, 2))
IGNORED = np.asarray([[2, -1], [-1, 1]])


def smoothed_loss(smoothing, f, y):
    """The cross-entropy with the targets of Szegedy et al. (2016), from their definition."""
    p = jnp.exp(f) / jnp.exp(f).sum(axis=-1, keepdims=True)
    t = y if y.shape == f.shape else jnp.eye(f.shape[-1])[y]
    return -jnp.sum(((1 - smoothing) * t + smoothing / f.shape[-1]) * jnp.log(p))


def observed_loss(f, y):
    """The loss of the two labels that are there, one by one."""
    return smoothed_loss(0.0, f[0, 0], y[0, 0]) + smoothed_loss(0.0, f[1, 1], y[1, 1])


# --- categorical ----------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("y", [LABELS, SOFT], ids=["hard", "soft"])
def test_smoothed_labels_of_an_image(y, smoothing, x64):
    likelihood = Categorical(label_smoothing=smoothing)
    loss = functools.partial(smoothed_loss, smoothing)
    output_space.assert_derivatives(likelihood, jnp.asarray(F), jnp.asarray(y), loss)


def test_ignored_labels_add_nothing(x64):
    f, y = jnp.asarray(F), jnp.asarray(IGNORED)
    likelihood = Categorical(ignore_index=-1)
    output_space.assert_derivatives(likelihood, f, y, observed_loss)
    _, gradient, product, _ = output_space.forms(likelihood, f, y)
    root = output_space.matrix(likelihood, "hessian_sqrt_mv", f, y)
    ignored = np.repeat(IGNORED == -1, 3, axis=-1).reshape(2, 2, 3)
    np.testing.assert_array_equal(gradient[ignored], 0)
    for array in (product, root):
        np.testing.assert_array_equal(array[ignored.ravel()], 0)
        np.testing.assert_array_equal(array[:, ignored.ravel()], 0)
    np.testing.assert_array_equal(likelihood.observed(f, y), IGNORED != -1)


@pytest.mark.parametrize("ignore_index", [-100, 255, 0])
def test_any_label_may_be_the_one_to_ignore(ignore_index, x64):
    y = np.where(IGNORED == -1, ignore_index, IGNORED)
    likelihood = Categorical(label_smoothing=0.2, ignore_index=ignore_index)
    found = output_space.forms(likelihood, jnp.asarray(F), jnp.asarray(y))
    expected = smoothed_loss(0.2, F[0, 0], y[0, 0]) + smoothed_loss(0.2, F[1, 1], y[1, 1])
    twins.assert_close(found[0], expected)
    assert likelihood.is_valid(jnp.asarray(F), jnp.asarray(y))


def test_soft_labels_beside_an_ignored_one_all_count(x64):
    f, y = jnp.asarray(F), jnp.asarray(SOFT)
    found = output_space.forms(Categorical(ignore_index=-1), f, y)
    for one, other in zip(found, output_space.forms(Categorical(), f, y), strict=True):
        twins.assert_close(one, other)


def test_sampled_gradients_of_smoothed_and_ignored_labels(x64):
    """Their covariance is L: drawn labels are those of p itself, and none where none was seen."""
    f, y = jnp.asarray(F), jnp.asarray(IGNORED)
    likelihood = Categorical(label_smoothing=0.3, ignore_index=-1)
    output_space.assert_scores(likelihood, f, y)
    gradient = likelihood.sampled_gradient(jax.random.key(0), f, y)
    np.testing.assert_array_equal(np.asarray(gradient)[IGNORED == -1], 0)
    plain = Categorical()
    drawn = plain.sample(jax.random.key(0), f)
    expected = jax.jit(jax.grad(plain.negative_log_prob))(f, drawn)
    twins.assert_close(plain.sampled_gradient(jax.random.key(0), f, y), expected)


def test_samples_suit_the_targets_of_several_labels():
    f = jnp.asarray([[50.0, 0.0, 0.0], [0.0, 0.0, 50.0]])
    np.testing.assert_array_equal(Categorical().sample(jax.random.key(0), f), [0, 2])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_is_a_share(smoothing):
    with pytest.raises(ValueError, match=r"label_smoothing=.*from 0 to less than 1"):
        Categorical(label_smoothing=smoothing)


def test_ignored_label_must_be_one_that_labels_can_have():
    f, y = jax.ShapeDtypeStruct((5, 3), jnp.float32), jax.ShapeDtypeStruct((5,), jnp.uint8)
    check_targets(Categorical(ignore_index=255), f, y)
    with pytest.raises(ValueError, match=r"dtype uint8, which cannot hold ignore_index=-100"):
        check_targets(Categorical(ignore_index=-100), f, y)


@pytest.mark.parametrize(
    ("dtype", "num_classes"), [("uint8", 256), ("uint8", 300), ("int8", 200), ("int16", 40_000)]
)
def test_labels_in_a_dtype_that_does_not_count_to_all_classes(dtype, num_classes):
    """Their own values are labels all the same, up to the largest that the dtype holds."""
    f = np.random.default_rng(1).normal(size=num_classes).astype(np.float32)
    log_p = f - special.logsumexp(f.astype(np.float64))
    largest = np.iinfo(dtype).max
    for label in (0, 3, largest):
        y = jnp.asarray(label, dtype)
        assert Categorical(ignore_index=largest - 1).is_valid(f, y)
        loss = Categorical(ignore_index=largest - 1).negative_log_prob(f, y)
        np.testing.assert_allclose(loss, -log_p[label], rtol=1e-5)
    assert Categorical(ignore_index=largest).negative_log_prob(f, y) == 0
    if np.iinfo(dtype).min < 0:
        assert not Categorical().is_valid(f, jnp.asarray(-1, dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("num_classes", [3, 1000])
def test_soft_labels_in_half_precision(dtype, num_classes):
    rng = np.random.default_rng(1)
    y = jnp.asarray(rng.dirichlet(np.ones(num_classes), 20), dtype)
    f = rng.normal(size=num_classes).astype(np.float32)
    is_valid = jax.vmap(Categorical().is_valid, (None, 0))
    assert is_valid(f, y).all()
    assert not is_valid(f, y * jnp.asarray(0.95, dtype)).any()
    log_p = f - special.logsumexp(f.astype(np.float64))
    expected = -np.asarray(y[0], np.float64) @ log_p
    np.testing.assert_allclose(Categorical().negative_log_prob(f, y[0]), expected, rtol=1e-5)


def test_the_ignored_label_is_part_of_the_support():
    assert "ignore_index=-100 where there is no label" in Categorical(ignore_index=-100).support
    assert "ignore" not in Categorical().support


# --- class weights --------------------------------------------------------------------------------

CLASS_WEIGHTS = np.asarray([0.5, 3.0, 0.0])


def weighted_loss(smoothing, weights, f, y):
    """The cross-entropy of torch with class weights, label by label from its definition."""
    log_p = f - jax.scipy.special.logsumexp(f, axis=-1, keepdims=True)
    t = y if y.shape == f.shape else jnp.eye(f.shape[-1])[y]
    t = (1 - smoothing) * t + smoothing / f.shape[-1]
    return sum(
        -weights[c] * t[i, j, c] * log_p[i, j, c]
        for i in range(2)
        for j in range(2)
        for c in range(3)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("y", [LABELS, SOFT], ids=["hard", "soft"])
def test_class_weights_multiply_the_loss_of_each_label(y, smoothing, x64):
    likelihood = Categorical(CLASS_WEIGHTS, smoothing)
    loss = functools.partial(weighted_loss, smoothing, tuple(CLASS_WEIGHTS))
    output_space.assert_derivatives(likelihood, jnp.asarray(F), jnp.asarray(y), loss)
    output_space.assert_scores(likelihood, jnp.asarray(F), jnp.asarray(y))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("targets", ["hard", "soft", "ignored"])
def test_the_loss_is_the_sum_of_torch(targets, smoothing, x64):
    torch = pytest.importorskip("torch")
    y = {"hard": LABELS, "soft": SOFT, "ignored": IGNORED}[targets]
    likelihood = Categorical(CLASS_WEIGHTS, smoothing, ignore_index=-1)
    tensors = (
        torch.tensor(F.reshape(4, 3), requires_grad=True),
        torch.tensor(y.reshape(4, *y.shape[2:])),
    )
    expected = torch.nn.functional.cross_entropy(
        *tensors,
        weight=torch.tensor(CLASS_WEIGHTS),
        reduction="sum",
        label_smoothing=smoothing,
        ignore_index=-1,
    )
    expected.backward()
    f, y = jnp.asarray(F), jnp.asarray(y)
    assert likelihood.negative_log_prob(f, y) == pytest.approx(expected.item(), rel=1e-12)
    gradient = np.asarray(likelihood.output_gradient(f, y)).reshape(4, 3)
    np.testing.assert_allclose(gradient, tensors[0].grad.numpy(), rtol=1e-10, atol=1e-14)


def test_other_class_weights_compile_nothing():
    f, y = jnp.asarray(F, jnp.float32), jnp.asarray(LABELS)
    likelihoods = [Categorical(np.float32(weights)) for weights in (CLASS_WEIGHTS, [1, 2, 3])]
    for likelihood in likelihoods:
        with twins.compilations() as names:
            output_space.forms(likelihood, f, y)
    assert names == []


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (2.0, r"shape \(\)"),
        (np.ones((1, 2)), r"shape \(1, 2\).*weights=w"),
        ([1.0, -1.0], r"class_weights=\[1.0, -1.0\], expected one finite number"),
        ([1.0, np.nan], "expected one finite number of at least zero"),
        ([0.0, 0.0], "some of them positive"),
    ],
)
def test_class_weights_are_one_number_for_each_class(weights, words):
    with pytest.raises(ValueError, match=words):
        Categorical(class_weights=weights)


def test_class_weights_are_as_many_as_classes():
    f, y = jax.ShapeDtypeStruct((5, 4), jnp.float32), jax.ShapeDtypeStruct((5,), jnp.int32)
    with pytest.raises(ValueError, match=r"3 class weights for outputs \(5, 4\).*of the 4 classes"):
        check_targets(Categorical(CLASS_WEIGHTS), f, y)


# --- Bernoulli ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_labels_at_once(dtype):
    """For an image with three binary or soft labels per pixel."""
    with twins.precision(dtype):
        y = np.asarray(RNG.choice([0.0, 0.25, 1.0], F.shape))
        output_space.assert_derivatives(
            Bernoulli(),
            jnp.asarray(F, dtype),
            jnp.asarray(y, dtype),
            twins.bernoulli_loss,
            dtype=dtype,
        )


def test_samples_are_yes_with_their_probability(x64):
    f, num = jnp.asarray([-2.0, 0.0, 1.0]), 20_000
    y = jax.jit(jax.vmap(Bernoulli().sample, (0, None)))(
        jax.random.split(jax.random.key(0), num), f
    )
    p = 1 / (1 + np.exp(-f))
    assert set(np.unique(y)) == {0.0, 1.0}
    assert np.abs((y.mean(axis=0) - p) / np.sqrt(p * (1 - p) / num)).max() < 4
