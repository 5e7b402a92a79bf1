"""The curvature that labels will have is that of the likelihood; choices: `test_acquisition.py`."""

import jax.numpy as jnp
import numpy as np
import twins
from scipy import special

import laplace_kit as lk
from laplace_kit.eval.conditioning import curvature_root

NOISE = 0.5
RNG = np.random.default_rng(0)


def curvature_of_labels(probs: np.ndarray) -> np.ndarray:
    return np.einsum("nc,cd->ncd", probs, np.eye(probs.shape[1])) - np.einsum(
        "nc,nd->ncd", probs, probs
    )


def test_curvature_does_not_depend_on_labels_unless_the_loss_does(x64):
    f = RNG.normal(size=(5, 3))
    probs = special.softmax(f, axis=1)
    root = np.asarray(curvature_root(lk.Categorical(), jnp.asarray(f)))
    twins.assert_close(root @ root.mT, curvature_of_labels(probs))
    root = np.asarray(curvature_root(lk.Gaussian(noise_std=NOISE), jnp.asarray(f)))
    twins.assert_close(root @ root.mT, np.tile(np.eye(3) / NOISE**2, (5, 1, 1)))
    weights = np.asarray([0.5, 1.0, 3.0])
    root = np.asarray(curvature_root(lk.Categorical(class_weights=weights), jnp.asarray(f)))
    factor = (root @ root.mT)[:, 0, 0] / curvature_of_labels(probs)[:, 0, 0]
    assert np.all((factor >= 0.5) & (factor <= 3.0))
    assert not np.allclose(factor, 1)
