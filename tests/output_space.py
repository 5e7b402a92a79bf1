"""Curvature in the outputs of one example as dense matrices, against derivatives of a loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import twins


@functools.partial(jax.jit, static_argnames="method")
def matrix(likelihood, method, f, y):
    """Return the columns that a product makes of the unit vectors, flattened."""
    product = functools.partial(getattr(likelihood, method), f, y)
    units = jnp.eye(f.size, dtype=f.dtype).reshape(f.size, *f.shape)
    return jax.vmap(product, out_axes=-1)(units).reshape(f.size, f.size)


@jax.jit
def forms(likelihood, f, y):
    """Return value, gradient, Hessian and the square of its root."""
    root = matrix(likelihood, "hessian_sqrt_mv", f, y)
    product = matrix(likelihood, "hessian_mv", f, y)
    value = likelihood.negative_log_prob(f, y)
    return value, likelihood.output_gradient(f, y), product, root @ root.T


@jax.jit
def _forms_and_diagonal(likelihood, f, y):
    return *forms(likelihood, f, y), likelihood.hessian_diagonal(f, y)


@functools.partial(jax.jit, static_argnames="loss")
def _definitions(loss, f, y):
    hessian = jax.hessian(loss)(f, y).reshape(f.size, f.size)
    diagonal = jnp.diagonal(hessian).reshape(f.shape)
    return loss(f, y), jax.grad(loss)(f, y), hessian, hessian, diagonal


def assert_derivatives(likelihood, f, y, loss, *, dtype: str = "float64") -> None:
    """Check value, gradient and Hessian, root and diagonal of a likelihood against a loss."""
    found = _forms_and_diagonal(likelihood, f, y)
    assert all(array.dtype == dtype for array in found)
    for array, expected in zip(found, _definitions(loss, f, y), strict=True):
        twins.assert_close(array, expected, dtype=dtype)


@jax.jit
def _draws(likelihood, f, y, keys):
    return jax.vmap(lambda key: likelihood.sampled_gradient(key, f, y))(keys)


def assert_scores(likelihood, f, y, *, num: int = 20_000) -> None:
    """Check Fisher's identities: sampled gradients have mean zero and the covariance L."""

    keys = jax.random.split(jax.random.key(3), num)
    gradients = np.asarray(_draws(likelihood, f, y, keys), np.float64).reshape(num, -1)
    outer = np.einsum("mi,mj->mij", gradients, gradients)
    hessian = matrix(likelihood, "hessian_mv", f, y)
    for terms, expected in ((gradients, np.zeros(f.size)), (outer, np.asarray(hessian))):
        error_bar = terms.std(axis=0) / num**0.5
        assert (np.abs(terms.mean(axis=0) - expected) < 4.5 * error_bar + 1e-12).all()
