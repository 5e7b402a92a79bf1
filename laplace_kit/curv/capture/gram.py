r"""Products of the rows of two layers, $\sum_n \sum_r J_{nr} J_{nr}'^\top$."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from laplace_kit.curv.capture.blocks import Block


def gram(left: Block, right: Block) -> Float[Array, "P Q"]:
    r"""Return $\sum_n \sum_r J_{nr} J_{nr}'^\top$ between two layers, in the order of matrices.

    Takes whichever of two orders needs less memory: inputs with inputs and gradients with gradients
    first, which saves a factor R of operations, or rows multiplied out. For a layer with itself,
    the former takes each pair once, a quarter of the operations.
    """
    (a, g, shape), (b, h, other_shape) = left.single(), right.single()
    (num, columns), size, other_size = g.shape[:2], math.prod(shape), math.prod(other_shape)
    pairs = a[0].size * b[0].size + g[0, 0].size * h[0, 0].size
    if columns * (size + other_size) <= pairs:
        rows = jnp.einsum("bgi,brgo->brgio", a, g).reshape(num * columns, size)
        other = jnp.einsum("bhj,brhp->brhjp", b, h).reshape(num * columns, other_size)
        return rows.T @ other
    if left is right and shape[0] == 1:
        return _gram_of_pairs(a[:, 0], g[:, :, 0])
    inputs = jnp.einsum("bgi,bhj->bgihj", a, b)
    outputs = jnp.einsum("brgo,brhp->bgohp", g, h)
    return jnp.einsum("bgihj,bgohp->giohjp", inputs, outputs).reshape(size, other_size)


def _gram_of_pairs(a: Float[Array, "B I"], g: Float[Array, "B R O"]) -> Float[Array, "IO IO"]:
    r"""Return $\sum_n a_n a_n^\top \otimes \sum_r g_{nr} g_{nr}^\top$ from its distinct entries."""
    width, out = a.shape[1], g.shape[2]
    (first, second), input_pairs = _pairs(width)
    outputs, output_pairs = _pairs(out)
    # Rows are gathered, and not columns, because they are contiguous.
    inputs = a.T[first] * a.T[second]
    gradients = jnp.einsum("bro,brp->opb", g, g)[outputs]
    distinct = gradients @ inputs.T
    total = distinct[output_pairs].T[input_pairs].reshape(width, width, out, out)
    return jnp.transpose(total, (0, 2, 1, 3)).reshape(width * out, width * out)


def _pairs(num: int) -> tuple[tuple[np.ndarray, np.ndarray], Int[Array, " M"]]:
    """Return the unordered pairs of indices, and for each entry of a matrix its pair's number."""
    index = jnp.arange(num)
    high, low = jnp.maximum(index[:, None], index), jnp.minimum(index[:, None], index)
    return np.tril_indices(num), (high * (high + 1) // 2 + low).ravel()
