r"""The Kronecker eigenbasis of one layer, $Q = Q_A \otimes Q_B$: the eigenvectors of its factors.

`left` is $Q_A$ `(G, I, I)` and `right` $Q_B$ `(G, O, O)`, with `None` for the identity.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def eigenbasis(
    factor: Float[Array, "G n *n"],
) -> tuple[Float[Array, "G n"], Float[Array, "G n n"] | None]:
    """Return a factor's eigenvalues, clipped at zero, and its eigenvectors as columns.

    The eigenvectors are `None` for a diagonal `(G, n)` and for factors with one entry.
    """
    if factor.ndim == 2:
        return factor, None
    if factor.shape[-1] == 1:
        return factor[:, 0], None
    with jax.default_matmul_precision("highest"):
        values, vectors = jnp.linalg.eigh(factor)
    return jnp.maximum(values, 0), vectors


def to_basis(
    left: Float[Array, "G I I"] | None,
    right: Float[Array, "G O O"] | None,
    matrix: Float[Array, "G I O *K"],
) -> Float[Array, "G I O *K"]:
    r"""Return $Q^\top m$, also for K matrices along the last axis."""
    if left is not None:
        matrix = jnp.einsum("gji,gjo...->gio...", left, matrix)
    return matrix if right is None else jnp.einsum("gpo,gip...->gio...", right, matrix)


def from_basis(
    left: Float[Array, "G I I"] | None,
    right: Float[Array, "G O O"] | None,
    matrix: Float[Array, "G I O *K"],
) -> Float[Array, "G I O *K"]:
    """Return $Q m$, also for K matrices along the last axis."""
    if left is not None:
        matrix = jnp.einsum("gij,gjo...->gio...", left, matrix)
    return matrix if right is None else jnp.einsum("gop,gip...->gio...", right, matrix)
