"""Likelihoods of counts."""

import jax
import jax.numpy as jnp

from laplace_kit.likelihood.base import Factorized, check_same_shape
from laplace_kit.targets.count_laws import PoissonLaw
from laplace_kit.targets.mixtures import mixture
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class Poisson(Factorized):
    r"""Counts with log-rate `f`: $-\log p = e^f - y f + \log y!$, $L = \mathrm{diag}(e^f)$.

    For counts with different exposures, add the logarithms of the exposures to the model's outputs
    as an offset; see `laplace_kit.model.with_offset`.
    """

    def entry_shape(self, event):
        return event

    def entry_losses(self, f, y):
        return jnp.exp(f) - y * f + jax.lax.lgamma(jnp.asarray(y, f.dtype) + 1)

    def valid_entries(self, f, y):
        return (y >= 0) & (y == jnp.floor(y))

    def to_outputs(self, entries, f):
        return entries

    def hessian_mv(self, f, y, u):
        return jnp.exp(f) * u

    def hessian_sqrt_mv(self, f, y, w):
        return jnp.exp(0.5 * f) * w

    def sample(self, key, f):
        return jax.random.poisson(key, jnp.exp(f)).astype(f.dtype)

    def check_shapes(self, outputs, targets):
        check_same_shape("Poisson", outputs, targets)

    def targets(self, outputs):
        return mixture(outputs, PoissonLaw())

    @property
    def support(self):
        return "counts 0, 1, 2, ..."
