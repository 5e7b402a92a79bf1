r"""The sum of two curvatures of a layer with a wide side of low rank, in the same form.

The vectors U along the wide side are the leading ones of what both have of low rank, and the basis
of the narrow side is that of the exact partial trace of the sum. The values are the diagonal in
these of what both have of low rank; what that has outside of the span of U adds its diagonal to the
rests. The trace is kept, and a curvature added to itself is exact.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.approx.wide_block import WideBlock
from laplace_kit.tree import replace


def sum_of_wide_blocks(old: WideBlock, new: WideBlock) -> WideBlock:
    """Return the sum of two curvatures of the same layer, side and rank.

    Parameters
    ----------
    old, new
        The curvatures, with R vectors each.

    Returns
    -------
    block
        Cost: a QR decomposition of `(W, 2R)`, and the narrow side's eigendecomposition.
    """
    parts, rank = (old, new), old.vectors.shape[2]
    vectors = _common_vectors(parts, rank)
    basis = _common_basis(parts)
    values, rest = zip(*(_in_other_basis(part, vectors, basis) for part in parts), strict=True)
    return replace(old, vectors=vectors, basis=basis, values=sum(values), rest=sum(rest))


def _common_vectors(parts: tuple[WideBlock, ...], rank: int) -> Float[Array, "G W R"]:
    roots = [block.vectors * jnp.sqrt(block.values.sum(axis=2))[:, None] for block in parts]
    vectors, _, _ = jnp.linalg.svd(jnp.concatenate(roots, axis=2), full_matrices=False)
    return vectors[:, :, :rank]


def _common_basis(parts: tuple[WideBlock, ...]) -> Float[Array, "G N N"] | None:
    if parts[0].basis is None:
        return None
    traces = (block.values.sum(axis=1) + block.rest.sum(axis=1) for block in parts)
    total = sum(
        jnp.einsum("gno,go,gmo->gnm", block.basis, trace, block.basis)
        for block, trace in zip(parts, traces, strict=True)
    )
    return jnp.linalg.eigh(total)[1]


def _in_other_basis(
    block: WideBlock, vectors: Float[Array, "G W R"], basis: Float[Array, "G N N"] | None
) -> tuple[Float[Array, "G R N"], Float[Array, "G W N"]]:
    """Return the values in other vectors, and the rest with what is outside of their span."""
    values, rest = block.values, block.rest
    if basis is not None:  # the diagonal in another basis of the narrow side, by squared cosines
        cosines = (basis.mT @ block.basis) ** 2
        values, rest = (jnp.einsum("gpo,gko->gkp", cosines, part) for part in (values, rest))
    overlap = vectors.mT @ block.vectors
    inside = jnp.einsum("grk,gko->gro", overlap**2, values)
    outside = (block.vectors - vectors @ overlap) ** 2
    return inside, rest + jnp.einsum("gwk,gko->gwo", outside, values)
