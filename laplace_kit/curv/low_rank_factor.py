r"""Factors of wide sides: a low rank plus a diagonal, found in one pass and never multiplied out.

A factor $A = \sum_n a_n a_n^\top$ of width W is multiplied by K test vectors $\Omega$ while the
examples go by: the sketch $Y = A \Omega$ takes $W K$ numbers. Its Nyström approximation
$Y (\Omega^\top Y)^+ Y^\top \preceq A$ gives the R leading eigenvectors U and eigenvalues S. What
they leave of the diagonal, $d = \operatorname{diag}(A - U S U^\top) \ge 0$, is kept too: the factor
is $U S U^\top + \operatorname{diag}(d)$, with the diagonal of A. It is A itself where the rank of A
is at most R.

References
----------
Halko, Martinsson and Tropp (2011), Finding structure with randomness. Tropp, Yurtsever, Udell and
Cevher (2017), Fixed-rank approximation of a positive-semidefinite matrix from streaming data.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.curv.sides import sketch_size
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class LowRankFactor:
    r"""$U \operatorname{diag}(s) U^\top + \operatorname{diag}(d)$ for each of G groups.

    `vectors` are U, orthonormal; `values` $s \ge 0$ in falling order; `rest` $d \ge 0$.
    """

    vectors: Float[Array, "G W R"]
    values: Float[Array, "G R"]
    rest: Float[Array, "G W"]

    def to_dense(self) -> Float[Array, "G W W"]:
        """Return the matrices, for small models and tests."""
        with jax.default_matmul_precision("highest"):
            low_rank = (self.vectors * self.values[:, None]) @ self.vectors.mT
        return low_rank + jax.vmap(jnp.diag)(self.rest)


@pytree_dataclass()
class Sketch:
    r"""A sum over examples: `products` $A \Omega$ and `diagonal`, that of A, for G groups."""

    products: Float[Array, "G W K"]
    diagonal: Float[Array, "G W"]


@partial(jax.jit, static_argnames=("width", "rank", "dtype"))
def test_vectors(width: int, rank: int, dtype: jnp.dtype) -> Float[Array, "W K"]:
    r"""Return orthonormal vectors $\Omega$ in random directions, the same in every call."""
    shape = (width, sketch_size(rank, width))
    gaussian = jax.random.normal(jax.random.key(0), shape, dtype)
    with jax.default_matmul_precision("highest"):
        return jnp.linalg.qr(gaussian)[0]


def factor_of(sketch: Sketch, test: Float[Array, "W K"], rank: int) -> LowRankFactor:
    """Return the factor that a sketch determines, of at most this rank.

    Parameters
    ----------
    sketch
        The sum over all examples.
    test
        The test vectors that the sketch was made with.
    rank
        The number of eigenvectors to keep.

    Returns
    -------
    factor
        Cost: a singular value decomposition of `(W, K)` for each group.
    """
    products = sketch.products
    with jax.default_matmul_precision("highest"):
        inner = jnp.einsum("wk,gwl->gkl", test, products)
        weights, turn = jnp.linalg.eigh((inner + inner.mT) / 2)
        # Directions of which rounding leaves nothing certain are left to the diagonal.
        least = weights.shape[1] * jnp.finfo(weights.dtype).eps * weights[:, -1:]
        known = weights > jnp.maximum(least, 0)
        scale = jnp.where(known, jax.lax.rsqrt(jnp.where(known, weights, 1)), 0)
        root = products @ (turn * scale[:, None])
        vectors, roots, _ = jnp.linalg.svd(root, full_matrices=False)
        vectors, values = vectors[:, :, :rank], roots[:, :rank] ** 2
        taken = jnp.einsum("gwr,gr->gw", vectors**2, values)
    return LowRankFactor(vectors, values, jnp.maximum(sketch.diagonal - taken, 0))
