"""The demonstration runs, and shows what it says: a posterior that is better calibrated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laplace_kit import demo


def test_arms_are_spirals_around_which_nothing_foreign_lies():
    x, y = demo.spirals(np.random.default_rng(0), 500, noise=0.0)
    radius, angle = np.hypot(*x.T), np.arctan2(x[:, 1], x[:, 0])
    expected = 2 * np.pi * (y / demo.NUM_CLASSES + 0.3 * radius)
    np.testing.assert_allclose(np.cos(angle - expected), 1.0, atol=1e-5)
    assert x.dtype == np.float32
    assert set(y) == {0, 1, 2}
    far = np.hypot(*demo.far_away(np.random.default_rng(1), 500).T)
    assert radius.max() <= 2.0 < 4.0 <= far.min() <= far.max() <= 6.0


@pytest.mark.slow
def test_training_ends_near_the_mode_of_its_prior():
    rng = np.random.default_rng(0)
    x, y = demo.spirals(rng, demo.NUM_TRAINING, demo.NOISE)
    start = demo.initial_params(rng)

    def loss(params):
        logs = jax.nn.log_softmax(demo.model_fn(params, x))[jnp.arange(len(y)), y]
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return -logs.sum() + 0.5 * demo.PRIOR_PRECISION * squares

    def norm(params):
        return np.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jax.grad(loss)(params))))

    trained = demo.train(start, x, y)
    assert loss(trained) < 0.3 * loss(start)
    assert norm(trained) < 0.05 * norm(start)


@pytest.mark.slow
def test_the_posterior_is_better_calibrated_than_its_mode(tmp_path):
    la, report = demo.demo(tmp_path / "out")
    numbers = report.metrics
    assert la.num_data == demo.NUM_TRAINING
    assert report.index.is_file()
    assert set(numbers["shifted"]) == {"noisier"}
    assert set(numbers["ood"]) == {"far-away"}
    for metrics in (numbers, numbers["shifted"]["noisier"]):
        assert metrics["laplace"]["nll"] < metrics["map"]["nll"]
        assert metrics["laplace"]["ece"] < metrics["map"]["ece"]
    far = numbers["ood"]["far-away"]
    assert far["laplace"]["auroc"] > far["map"]["auroc"]
