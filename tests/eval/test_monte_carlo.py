"""Log averages over draws: those of plain averages, finite where these vanish."""

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from laplace_kit.eval import monte_carlo

KEY = jax.random.key(0)


def draws(mean, num_samples):
    """Return the standard normal draws that the averages are taken over."""
    keys = [jax.random.fold_in(KEY, index) for index in range(num_samples)]
    return np.stack([jax.random.normal(key, mean.shape, mean.dtype) for key in keys])


def log_softmax(f):
    return f - logsumexp(f, axis=-1, keepdims=True)


@pytest.mark.usefixtures("x64")
def test_logarithms_of_averages_of_the_same_draws():
    mean, std = np.array([[0.3, -1.0, 2.0], [900.0, 0.0, -900.0]]), np.full((2, 3), 1.5)
    z = draws(mean, 20)
    expected = logsumexp(log_softmax(mean + std * z), axis=0) - np.log(20)
    found = monte_carlo.average_softmax(mean, std**2, KEY, 20)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert expected[1].min() < -1500  # far below the smallest number: -745 in natural logarithms


@pytest.mark.usefixtures("x64")
def test_log_odds_of_averages_of_the_same_draws():
    mean, std = np.array([0.7, 800.0, -800.0]), np.array([2.0, 3.0, 3.0])
    f = mean + std * draws(mean, 20)
    one, zero = (logsumexp(-np.logaddexp(0, sign * f), axis=0) for sign in (-1, 1))
    found = monte_carlo.average_sigmoid(mean, std, KEY, 20)
    np.testing.assert_allclose(found, one - zero, rtol=1e-12)


@pytest.mark.slow
def test_the_size_of_the_blocks_does_not_show(monkeypatch):
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=(6, 4)), rng.normal(size=(6, 4, 4))
    args = mean.astype("float32"), (root @ root.swapaxes(1, 2)).astype("float32"), KEY, 50
    whole = monte_carlo.average_softmax(*args)
    # 7 blocks of 7 draws and one of 1.
    monkeypatch.setattr(monte_carlo, "_BLOCK_ENTRIES", 7 * mean.size)
    jax.clear_caches()
    np.testing.assert_allclose(monte_carlo.average_softmax(*args), whole, atol=1e-5)
    jax.clear_caches()


def test_no_draws_are_refused():
    with pytest.raises(ValueError, match="Found num_samples=0, expected at least 1"):
        monte_carlo.average_softmax(np.zeros((1, 2)), np.ones((1, 2)), KEY, 0)
