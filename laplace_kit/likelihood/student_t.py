"""The likelihood of regression with heavy-tailed noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Num

from laplace_kit import tree
from laplace_kit.host import fetch_array
from laplace_kit.likelihood.base import Factorized, check_same_shape
from laplace_kit.targets.logarithms import log_gamma_ratio
from laplace_kit.targets.student_t import student_t
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class StudentT(Factorized):
    r"""Regression with Student-t noise, $y = f + s\, t_\nu$, robust to outliers.

    $$-\log p(y \mid f) = \sum_c \frac{\nu + 1}{2} \log \Big(1 + \frac{(y_c - f_c)^2}{\nu s^2}\Big)
        + \log \frac{\Gamma(\nu / 2) \sqrt{\nu \pi}\, s}{\Gamma((\nu + 1) / 2)}$$

    Its Hessian is negative at residuals beyond $\sqrt\nu s$, so that $L$ is the expected one, over
    $y \sim p(y \mid f)$: $\mathrm{diag}\big((\nu + 1) / ((\nu + 3) s^2)\big)$. The GGN is then the
    Fisher matrix, as for `HeteroscedasticGaussian`; `curvature="hessian"` uses that of the loss.

    Parameters
    ----------
    scale
        $s > 0$, in the units of `y`: one number, or an array that broadcasts to one example's
        outputs. The noise's standard deviation is $s \sqrt{\nu / (\nu - 2)}$.
    degrees_of_freedom
        $\nu > 0$, a number. Up to 2 the variance is infinite. Both are leaves.

    Raises
    ------
    ValueError
        If `scale` or `degrees_of_freedom` is not positive and finite.

    References
    ----------
    Lange, Little and Taylor (1989), Robust statistical modeling using the t distribution.
    """

    scale: Num[ArrayLike, "..."] = 1.0
    degrees_of_freedom: Num[ArrayLike, "..."] = 4.0

    def __post_init__(self):
        for name, remedy in (
            ("scale", "the scale of the noise in the units of the targets, one or one per output"),
            (
                "degrees_of_freedom",
                "one number, small for heavy tails; normal noise is lk.Gaussian",
            ),
        ):
            found = getattr(self, name)
            if tree.is_concrete(found) and not _are_positive(fetch_array(found)):
                raise ValueError(
                    f"Found {name}={found}, expected positive, finite numbers: {remedy}."
                )
        if np.ndim(self.degrees_of_freedom):
            raise ValueError(
                f"Found degrees_of_freedom of shape {np.shape(self.degrees_of_freedom)}, expected "
                "one number; only scale= may differ between outputs."
            )

    def entry_shape(self, event):
        return event

    def entry_losses(self, f, y):
        nu, scale = self._degrees(f), self._scale(f)
        log_kernel = (nu + 1) / 2 * jnp.log1p(((y - f) / scale) ** 2 / nu)
        log_ratio = log_gamma_ratio(nu / 2, jnp.asarray(0.5, nu.dtype))
        return log_kernel - log_ratio + 0.5 * jnp.log(math.pi * nu) + jnp.log(scale)

    def valid_entries(self, f, y):
        return jnp.isfinite(y)

    def to_outputs(self, entries, f):
        return entries

    def hessian_mv(self, f, y, u):
        return self._fisher(f) * u

    def hessian_sqrt_mv(self, f, y, w):
        return jnp.sqrt(self._fisher(f)) * w

    def sample(self, key, f):
        return f + self._scale(f) * jax.random.t(key, self._degrees(f), f.shape, f.dtype)

    def check_shapes(self, outputs, targets):
        check_same_shape("StudentT", outputs, targets)
        shape, event = jnp.shape(self.scale), outputs[1:]
        if len(shape) > len(event) or any(
            own not in (1, other) for own, other in zip(shape[::-1], event[::-1], strict=False)
        ):
            raise ValueError(
                f"StudentT: found a scale of shape {shape} for outputs {outputs}, expected one "
                f"number or an array that broadcasts to the outputs of one example, {event}."
            )

    def targets(self, outputs):
        return student_t(outputs, self._scale(outputs.mean), self._degrees(outputs.mean))

    @property
    def support(self):
        return "finite numbers"

    def _fisher(self, f) -> Float[Array, "..."]:
        nu = self._degrees(f)
        return (nu + 1) / ((nu + 3) * self._scale(f) ** 2)

    def _scale(self, f) -> Float[Array, "..."]:
        return jnp.asarray(self.scale, f.dtype)

    def _degrees(self, f) -> Float[Array, ""]:
        return jnp.asarray(self.degrees_of_freedom, f.dtype)


def _are_positive(values: np.ndarray) -> bool:
    return bool(np.all((values > 0) & np.isfinite(values)))
