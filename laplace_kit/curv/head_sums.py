r"""Sums over the rows of a head, from products of the outputs' curvatures $L_n$ with columns.

The rows of a head are $a_n \otimes M$ with one matrix M for all examples (see `capture/heads.py`),
so that no backward pass is needed and no matrix of pairs of outputs is formed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from laplace_kit.curv.capture.blocks import HeadRows
from laplace_kit.curv.capture.capture import Capture, capture
from laplace_kit.curv.operator import CurvatureOperator
from laplace_kit.data import Chunk
from laplace_kit.likelihood.loss import MOST_OUTPUTS_OF_A_ROOT, FromLoss

# Vectors along which a loss of very many outputs is to be convex.
_PROBES = 4


def map_columns(
    operator: CurvatureOperator,
    captured: Capture,
    chunk: Chunk,
    num_columns: int,
    rows: HeadRows,
    of_products: Callable[[Float[Array, "U C"], Float[Array, "U B C"]], Array],
) -> Float[Array, "O *rest"]:
    r"""Return a function of products $L_n u$ with a head's columns $u$, stacked over columns.

    Parameters
    ----------
    operator, captured, chunk
        The curvatures $L_n$; the model, captured at the chunk; examples without weight are ignored.
    num_columns
        Number of columns held at a time.
    rows
        The rows of all outputs of the head; their gradients have the columns.
    of_products
        Maps some columns and their products, zero for examples without weight, to an array with
        one entry for each column.
    """
    num = rows.num_columns
    product = _weighted_product(operator, captured, chunk)

    def of_block(columns: Int[Array, " U"]) -> Array:
        u = rows.gradients_along(columns)
        with jax.default_matmul_precision("highest"):
            return of_products(u, jax.vmap(product)(u).astype(u.dtype))

    columns = jnp.arange(-(-num // num_columns) * num_columns).reshape(-1, num_columns)
    mapped = jax.lax.map(of_block, columns)
    return mapped.reshape(-1, *mapped.shape[2:])[:num]


def _weighted_product(
    operator: CurvatureOperator, captured: Capture, chunk: Chunk
) -> Callable[[Float[Array, " C"]], Float[Array, "B C"]]:
    """Return the function that multiplies one vector of outputs by every example's curvature."""
    f = captured.outputs
    weight = _convex_weight(operator, f, chunk)[:, None]

    def product(vector):
        # L is linear: to weigh what it is applied to lets the compiler fuse sums of products.
        vectors = (vector.astype(f.dtype) * weight).reshape(f.shape)
        return operator.output_mv(f, chunk, vectors).reshape(len(f), -1)

    return product


def _convex_weight(
    operator: CurvatureOperator, f: Float[Array, "B *event"], chunk: Chunk
) -> Float[Array, " B"]:
    """Return the weights of examples; NaN where a loss is not convex and so has no root.

    Losses of so many outputs that a root is out of reach are told by products with a few vectors.
    """
    weight = chunk.weight.astype(f.dtype)
    if not isinstance(operator.likelihood, FromLoss) or f[0].size <= MOST_OUTPUTS_OF_A_ROOT:
        return weight + 0 * operator.output_factor(f, chunk, jnp.arange(1)).sum()
    probes = jax.random.rademacher(jax.random.key(0), (_PROBES, *f.shape[1:]), f.dtype)

    def along(probe: Float[Array, "*event"]) -> Float[Array, " B"]:
        vectors = jnp.broadcast_to(probe, f.shape)
        product = operator.output_mv(f, chunk, vectors)
        size, axes = jnp.abs(product), tuple(range(1, f.ndim))
        curvature = jnp.sum(product * vectors, axis=axes)
        rounding = jnp.finfo(f.dtype).eps * f[0].size * jnp.maximum(size.max(axes), 1)
        return jnp.where(curvature < -rounding, jnp.nan, 0)

    return weight + jax.lax.map(along, probes).sum()


