"""The likelihood of counts with more variance than Poisson's."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit import tree
from laplace_kit.likelihood.base import Factorized, check_same_shape
from laplace_kit.targets.count_laws import (
    NegativeBinomialLaw,
    negative_binomial_log_prob,
    negative_binomial_sample,
)
from laplace_kit.targets.mixtures import mixture
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class NegativeBinomial(Factorized):
    r"""Overdispersed counts with log-mean `f`: mean $\mu = e^f$, variance $\mu + a \mu^2$ (NB2).

    With $r = 1 / a$ and $\pi = \mu / (\mu + r)$,

    $$-\log p(y \mid f) = -y \log \pi - r \log (1 - \pi) - \log \binom{y + r - 1}{y}.$$

    The loss is convex in `f`, and its Hessian $L = \mathrm{diag}((y + r)\, \pi (1 - \pi))$ depends
    on `y`, so that the GGN is not the Fisher matrix, whose entries are $\mu / (1 + a \mu)$.

    Parameters
    ----------
    dispersion
        $a > 0$, a number; towards zero the counts become Poisson. A leaf, so it can be
        differentiated.

    Raises
    ------
    ValueError
        If `dispersion` is not one positive, finite number.

    References
    ----------
    Cameron and Trivedi (2013), Regression analysis of count data, section 3.3.
    """

    dispersion: Num[ArrayLike, "..."] = 1.0

    def __post_init__(self):
        found = self.dispersion
        if tree.is_concrete(found) and not (np.ndim(found) == 0 and 0 < found < np.inf):
            raise ValueError(
                f"Found dispersion={found}, expected one positive, finite number a, for counts of "
                "variance mu + a mu^2; without overdispersion use lk.Poisson()."
            )

    def entry_shape(self, event):
        return event

    def entry_losses(self, f, y):
        return -negative_binomial_log_prob(f, y, self._dispersion(f))

    def valid_entries(self, f, y):
        return (y >= 0) & (y == jnp.floor(y))

    def to_outputs(self, entries, f):
        return entries

    def hessian_mv(self, f, y, u):
        return self._hessian(f, y) * u

    def hessian_sqrt_mv(self, f, y, w):
        return jnp.sqrt(self._hessian(f, y)) * w

    def sample(self, key, f):
        return negative_binomial_sample(key, f, self._dispersion(f))

    def check_shapes(self, outputs, targets):
        check_same_shape("NegativeBinomial", outputs, targets)

    def targets(self, outputs):
        return mixture(outputs, NegativeBinomialLaw(self._dispersion(outputs.mean)))

    @property
    def support(self):
        return "counts 0, 1, 2, ..."

    def _hessian(self, f, y) -> Float[Array, "*event"]:
        dispersion = self._dispersion(f)
        logit = f + jnp.log(dispersion)
        return (y + 1 / dispersion) * jax.nn.sigmoid(logit) * jax.nn.sigmoid(-logit)

    def _dispersion(self, f) -> Float[Array, ""]:
        return jnp.asarray(self.dispersion, f.dtype)
