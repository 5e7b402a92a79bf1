r"""Kronecker-factored curvature: the K-FAC factors of each layer, and second moments in a basis.

For a layer with inputs $a_{nt}$ at T positions (a 1 appended where it has a bias) and output
gradients $g_{nrt}$ of the columns r of $S_n$, K-FAC is
$\frac1{N T} \sum_{nt} a a^\top \otimes \sum_{nrt} g g^\top$. A parameter that enters no product is
a layer with the constant input 1, so that its block is exact.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from laplace_kit.curv.capture.blocks import Block, LookupRows
from laplace_kit.curv.capture.capture import capture
from laplace_kit.curv.capture.cost import multiplied_out
from laplace_kit.curv.capture.layers import Layer, Layers
from laplace_kit.curv.capture.layout import Layout
from laplace_kit.curv.capture.products import Lookup
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.ggn import (
    GaussNewtonOperator,
    SumOfHeadSquares,
    head_diagonal,
    head_rows,
    map_columns,
    sum_directions,
)
from laplace_kit.data import Chunk
from laplace_kit.errors import check_option
from laplace_kit.tree import pytree_dataclass

WEIGHT_SHARING = ("expand", "reduce")
# A parameter that enters no product has a block of its own; a larger one only its diagonal.
LARGEST_EXACT_BLOCK = 1024


@pytree_dataclass(static=("layout",))
class KroneckerFactors:
    r"""One layer's curvature, $A_g \otimes B_g$ for each group of its matrices `(G, I, O)`.

    `inputs` is $A$ `(G, I, I)`, or its diagonal `(G, I)` for a lookup, whose $A$ is diagonal, and
    for inputs that are too wide; `gradients` is $B$ `(G, O, O)`, or its diagonal `(G, O)` for
    outputs that are too wide and for a large parameter that enters no product.
    """

    inputs: Float[Array, "G I *I"]
    gradients: Float[Array, "G O *O"]
    layout: Layout

    def to_dense(self) -> Float[Array, "G IO IO"]:
        """Return the matrices, for small models and tests; rows run over outputs fastest."""
        return jax.vmap(jnp.kron)(_square(self.inputs), _square(self.gradients))


def _square(factor: Float[Array, "G n *n"]) -> Float[Array, "G n n"]:
    return factor if factor.ndim == 3 else jax.vmap(jnp.diag)(factor)


def kronecker_factors(
    operator: GaussNewtonOperator,
    *,
    weight_sharing: Literal["expand", "reduce"] = "expand",
    max_width: int | None = None,
) -> tuple[KroneckerFactors, ...]:
    r"""Return the K-FAC factors of every layer, in float32 or better.

    Parameters
    ----------
    operator
        A GGN, or an empirical or Monte-Carlo Fisher operator.
    weight_sharing
        How to treat the T positions of an example that share a weight, as in convolutions and
        sequences. `"expand"` counts each as an example of its own,
        $\frac1{N T} \sum_{nt} a a^\top \otimes \sum_{nrt} g g^\top$; `"reduce"` takes
        $\bar a_n = \frac1T \sum_t a_{nt}$ and $\bar g_{nr} = \sum_t g_{nrt}$ first. Lookups in a
        table are always expanded.
    max_width
        The largest number of inputs or outputs of a layer whose factor is a matrix: of wider ones
        it is the diagonal, which takes I or O numbers in place of their square. `None` for any.

    Returns
    -------
    factors
        For each layer of the model. Cost: one forward pass, R backward passes without those of the
        weights, and $N T (I^2 + R O^2)$ operations for each layer; $N (I^2 + O^2)$ and no backward
        pass if only a head is free (see `heads.py`).

    Raises
    ------
    ValueError
        If the option is unknown, or one example with one direction exceeds the memory limit.

    References
    ----------
    Martens and Grosse (2015), Optimizing neural networks with Kronecker-factored approximate
    curvature. Eschenhagen et al. (2023), Kronecker-factored approximate curvature for modern neural
    network architectures.
    """
    check_option("weight_sharing", weight_sharing, WEIGHT_SHARING)
    sum_bytes = 4 * num_entries(operator.plan.layers, max_width)
    if operator.has_closed_head:  # it has one position, so no weight is shared
        of_head = partial(_SumOfHeadFactors, max_width)
        return _normalised(operator.sum_columns(of_head, sum_bytes=sum_bytes))
    of_rows = partial(_SumOfFactors, weight_sharing, max_width)
    sums = operator.sum_rows(of_rows, _no_work, sum_bytes=sum_bytes)
    return _normalised(sums)


@jax.jit
def _normalised(sums):
    factors, num = sums
    return tuple(KroneckerFactors(f.inputs / num, f.gradients, f.layout) for f in factors)


def second_moments(
    operator: GaussNewtonOperator, bases: tuple[tuple[Array | None, Array | None], ...]
) -> tuple[Float[Array, "_ _ _"], ...]:
    r"""Return $\sum_{nr} (Q_A^\top J_{nr} Q_B)^2$, the curvature's diagonal in a basis, per layer.

    Parameters
    ----------
    operator
        A GGN, or an empirical or Monte-Carlo Fisher operator.
    bases
        For each layer orthogonal $Q_A$ `(G, I, I)` and $Q_B$ `(G, O, O)`; `None` for the identity.

    Returns
    -------
    moments
        Exact, in float32 or better. Cost: as `kronecker_factors`.

    References
    ----------
    George et al. (2018), Fast approximate natural gradient descent in a Kronecker-factored
    eigenbasis.
    """
    sum_bytes = 4 * operator.shape[0]
    if operator.has_closed_head:
        return operator.sum_columns(SumOfHeadSquares, bases, sum_bytes=sum_bytes)
    return operator.sum_rows(_SumOfMoments, _rotated_bytes, bases, sum_bytes=sum_bytes)


class Side(NamedTuple):
    """One side of layers: how many factors there are, and the width of each."""

    num: int
    width: int

    def num_entries(self, max_width: int | None = None) -> int:
        """Return the number of entries of the factors, diagonal where they are too wide."""
        return self.num * (self.width if self.is_wide(max_width) else self.width**2)

    def is_wide(self, max_width: int | None) -> bool:
        """Return whether the factors are too wide to be matrices."""
        return _exceeds(self.width, max_width)


def sides(layers: Layers) -> tuple[Side, ...]:
    """Return the sides of all layers that may have matrices as factors."""
    return tuple(side for layer in layers.layers for side, may in _sides(layer) if may)


def _sides(layer: Layer) -> tuple[tuple[Side, bool], ...]:
    groups, width, out = layer.layout.shape
    lone = layer.product is None and out > LARGEST_EXACT_BLOCK
    return (
        (Side(groups, width), not isinstance(layer.product, Lookup)),
        (Side(groups, out), not lone),
    )


def num_entries(layers: Layers, max_width: int | None = None) -> int:
    """Return the number of entries of the factors of all layers; see `kronecker_factors`."""
    return sum(
        side.num_entries(max_width if may else 0)
        for layer in layers.layers
        for side, may in _sides(layer)
    )


def _exceeds(width: int, max_width: int | None) -> bool:
    return max_width is not None and width > max_width


def _no_work(block: Block) -> tuple[int, int]:
    return 0, 0


def _rotated_bytes(block: Block) -> tuple[int, int]:
    once, direction = multiplied_out(block)
    inputs = jax.tree.leaves(block)[0]
    itemsize = block.gradients.dtype.itemsize
    return once + inputs.size * itemsize, direction + block.gradients.size * itemsize


class _SumOfFactors(NamedTuple):
    """One chunk's part of the factors, and the number of its examples; hashable."""

    title = "Kronecker factors"

    weight_sharing: str
    max_width: int | None
    num_directions: int

    def __call__(self, operator_and_nothing, chunk: Chunk):
        operator = operator_and_nothing[0]
        captured = capture(operator.objective, chunk.x)
        dtype = jnp.promote_types(operator.dtype, jnp.float32)
        gradients = sum_directions(
            operator, captured, chunk, self.num_directions, self._gradient_factors
        )
        factors = []
        for a, g, layout in zip(captured.inputs, gradients, captured.layouts, strict=True):
            if self.weight_sharing == "reduce" and not jnp.issubdtype(a.dtype, jnp.integer):
                a = a.astype(dtype).mean(axis=1, keepdims=True)
            diagonal = _exceeds(layout.shape[1], self.max_width)
            a = _input_factor(a, chunk, layout, dtype, diagonal=diagonal)
            factors.append(KroneckerFactors(a, g, layout))
        return tuple(factors), chunk.weight.sum()

    def _gradient_factors(self, rows: Rows) -> PyTree:
        return tuple(self._gradient_factor(block) for block in rows.blocks)

    def _gradient_factor(self, block: Block) -> Float[Array, "G O *O"]:
        g = block.gradients
        if isinstance(block, LookupRows):
            g = g[:, :, :, None]
        elif self.weight_sharing == "reduce":
            g = g.sum(axis=2, keepdims=True)
        _, width, out = block.layout.shape
        if _exceeds(out, self.max_width) or (width == 1 and out > LARGEST_EXACT_BLOCK):
            return jnp.einsum("brtgo,brtgo->go", g, g)
        return jnp.einsum("brtgo,brtgp->gop", g, g)


