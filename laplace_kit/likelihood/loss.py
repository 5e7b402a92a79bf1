"""A likelihood from any loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from laplace_kit.likelihood.base import Likelihood
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass(static=("loss", "sampler"))
class FromLoss(Likelihood):
    r"""A likelihood from any twice-differentiable loss: $-\log p(y \mid f) = \mathrm{loss}(f, y)$.

    Parameters
    ----------
    loss
        `(f, y) -> scalar` for one example (vmapped over examples), taken to hold its normaliser.
        It must be convex in `f` where a square root of its Hessian is asked for (diagonals, full
        and sampled curvature): the root of an indefinite Hessian is NaN, never a clipped one.
    sampler
        `(key, f) -> y` for one example; only the Monte-Carlo Fisher needs it.
    """

    loss: Callable
    sampler: Callable | None = None

    def negative_log_prob(self, f, y):
        return jnp.asarray(self.loss(f, y))

    def hessian_mv(self, f, y, u):
        return jax.jvp(lambda z: self.output_gradient(z, y), (f,), (u,))[1]

    def hessian_sqrt_mv(self, f, y, w):
        flat, shape = jnp.ravel(f), f.shape
        hessian = jax.hessian(lambda z: self.negative_log_prob(z.reshape(shape), y))(flat)
        values, vectors = jnp.linalg.eigh(hessian)
        # Curvature of a confident prediction is a small difference of numbers near one.
        rounding = flat.size * jnp.finfo(f.dtype).eps * jnp.maximum(jnp.abs(values).max(), 1)
        roots = jnp.sqrt(jnp.where(values < -rounding, values, jnp.maximum(values, 0)))
        with jax.default_matmul_precision("highest"):
            return (vectors @ (roots * (vectors.T @ jnp.ravel(w)))).reshape(shape)

    def sample(self, key, f):
        if self.sampler is None:
            raise TypeError(
                "FromLoss: found no sampler, expected one for sampled labels; pass "
                "FromLoss(loss, sampler=lambda key, f: ...) or use curvature='ggn'."
            )
        return self.sampler(key, f)

    def check_shapes(self, outputs, targets):
        for leaf in jax.tree.leaves(targets):
            if leaf.shape[:1] != outputs[:1]:
                raise ValueError(
                    f"FromLoss: found targets of shape {leaf.shape} for outputs {outputs}, "
                    f"expected {outputs[0]} targets on the leading axis."
                )

    def is_valid(self, f, y):
        return jnp.isfinite(self.negative_log_prob(f, y))

    @property
    def support(self):
        return "targets for which the loss is finite"
