"""Products as a JAX primitive, so that algorithms for matrices in memory also run over streams.

Algorithms of JAX and matfree trace a product, batch it, transpose it and loop over it. The
primitive batches to `matmat`, one pass over the data for all vectors in chunks that fit in memory,
and transposes to itself, as the matrix is self-adjoint. Inside `jit` it is lowered to the
operator's own product; outside, the operator is called, which may loop over batches on the host.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.placement import automatic


def on_host(fn: Callable, operator: SelfAdjointOperator, *args: Any) -> Any:
    r"""Return `fn(operator, *args)`, with loops on the host if the operator's data are a stream.

    In memory this is the plain call, with shardings left to the compiler. Over a stream, `jit` is
    disabled during the call: `lax` loops and branches become Python's, array operations run one by
    one, and only the products, by `product(operator)`, are compiled.

    Parameters
    ----------
    fn
        Usually a jitted function; it must take products by `product(operator)`.
    operator
        In memory, or over a stream; over a stream not inside a JAX transformation.
    args
        Further arguments of `fn`, arrays or static ones.

    Returns
    -------
    result
        The result of `fn`.
    """
    if operator.in_memory:
        arrays = {place: arg for place, arg in enumerate(args) if _has_arrays(arg)}

        def call(operator, arrays):
            return fn(operator, *(arrays.get(place, arg) for place, arg in enumerate(args)))

        return automatic(call, operator, arrays)
    with jax.disable_jit(True):
        return fn(operator, *args)


def _has_arrays(arg: Any) -> bool:
    return any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(arg))


def product(operator: SelfAdjointOperator) -> Callable[[Array], Array]:
    r"""Return $v \mapsto A v$ on flat vectors `(P,)`, in their dtype, as one primitive.

    Under `vmap` over vectors it is `operator.matmat`: one pass over the data for all. It can be
    differentiated in the vector, in memory also in the operator's arrays, and transposed.

    Parameters
    ----------
    operator
        Any self-adjoint operator.

    Returns
    -------
    mv
        A function `(P,) -> (P,)`, or `(K, P) -> (K, P)` for K vectors. Cost: one product each.
    """
    leaves, structure = jax.tree.flatten(operator)
    leaves = [jnp.asarray(leaf) for leaf in leaves]

    def mv(v: Float[Array, "*K P"]) -> Float[Array, "*K P"]:
        return _product_p.bind(*leaves, v, structure=structure)

    return mv


_product_p = Primitive("operator_product")


def _apply(*leaves_and_vectors, structure):
    *leaves, vs = leaves_and_vectors
    operator = jax.tree.unflatten(structure, leaves)
    flat = jnp.asarray(vs, operator.dtype)
    if vs.ndim == 1:
        products = operator.mv(flat)
    else:
        products = operator.matmat(flat.reshape(-1, vs.shape[-1])).reshape(vs.shape)
    return products.astype(vs.dtype)


@_product_p.def_impl
def _evaluate(*args, structure):
    with jax.disable_jit(False):
        return _apply(*args, structure=structure)


@_product_p.def_abstract_eval
def _shape(*args, structure):
    del structure
    return jax.core.ShapedArray(args[-1].shape, args[-1].dtype)


def _batch(args, dims, *, structure):
    *leaves, vs = args
    if any(dim is not None for dim in dims[:-1]):  # several operators
        several = jax.vmap(lambda *args: _apply(*args, structure=structure), dims)
        return several(*args), 0
    return _product_p.bind(*leaves, jnp.moveaxis(vs, dims[-1], 0), structure=structure), 0


def _jvp(primals, tangents, *, structure):
    *leaves, vs = primals
    *leaf_tangents, vs_tangent = tangents
    terms = []
    if type(vs_tangent) is not ad.Zero:
        terms.append(_product_p.bind(*leaves, vs_tangent, structure=structure))
    if any(type(leaf) is not ad.Zero for leaf in leaf_tangents):
        leaf_tangents = [ad.instantiate_zeros(leaf) for leaf in leaf_tangents]
        terms.append(
            jax.jvp(lambda *args: _apply(*args, vs, structure=structure), leaves, leaf_tangents)[1]
        )
    return _product_p.bind(*primals, structure=structure), sum(terms)


def _transpose(cotangent, *args, structure):
    *leaves, _ = args
    return *(None for _ in leaves), _product_p.bind(*leaves, cotangent, structure=structure)


batching.primitive_batchers[_product_p] = _batch
ad.primitive_jvps[_product_p] = _jvp
ad.primitive_transposes[_product_p] = _transpose
mlir.register_lowering(_product_p, mlir.lower_fun(_apply, multiple_results=False))