def _input_factor(
    a: Array, chunk: Chunk, layout: Layout, dtype: jnp.dtype, *, diagonal: bool
) -> Float[Array, "G I *I"]:
    r"""Return the weighted sum of $a a^\top$ over examples, and its mean over positions."""
    weight = chunk.weight.astype(dtype)
    if jnp.issubdtype(a.dtype, jnp.integer):
        counts = jnp.zeros((1, layout.shape[1]), dtype)
        return counts.at[0, a].add(weight[:, None] / a.shape[1], mode="drop")
    a = a.astype(dtype)
    with jax.default_matmul_precision("highest"):
        weighted = a * (weight / a.shape[1])[:, None, None, None]
        if diagonal:
            return jnp.einsum("btgi,btgi->gi", weighted, a)
        return jnp.einsum("btgi,btgj->gij", weighted, a)


class _SumOfHeadFactors(NamedTuple):
    """One chunk's part of a head's factors, and the number of its examples; hashable."""

    title = "Kronecker factors of the head"

    max_width: int | None
    num_columns: int

    def __call__(self, operator_and_nothing, chunk: Chunk):
        operator = operator_and_nothing[0]
        captured = capture(operator.objective, chunk.x)
        rows = head_rows(operator, captured)

        _, width, out = rows.layout.shape
        if _exceeds(out, self.max_width):
            g = head_diagonal(operator, captured, chunk, rows)
        else:
            products = map_columns(
                operator, captured, chunk, self.num_columns, rows, _sum_of_products
            )
            # Back from outputs to values.
            g = (products * rows.factors)[:, jnp.argsort(rows.places)][None]
        diagonal = _exceeds(width, self.max_width)
        a = _input_factor(rows.inputs, chunk, rows.layout, g.dtype, diagonal=diagonal)
        return (KroneckerFactors(a, g, rows.layout),), chunk.weight.sum()


def _sum_of_products(
    u: Float[Array, "U C"], products: Float[Array, "U B C"]
) -> Float[Array, "U C"]:
    return products.sum(axis=1)


class _SumOfMoments(NamedTuple):
    """One chunk's part of the second moments in given bases; hashable."""

    title = "second moments in the eigenbasis"

    num_directions: int

    def __call__(self, operator_and_bases, chunk: Chunk):
        operator, bases = operator_and_bases
        captured = capture(operator.objective, chunk.x)

        def moments(rows: Rows) -> PyTree:
            pairs = zip(rows.blocks, bases, strict=True)
            return tuple(block.rotate(*basis).squared_sum() for block, basis in pairs)

        return sum_directions(operator, captured, chunk, self.num_directions, moments)
