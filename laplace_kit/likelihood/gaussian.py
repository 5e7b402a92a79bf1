"""Gaussian likelihoods of independent outputs: the noise is known, estimated or predicted."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit import tree
from laplace_kit.host import fetch_array
from laplace_kit.likelihood.base import Factorized, check_one_array, check_same_shape
from laplace_kit.targets.normal import NormalTargets
from laplace_kit.targets.normal_mixture import normal_mixture
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass(static=("known",))
class Gaussian(Factorized):
    r"""Regression: $-\log p = \sum_c (y_c - f_c)^2 / (2 s_c^2) + \tfrac12 \log(2 \pi s_c^2)$.

    Parameters
    ----------
    noise_std
        The standard deviation $s > 0$ of the observation noise, in the units of `y`: one number, or
        an array that broadcasts to one example's outputs `(*event,)`, typically one for each
        output, `(C,)`. A leaf, so it can be differentiated. `None` if it is unknown: it is then one
        until tuning estimates it.
    known
        Whether tuning keeps `noise_std` unless told otherwise; if not, it is the current estimate,
        or a first guess. Always false if `noise_std` is `None`.

    Raises
    ------
    ValueError
        If `noise_std` is not positive and finite.
    """

    noise_std: Num[ArrayLike, "..."] | None = None
    known: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self):
        if self.noise_std is None:
            object.__setattr__(self, "noise_std", 1.0)
            object.__setattr__(self, "known", False)
        std = self.noise_std
        if tree.is_concrete(std) and not np.all((fetch_array(std) > 0) & np.isfinite(std)):
            raise ValueError(
                f"Found noise_std={std}, expected positive, finite numbers: the standard deviation "
                "of the observation noise in the units of the targets, one or one per output."
            )

    def entry_shape(self, event):
        return event

    def entry_losses(self, f, y):
        variance = self._std(f) ** 2
        return 0.5 * ((y - f) ** 2 / variance + jnp.log(2 * jnp.pi * variance))

    def valid_entries(self, f, y):
        return jnp.isfinite(y)

    def to_outputs(self, entries, f):
        return entries

    def hessian_mv(self, f, y, u):
        return u / self._std(f) ** 2

    def hessian_sqrt_mv(self, f, y, w):
        return w / self._std(f)

    def sample(self, key, f):
        return f + self._std(f) * jax.random.normal(key, f.shape, f.dtype)

    def check_shapes(self, outputs, targets):
        check_same_shape("Gaussian", outputs, targets)
        shape, event = jnp.shape(self.noise_std), outputs[1:]
        num = len(event)
        fits = len(shape) <= num and all(
            own in (1, other) for own, other in zip(shape, event[num - len(shape) :], strict=False)
        )
        if not fits:
            raise ValueError(
                f"Gaussian: found noise_std of shape {shape} for outputs {outputs}, expected one "
                f"number or an array that broadcasts to the outputs of one example, {event}; pass "
                "one standard deviation for each output."
            )

    def targets(self, outputs):
        noise = jnp.broadcast_to(self._std(outputs.mean) ** 2, outputs.mean.shape)
        return NormalTargets(outputs, noise)

    @property
    def support(self):
        return "finite numbers"

    def _std(self, f):
        return jnp.asarray(self.noise_std, f.dtype)


@pytree_dataclass()
class HeteroscedasticGaussian(Factorized):
    r"""Regression with input-dependent noise: the outputs are means and log-precisions.

    For outputs $f = (m, s)$ `(..., 2 C)`, with the C means first, and targets `(..., C)`,

    $$-\log p(y \mid f) = \tfrac12 \sum e^{s} (y - m)^2 - s + \log 2 \pi.$$

    Its Hessian is indefinite, so $L$ is the expected Hessian over $y \sim p(y \mid f)$,
    $\mathrm{diag}(e^{s}, \tfrac12)$. The GGN is then the Fisher matrix, as for other likelihoods.

    References
    ----------
    Immer et al. (2023), Effective Bayesian heteroscedastic regression with deep neural networks.
    """

    def entry_shape(self, event):
        return (*event[:-1], event[-1] // 2)

    def entry_losses(self, f, y):
        mean, log_precision = _halves(f)
        squares = jnp.exp(log_precision) * (y - mean) ** 2
        return 0.5 * (squares - log_precision + math.log(2 * math.pi))

    def valid_entries(self, f, y):
        return jnp.isfinite(y)

    def to_outputs(self, entries, f):
        return jnp.concatenate([entries, entries], axis=-1)

    def hessian_mv(self, f, y, u):
        return self._expected(f) * u

    def hessian_diagonal(self, f, y):
        return self._expected(f)

    def hessian_sqrt_mv(self, f, y, w):
        return jnp.sqrt(self._expected(f)) * w

    def sample(self, key, f):
        mean, log_precision = _halves(f)
        return mean + jnp.exp(-log_precision / 2) * jax.random.normal(key, mean.shape, f.dtype)

    def check_shapes(self, outputs, targets):
        check_one_array(targets)
        if len(outputs) < 2 or outputs[-1] % 2 or targets.shape != self.entry_shape(outputs):
            raise ValueError(
                f"HeteroscedasticGaussian: found outputs of shape {outputs} and targets of shape "
                f"{targets.shape}, expected outputs (N, 2 C), the C means before the C "
                "log-precisions, and targets (N, C); return both from the model and reshape the "
                "targets."
            )

    def targets(self, outputs):
        return normal_mixture(outputs)

    @property
    def support(self):
        return "finite numbers"

    def _expected(self, f):
        _, log_precision = _halves(f)
        return jnp.concatenate([jnp.exp(log_precision), jnp.full_like(log_precision, 0.5)], axis=-1)


def _halves(f: Float[Array, "*event"]) -> tuple[Array, Array]:
    mean, log_precision = jnp.split(f, 2, axis=-1)
    return mean, log_precision
