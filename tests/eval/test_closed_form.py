"""Logits of the links in closed form, against their formulas in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from laplace_kit.eval.closed_form import LOGITS

RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=(3, 4))
ROOT = RNG.normal(size=(3, 4, 4))
COV = ROOT @ ROOT.swapaxes(1, 2)
VAR = np.diagonal(COV, axis1=1, axis2=2)


def pairs(mean, cov):
    """Return minus the log of the summed pairwise probits, one example at a time."""
    logits = np.empty_like(mean)
    for n, (m, s) in enumerate(zip(mean, cov, strict=True)):
        for k in range(len(m)):
            var = s[k, k] + np.diagonal(s) - 2 * s[k]
            logits[n, k] = -special.logsumexp((m - m[k]) / np.sqrt(1 + np.pi / 8 * var))
    return logits


@pytest.mark.parametrize("name", ["probit", "mean_field_1", "mean_field_2"])
def test_formulas(name, x64):
    diagonal = np.stack([np.diag(v) for v in VAR])
    expected = {
        "probit": MEAN / np.sqrt(1 + np.pi / 8 * VAR),
        "mean_field_1": pairs(MEAN, diagonal),
        "mean_field_2": pairs(MEAN, COV),
    }[name]
    np.testing.assert_allclose(
        LOGITS[name](jnp.asarray(MEAN), jnp.asarray(COV)), expected, rtol=1e-12
    )


@pytest.mark.parametrize("name", LOGITS)
def test_without_uncertainty_they_are_the_means_up_to_a_constant(name, x64):
    found = np.asarray(LOGITS[name](jnp.asarray(MEAN), jnp.zeros(COV.shape)))
    np.testing.assert_allclose(
        special.log_softmax(found, axis=1), special.log_softmax(MEAN, axis=1), rtol=1e-10
    )
