r"""Random probes of an operator, and averages over them, one pass over the data per block."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.matrix_free.host import on_host, product
from laplace_kit.errors import check_option
from laplace_kit.memory import Limits
from laplace_kit.tree import pytree_dataclass

# `(mv, probe) -> values`, the contribution of one probe; static, hence a module-level object.
Integrand = Callable[[Callable, Array], PyTree]


@pytree_dataclass(static=("num_products",))
class Estimate:
    r"""A random estimate with its standard error.

    `value` `()` or `(P,)`; `standard_error`, of the same shape, the estimated standard deviation of
    the value over keys; `num_products`, the number of products.
    """

    value: Float[Array, "*shape"]
    standard_error: Float[Array, "*shape"]
    num_products: int


@pytree_dataclass()
class _Moments:
    """Number, mean and sum of squared deviations of the values so far."""

    count: Float[Array, ""]
    mean: Array
    squares: Array


def monte_carlo(
    integrand: Integrand,
    operator: SelfAdjointOperator,
    *,
    key: PRNGKeyArray,
    num_samples: int,
    probes: str,
    num_steps: int = 1,
) -> Estimate:
    r"""Return the mean of an integrand over probes, by running moments over blocks of probes.

    Parameters
    ----------
    integrand
        `(mv, probe) -> values`, `()` or `(P,)`, as matfree's.
    operator
        In memory or over a stream.
    key, num_samples, probes
        The number of probes, at least 2, and their distribution.
    num_steps
        The number of products for each probe, whose vectors are all held at once.

    Returns
    -------
    estimate
        The mean over the probes and its standard error, in float32 or better.
    """
    check_num_samples(num_samples)
    size, num_blocks = _blocks(operator, num_samples, num_steps)
    vector = _vector_spec(operator)
    values = jax.eval_shape(lambda v: integrand(lambda u: u, v), vector)
    zeros = jnp.zeros(values.shape, values.dtype)
    first = _Moments(jnp.zeros((), values.dtype), zeros, zeros)

    def body(moments, i):
        args = key, i, size, num_samples, probes, integrand
        return on_host(_accumulate, operator, moments, *args), None

    moments = _loop(body, first, operator, num_blocks)[0]
    variance = moments.squares / (num_samples - 1)
    return Estimate(moments.mean, jnp.sqrt(variance / num_samples), num_steps * size * num_blocks)


def over_probes(
    integrand: Integrand,
    operator: SelfAdjointOperator,
    *,
    key: PRNGKeyArray,
    num_samples: int,
    probes: str,
    num_steps: int = 1,
) -> PyTree:
    """Return the integrand at each probe, along a leading axis; arguments as for `monte_carlo`."""
    check_num_samples(num_samples)
    size, num_blocks = _blocks(operator, num_samples, num_steps)

    def body(_, i):
        return None, on_host(_evaluate, operator, key, i, size, probes, integrand)

    stacked = _loop(body, None, operator, num_blocks)[1]
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num_samples], stacked)


def check_num_samples(num_samples: int) -> None:
    """Raise a `ValueError` if there are too few samples for a standard error."""
    if num_samples < 2:
        raise ValueError(
            f"Found num_samples={num_samples}, expected 2 or more, as the standard error comes "
            "from the differences between samples; raise it."
        )


# --- the probes ---------------------------------------------------------------------------------


def _signs(like: Array, *, num: int) -> Callable:
    import matfree.stochtrace

    return matfree.stochtrace.sampler_signs(like, num=num)


def _normal(like: Array, *, num: int) -> Callable:
    import matfree.stochtrace

    return matfree.stochtrace.sampler_normal(like, num=num)


def _sphere(like: Array, *, num: int) -> Callable:
    import matfree.stochtrace

    return matfree.stochtrace.sampler_sphere(like, num=num)


def _sparse_signs(like: Array, *, num: int) -> Callable:
    """Return a sampler of signs with unit variance, two thirds of whose entries are zero."""

    def sample(key):
        thirds = jax.random.randint(key, (num, *like.shape), -2, 4)
        return jnp.sqrt(3.0).astype(like.dtype) * jnp.where(thirds > 1, 5 - 2 * thirds, 0)

    return sample


# Entries have mean zero and variance one; they are independent, on the sphere only uncorrelated.
_SAMPLERS = {
    "signs": _signs,
    "normal": _normal,
    "sphere": _sphere,
    "sparse_signs": _sparse_signs,
}


def check_probes(probes: str) -> None:
    """Raise a `ValueError` for an unknown distribution of probes."""
    check_option("probes", probes, _SAMPLERS)


def draw(
    operator: SelfAdjointOperator, key: PRNGKeyArray, indices: Int[ArrayLike, " K"], probes: str
) -> Float[Array, "K P"]:
    """Return the probes of given indices, which do not depend on the division into blocks."""
    vector = _vector_spec(operator)
    return _draw(key, indices, vector.shape, vector.dtype, probes)


@partial(jax.jit, static_argnames=("shape", "dtype", "probes"))
def _draw(key, indices, shape, dtype, probes):
    sample = _SAMPLERS[probes](jnp.zeros(shape, dtype), num=1)
    return jax.vmap(lambda i: sample(jax.random.fold_in(key, i))[0])(indices)


def _vector_spec(operator):
    dtype = jnp.promote_types(operator.dtype, jnp.float32)
    return jax.ShapeDtypeStruct(operator.shape[:1], dtype)


# --- blocks of probes -----------------------------------------------------------------------------


def _blocks(operator, num_samples, num_steps):
    """Return size and number of the blocks: as few as memory allows, of equal size."""
    vector = _vector_spec(operator)
    row_bytes = (num_steps + 3) * vector.size * vector.dtype.itemsize
    num_blocks = -(-num_samples // Limits().chunk_size(row_bytes))
    return -(-num_samples // num_blocks), num_blocks


def _loop(body, first, operator, num_blocks):
    """Scan over the blocks on the host, or in a compiled loop inside a transformation."""
    if not tree.is_concrete(operator):
        return jax.lax.scan(body, first, jnp.arange(num_blocks))
    carry, outs = first, []
    for i in range(num_blocks):
        carry, out = body(carry, i)
        outs.append(out)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _evaluate(operator, key, i, size, probes, integrand):
    mv = product(operator)
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda z: integrand(mv, z))(
            draw(operator, key, i * size + jnp.arange(size), probes)
        )


@partial(jax.jit, static_argnums=(4, 5, 6, 7))
def _accumulate(operator, moments, key, i, size, num_samples, probes, integrand):
    """Merge the moments of a block (Chan, Golub and LeVeque, 1979); surplus probes weigh zero."""
    values = _evaluate(operator, key, i, size, probes, integrand)
    weights = (i * size + jnp.arange(size) < num_samples).astype(values.dtype)
    count = moments.count + weights.sum()
    mean = jnp.tensordot(weights, values, 1) / weights.sum()
    squares = jnp.tensordot(weights, jnp.square(values - mean), 1)
    step = mean - moments.mean
    return _Moments(
        count,
        moments.mean + step * weights.sum() / count,
        moments.squares + squares + jnp.square(step) * moments.count * weights.sum() / count,
    )
