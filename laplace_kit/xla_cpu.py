"""Rewrites of operations that XLA compiles badly for a CPU.

The platform is known when a program is lowered and not when it is traced, as it may be placed on
another device than the default. Each rewritten operation is therefore a choice by platform; a
compiled program contains only the branch taken.

**Convolutions.** XLA:CPU runs convolutions fast only in NHWC/HWIO layout. It converts the
derivatives of convolutions to it, but not inside loops, where they take ten times as long. The
transpositions are therefore written out.

**Tangent passes.** These contain only products and sums, which XLA:CPU fuses into one kernel, from
the first layer to the last: it starts only once the whole forward pass is done, although only its
last products need that. A rounding between the products prevents the fusion.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from laplace_kit.program import Step, rewritten


def adapted(fn: Callable[..., PyTree], *, is_linear: bool = False) -> Callable[..., PyTree]:
    """Return the same function, rewritten to be fast on a CPU.

    Parameters
    ----------
    fn
        As for `rewritten`: the body of a loop over examples, or a tangent pass.
    is_linear
        Whether it is a tangent pass, whose matrix products are then not fused; otherwise its
        convolutions have channels last and kernels as (H, W, I, O).

    Returns
    -------
    fn
        With the same values up to rounding; on other platforms the same program.
    """
    return rewritten(fn, _LINEAR if is_linear else _ANY)


def is_meant_for_cpu(*args: PyTree) -> bool:
    """Return whether a program with these arguments is expected to run on a CPU.

    For choices before tracing, such as chunk sizes. The device of committed arrays decides; without
    any, and for tracers, JAX's default device.
    """
    arrays = (leaf for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array))
    for array in arrays:
        if not isinstance(array, jax.core.Tracer) and array.committed:
            return all(device.platform == "cpu" for device in array.devices())
    default = jax.config.jax_default_device
    if default is None or isinstance(default, str):
        return (default or jax.default_backend()) == "cpu"
    return default.platform == "cpu"


# --- convolutions -------------------------------------------------------------------------------


def _convolve(step: Step, lhs: Array, rhs: Array) -> Array:
    if _is_canonical(step):
        return step.apply(lhs, rhs)[0]
    # Derivatives keep only the operands, and not the residuals of both branches.
    choose = partial(
        jax.lax.platform_dependent,
        cpu=partial(_convolve_channels_last, step),
        default=lambda lhs, rhs: step.apply(lhs, rhs)[0],
    )
    return jax.checkpoint(choose, prevent_cse=False)(lhs, rhs)


def _convolve_channels_last(step: Step, lhs: Array, rhs: Array) -> Array:
    """Transpose the operands, convolve, and transpose the result back."""
    lhs_spec, rhs_spec, out_spec = step.params["dimension_numbers"]
    images, results = _channels_last(lhs_spec), _channels_last(out_spec)
    kernels = (*rhs_spec[2:], rhs_spec[1], rhs_spec[0])
    params = {**step.params, "dimension_numbers": _canonical(lhs.ndim)}
    sharding = params.get("out_sharding")
    if sharding is not None:  # as derivatives have one wherever their operands do
        axes = [sharding.spec[axis] for axis in results]
        params["out_sharding"] = NamedSharding(sharding.mesh, PartitionSpec(*axes))
    operands = jax.lax.transpose(lhs, images), jax.lax.transpose(rhs, kernels)
    (found,) = step._replace(params=params).apply(*operands)
    return jax.lax.transpose(found, np.argsort(results))


def _is_canonical(step: Step) -> bool:
    numbers = step.params["dimension_numbers"]
    return numbers == _canonical(len(numbers.lhs_spec))


def _canonical(ndim: int) -> jax.lax.ConvDimensionNumbers:
    places = tuple(range(1, ndim - 1))
    plain = (0, ndim - 1, *places)
    kernels = (ndim - 1, ndim - 2, *(place - 1 for place in places))
    return jax.lax.ConvDimensionNumbers(plain, kernels, plain)


def _channels_last(spec: Sequence[int]) -> tuple[int, ...]:
    """Return the axes in the order batch, space, channels, from batch, channels, space."""
    return (spec[0], *spec[2:], spec[1])


# --- tangent passes -----------------------------------------------------------------------------


def _unfused_product(step: Step, *operands: Array | np.ndarray) -> Array:
    """Multiply, then round to the same precision, which changes nothing but prevents fusion."""
    (product,) = step.apply(*operands)
    if not jnp.issubdtype(product.dtype, jnp.floating):
        return product
    return jax.lax.platform_dependent(product, cpu=_rounded, default=_unchanged)


def _rounded(product: Array) -> Array:
    kind = jnp.finfo(product.dtype)
    return jax.lax.reduce_precision(product, kind.nexp, kind.nmant)


def _unchanged(product: Array) -> Array:
    return product


_ANY = {"conv_general_dilated": _convolve}
_LINEAR = {"dot_general": _unfused_product}
