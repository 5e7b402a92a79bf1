r"""Kronecker-factored curvature: the K-FAC factors of each layer, and second moments in a basis.

For a layer with inputs $a_{nt}$ at T positions (a 1 appended where it has a bias) and output
gradients $g_{nrt}$ of the columns r of $S_n$, K-FAC is
$\frac1{N T} \sum_{nt} a a^\top \otimes \sum_{nrt} g g^\top$. A parameter that enters no product is
a layer with the constant input 1, so that its block is exact. Factors of wide sides are not formed:
see `sides.py` and `low_rank_factor.py`.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from laplace_kit.curv.capture.blocks import Block, HeadRows, LookupRows
from laplace_kit.curv.capture.capture import capture
from laplace_kit.curv.capture.cost import multiplied_out
from laplace_kit.curv.capture.layout import Layout
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.ggn import GaussNewtonOperator, sum_directions
from laplace_kit.curv.head_sums import SumOfHeadSquares, head_diagonal, head_rows, map_columns
from laplace_kit.curv.low_rank_factor import LowRankFactor, Sketch, factor_of, test_vectors
from laplace_kit.curv.sides import Form, Widths, forms, num_entries
from laplace_kit.data import Chunk
from laplace_kit.errors import check_option
from laplace_kit.tree import pytree_dataclass

WEIGHT_SHARING = ("expand", "reduce")


@pytree_dataclass(static=("layout",))
class KroneckerFactors:
    r"""One layer's curvature, $A_g \otimes B_g$ for each group of its matrices `(G, I, O)`.

    `inputs` is $A$ `(G, I, I)`, or its diagonal `(G, I)` for a lookup, whose $A$ is diagonal, and
    for inputs that are too wide; `gradients` is $B$ `(G, O, O)`, or its diagonal `(G, O)` for
    outputs that are too wide and for a large parameter that enters no product. With a rank, one
    side that is too wide is a `LowRankFactor`.
    """

    inputs: Float[Array, "G I *I"] | LowRankFactor
    gradients: Float[Array, "G O *O"] | LowRankFactor
    layout: Layout

    def to_dense(self) -> Float[Array, "G IO IO"]:
        """Return the matrices, for small models and tests; rows run over outputs fastest."""
        return jax.vmap(jnp.kron)(_square(self.inputs), _square(self.gradients))


def _square(factor: Float[Array, "G n *n"] | LowRankFactor) -> Float[Array, "G n n"]:
    if isinstance(factor, LowRankFactor):
        return factor.to_dense()
    return factor if factor.ndim == 3 else jax.vmap(jnp.diag)(factor)


def kronecker_factors(
    operator: GaussNewtonOperator,
    *,
    weight_sharing: Literal["expand", "reduce"] = "expand",
    max_width: int | None = None,
    rank: int | None = None,
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
        The largest number of inputs or outputs of a layer whose factor is a matrix. `None` for any.
    rank
        The rank R of wider factors, which keep their diagonal besides: they take I R numbers in
        place of I squared. At most one side of a layer is of low rank, the inputs if both are wide,
        and no outputs of a lookup or of a layer with a bias; other wide factors are diagonal.
        `None` for all of them.

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
    widths, layers = Widths(max_width, rank), operator.plan.layers
    shapes = tuple(forms(layer, widths) for layer in layers.layers)
    dtype = jnp.promote_types(operator.dtype, jnp.float32)
    tests = tuple(
        tuple(
            test_vectors(width, rank, dtype) if form == "low_rank" else None
            for form, width in zip(pair, layout.shape[1:], strict=True)
        )
        for pair, layout in zip(shapes, layers.layouts, strict=True)
    )
    sum_bytes = 4 * num_entries(layers, widths)
    if operator.has_closed_head:  # it has one position, so no weight is shared
        of_head = partial(_SumOfHeadFactors, shapes[0])
        sums = operator.sum_columns(of_head, tests, sum_bytes=sum_bytes)
    else:
        of_rows = partial(_SumOfFactors, weight_sharing, shapes)
        sums = operator.sum_rows(of_rows, _no_work, tests, sum_bytes=sum_bytes)
    return _normalised(sums, tests, layers.layouts, rank)


@partial(jax.jit, static_argnames=("layouts", "rank"))
def _normalised(sums, tests, layouts, rank):
    sides, num = sums
    factors = []
    for (a, g), (left, right), layout in zip(sides, tests, layouts, strict=True):
        a = jax.tree.map(lambda total: total / num, a)
        pair = _finished(a, left, rank), _finished(g, right, rank)
        factors.append(KroneckerFactors(*pair, layout))
    return tuple(factors)


def _finished(total: Array | Sketch, test: Array | None, rank: int | None) -> Array | LowRankFactor:
    return factor_of(total, test, rank) if isinstance(total, Sketch) else total


def second_moments(
    operator: GaussNewtonOperator,
    bases: tuple[tuple[Array | None, Array | None], ...],
    wide: tuple[int | None, ...] | None = None,
) -> tuple[Float[Array, "_ _ _"] | tuple[Float[Array, "_ _ _"], Float[Array, "_ _ _"]], ...]:
    r"""Return $\sum_{nr} (Q_A^\top J_{nr} Q_B)^2$, the curvature's diagonal in a basis, per layer.

    Parameters
    ----------
    operator
        A GGN, or an empirical or Monte-Carlo Fisher operator.
    bases
        For each layer orthogonal $Q_A$ `(G, I, I)` and $Q_B$ `(G, O, O)`; `None` for the identity.
    wide
        For each layer the axis of `(G, I, O)`, 1 or 2, whose basis has only a few columns, or
        `None`. Such a layer has a pair: the moments in the basis, and those of what the rows have
        outside of its span, in the standard basis of that axis.

    Returns
    -------
    moments
        Exact, in float32 or better. Cost: as `kronecker_factors`.

    References
    ----------
    George et al. (2018), Fast approximate natural gradient descent in a Kronecker-factored
    eigenbasis.
    """
    wide = (None,) * len(bases) if wide is None else wide
    sum_bytes = 4 * operator.shape[0]
    if operator.has_closed_head:
        of_head = partial(SumOfHeadSquares, wide[0])
        return operator.sum_columns(of_head, bases, sum_bytes=sum_bytes)
    return operator.sum_rows(
        partial(_SumOfMoments, wide), _rotated_bytes, bases, sum_bytes=sum_bytes
    )


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
    forms: tuple[tuple[Form, Form], ...]
    num_directions: int

    def __call__(self, operator_and_tests, chunk: Chunk):
        operator, tests = operator_and_tests
        captured = capture(operator.objective, chunk.x)
        dtype = jnp.promote_types(operator.dtype, jnp.float32)

        def of_gradients(rows: Rows) -> PyTree:
            return tuple(map(self._gradient_factor, rows.blocks, self.forms, tests))

        gradients = sum_directions(operator, captured, chunk, self.num_directions, of_gradients)
        layers = zip(captured.inputs, gradients, captured.layouts, self.forms, tests, strict=True)
        factors = []
        for a, g, layout, (form, _), (test, _) in layers:
            if self.weight_sharing == "reduce" and not jnp.issubdtype(a.dtype, jnp.integer):
                a = a.astype(dtype).mean(axis=1, keepdims=True)
            a = _input_factor(a, chunk, layout, dtype, form, test)
            factors.append((a, g))
        return tuple(factors), chunk.weight.sum()

    def _gradient_factor(
        self, block: Block, forms: tuple[Form, Form], tests: tuple[Array | None, Array | None]
    ) -> Float[Array, "G O *O"] | Sketch:
        g = block.gradients
        if isinstance(block, LookupRows):
            g = g[:, :, :, None]
        elif self.weight_sharing == "reduce":
            g = g.sum(axis=2, keepdims=True)
        g = g.reshape(-1, *g.shape[3:])
        return _factor(g, g, forms[1], tests[1])


def _factor(
    weighted: Float[Array, "M G n"],
    vectors: Float[Array, "M G n"],
    form: Form,
    test: Float[Array, "n K"] | None,
) -> Float[Array, "G n *n"] | Sketch:
    r"""Return the sum of $v v^\top$ in the form of its side, from weighted vectors and these."""
    if form == "full":
        return jnp.einsum("mgi,mgj->gij", weighted, vectors)
    diagonal = jnp.einsum("mgi,mgi->gi", weighted, vectors)
    if form == "diagonal":
        return diagonal
    return Sketch(jnp.einsum("mgi,mgk->gik", weighted, vectors @ test), diagonal)


def _input_factor(
    a: Array, chunk: Chunk, layout: Layout, dtype: jnp.dtype, form: Form, test: Array | None
) -> Float[Array, "G I *I"] | Sketch:
    r"""Return the weighted sum of $a a^\top$ over examples, and its mean over positions."""
    weight = chunk.weight.astype(dtype)
    if jnp.issubdtype(a.dtype, jnp.integer):
        counts = jnp.zeros((1, layout.shape[1]), dtype)
        return counts.at[0, a].add(weight[:, None] / a.shape[1], mode="drop")
    a = a.astype(dtype)
    weighted = a * (weight / a.shape[1])[:, None, None, None]
    weighted, a = (part.reshape(-1, *part.shape[2:]) for part in (weighted, a))
    with jax.default_matmul_precision("highest"):
        return _factor(weighted, a, form, test)


class _SumOfHeadFactors(NamedTuple):
    """One chunk's part of a head's factors, and the number of its examples; hashable."""

    title = "Kronecker factors of the head"

    forms: tuple[Form, Form]
    num_columns: int

    def __call__(self, operator_and_tests, chunk: Chunk):
        operator, ((left, right),) = operator_and_tests
        captured = capture(operator.objective, chunk.x)
        rows = head_rows(operator, captured)
        of_inputs, of_outputs = self.forms

        def products_with(rows: HeadRows) -> Float[Array, "U O"]:
            """Return the factor's products with the columns of a basis of the outputs."""
            products = map_columns(
                operator, captured, chunk, self.num_columns, rows, _sum_of_products
            )
            # Back from outputs to values.
            return (products * rows.factors)[:, jnp.argsort(rows.places)]

        if of_outputs == "full":
            g = products_with(rows)[None]
        else:
            g = head_diagonal(operator, captured, chunk, rows)
            if of_outputs == "low_rank":
                g = Sketch(products_with(rows.rotate(None, right[None])).T[None], g)
        a = _input_factor(rows.inputs, chunk, rows.layout, rows.factors.dtype, of_inputs, left)
        return ((a, g),), chunk.weight.sum()


def _sum_of_products(
    u: Float[Array, "U C"], products: Float[Array, "U B C"]
) -> Float[Array, "U C"]:
    return products.sum(axis=1)


class _SumOfMoments(NamedTuple):
    """One chunk's part of the second moments in given bases; hashable."""

    title = "second moments in the eigenbasis"

    wide: tuple[int | None, ...]
    num_directions: int

    def __call__(self, operator_and_bases, chunk: Chunk):
        operator, bases = operator_and_bases
        captured = capture(operator.objective, chunk.x)

        def moments(rows: Rows) -> PyTree:
            return tuple(map(_moments, rows.blocks, bases, self.wide))

        return sum_directions(operator, captured, chunk, self.num_directions, moments)


def _moments(
    block: Block, basis: tuple[Array | None, Array | None], wide: int | None
) -> Array | tuple[Array, Array]:
    inside = block.rotate(*basis).squared_sum()
    return inside if wide is None else (inside, block.outside(*basis, wide).squared_sum())