class SumOfHeadSquares(NamedTuple):
    """One chunk's sum of squares of a head's rows in given bases; hashable.

    `wide` is as in `second_moments`, for the head alone.
    """

    title = "squared rows of the head"

    wide: int | None
    num_columns: int

    def __call__(self, operator_and_bases, chunk):
        operator, (basis,) = operator_and_bases
        captured = capture(operator.objective, chunk.x)
        given = head_rows(operator, captured)
        rows = given.rotate(*basis)
        squares = rows.inputs[:, 0, 0] ** 2
        inside = squares.shape[1]
        if self.wide == 1:
            beside = given.outside(*basis, 1).inputs[:, 0, 0] ** 2
            squares = jnp.concatenate([squares, beside], axis=1)
        if rows.basis is None:  # no products are needed
            moments = head_diagonal(operator, captured, chunk, rows, squares)
        else:

            def of_products(u, products):
                return jnp.einsum("ubc,uc->ub", products, u) @ squares

            moments = map_columns(operator, captured, chunk, self.num_columns, rows, of_products).T
        if self.wide == 1:
            return ((moments[None, :inside], moments[None, inside:]),)
        if self.wide == 2:
            return ((moments[None], _outside_outputs(operator, captured, chunk, rows)[None]),)
        return (moments[None],)


def _outside_outputs(
    operator: CurvatureOperator, captured: Capture, chunk: Chunk, rows: HeadRows
) -> Float[Array, "I O"]:
    r"""Return the squares of what a head's rows have outside of the span of few directions.

    With $P = U U^\top$ and the curvature M in the head's values, the diagonal of
    $(I - P) M (I - P)$ is that of $M - P M - M P + P M P$; summed with the squared inputs.
    """
    product = _weighted_product(operator, captured, chunk)
    weighted = _weighted_diagonal(operator, captured, chunk).astype(rows.factors.dtype)
    units = rows.to_units(weighted * rows.factors**2)

    def subtract(diagonal, column):
        u = rows.gradients_along(column[None])[0]
        with jax.default_matmul_precision("highest"):
            turned = rows.to_units(product(u).astype(u.dtype) * rows.factors)
            projected = (turned @ rows.basis) @ rows.basis.T
        return diagonal - rows.basis[:, column] * (2 * turned - projected), None

    diagonal, _ = jax.lax.scan(subtract, units, jnp.arange(rows.num_columns))
    with jax.default_matmul_precision("highest"):
        return (rows.inputs[:, 0, 0] ** 2).T @ jnp.maximum(diagonal, 0)


def head_diagonal(
    operator: CurvatureOperator,
    captured: Capture,
    chunk: Chunk,
    rows: HeadRows,
    factors: Float[Array, "B I"] | None = None,
) -> Float[Array, "I O"]:
    r"""Return $\sum_n w_{ni} \sum_r g_{nro}^2$, the curvatures of a head's outputs, summed.

    Parameters
    ----------
    operator, captured, chunk
        The curvatures $L_n$; the model, captured at the chunk; examples without weight are ignored.
    rows
        The rows of all outputs of the head, in the basis of the outputs.
    factors
        $w$, such as the squared inputs; `None` for a single one for each example.
    """
    diagonal = _weighted_diagonal(operator, captured, chunk)
    factors = jnp.ones((len(diagonal), 1), rows.factors.dtype) if factors is None else factors
    with jax.default_matmul_precision("highest"):
        return rows.to_units((factors.T @ diagonal.astype(factors.dtype)) * rows.factors**2)


def _weighted_diagonal(
    operator: CurvatureOperator, captured: Capture, chunk: Chunk
) -> Float[Array, "B C"]:
    """Return the diagonal of every example's curvature in the outputs, times its weight."""
    f = captured.outputs
    weight = _convex_weight(operator, f, chunk)[:, None]
    return weight * operator.output_diagonal(f, chunk).reshape(len(f), -1)


def head_rows(operator: CurvatureOperator, captured: Capture) -> HeadRows:
    """Return the rows of all outputs of a head, in float32 or better."""
    num = math.prod(captured.outputs.shape[1:])
    rows = captured.pull_outputs(jnp.arange(num))
    return rows.astype(jnp.promote_types(operator.dtype, jnp.float32)).blocks[0]
