r"""The distribution of a model's outputs at N inputs: Gaussian, or given by weight draws."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.targets.expectation import normal_expectation, spread_by
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class Outputs:
    r"""Moments of the outputs $f(x)$ at N inputs, and optionally the draws they come from.

    Parameters
    ----------
    mean, var
        `(N, *event)`.
    cov
        `(N, C, C)` over flattened outputs; `None` where only variances are known.
    joint_cov
        `(N, C, N, C)` between all inputs, if it was computed.
    draws
        `(N, K, *event)`, the outputs at K draws of the weights. Without them the distribution is
        the Gaussian with these moments.
    """

    mean: Float[Array, "N *event"]
    var: Float[Array, "N *event"]
    cov: Float[Array, "N C C"] | None = None
    joint_cov: Float[Array, "N C N C"] | None = None
    draws: Float[Array, "N K *event"] | None = None

    @property
    def std(self) -> Float[Array, "N *event"]:
        """The standard deviations."""
        return jnp.sqrt(self.var)

    def expectation(self, fn: Callable[[Array], PyTree]) -> PyTree:
        r"""Return $\mathbb E[\mathrm{fn}(f)]$, elementwise: by quadrature, or over the draws.

        Parameters
        ----------
        fn
            From outputs `(N, *event)` to a pytree of arrays of that shape.
        """
        if self.draws is None:
            return normal_expectation(fn, self.mean, self.std)
        return jax.tree.map(lambda a: a.mean(axis=1), jax.vmap(fn, 1, 1)(self.draws))

    def moments(self, fn: Callable[[Array], Array]) -> tuple[Array, Array]:
        r"""Return mean and variance of $\mathrm{fn}(f)$, elementwise.

        Parameters
        ----------
        fn
            As for `expectation`, with one array as its result.
        """
        if self.draws is not None:
            values = jax.vmap(fn, 1, 1)(self.draws)
            return values.mean(axis=1), values.var(axis=1, ddof=1)
        reference = fn(self.mean)  # subtracted first, so that squares cancel less

        def powers(f):
            shift = fn(f) - reference
            return shift, shift**2

        shift, square = self.expectation(powers)
        return reference + shift, jnp.maximum(square - shift**2, 0)

    def sample(self, key: PRNGKeyArray, num_samples: int) -> Float[Array, "K N *event"]:
        """Draw outputs from the Gaussian with these moments, independently between inputs.

        Parameters
        ----------
        key, num_samples
            For the draws, K. With `cov` the outputs of one input are drawn jointly.
        """
        shape = (num_samples, *self.mean.shape)
        z = jax.random.normal(key, shape, self.mean.dtype).reshape(num_samples, len(self.mean), -1)
        flat = self.var.reshape(len(self.mean), -1) if self.cov is None else self.cov
        return self.mean + jax.vmap(spread_by(flat))(z).reshape(shape)

    def scaled(self, factor: Float[Array, "*event"]) -> "Outputs":
        """Return the distribution with deviations from the mean multiplied by a factor.

        Parameters
        ----------
        factor
            One number, or one for each output of an example.
        """
        rows = jnp.broadcast_to(factor, self.mean.shape[1:]).reshape(-1)
        cov, joint = self.cov, self.joint_cov
        return Outputs(
            self.mean,
            self.var * factor**2,
            None if cov is None else cov * rows[:, None] * rows,
            None if joint is None else joint * rows[:, None, None] * rows,
        )

    def without_draws(self) -> "Outputs":
        """Return the same with the moments only."""
        return tree.replace(self, draws=None)


def outputs_of_draws(draws: Float[Array, "N K *event"], full: bool) -> Outputs:
    """Return the outputs with the sample moments of K draws.

    Parameters
    ----------
    draws
        The outputs at draws of the weights.
    full
        Whether to compute covariances over flattened outputs too.
    """
    mean, num = draws.mean(axis=1), draws.shape[1]
    flat = (draws - mean[:, None]).reshape(*draws.shape[:2], -1)
    var = jnp.sum(flat**2, axis=1).reshape(mean.shape) / (num - 1)
    cov = None
    if full:
        with jax.default_matmul_precision("highest"):
            cov = jnp.einsum("nkc,nkd->ncd", flat, flat) / (num - 1)
    return Outputs(mean, var, cov, draws=draws)
