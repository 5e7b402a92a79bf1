r"""The Gauss-Newton family, $\sum_n J_n^\top L_n J_n$ with $L_n = S_n S_n^\top$ in the outputs.

The GGN takes for $L_n$ the Hessian of $-\log p(y_n \mid f)$ in $f$; both Fisher matrices of
`fisher.py` have the same form with other factors, so that products, diagonal and dense form are
written once, here.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, Num, PyTree

from laplace_kit.curv.capture.capture import Capture, capture, unit_directions
from laplace_kit.curv.capture.cost import (
    Held,
    choose_held,
    multiplied_out,
    products_of_pairs,
    products_with_columns,
    rows_cost,
)
from laplace_kit.curv.capture.heads import sole_head
from laplace_kit.curv.capture.layout import to_flat
from laplace_kit.curv.capture.rows import Rows, assemble
from laplace_kit.curv.head_sums import SumOfHeadSquares
from laplace_kit.curv.linear import known_nonnegative
from laplace_kit.curv.objective import per_example, per_example_factor
from laplace_kit.curv.operator import STATIC, CurvatureOperator, unchecked
from laplace_kit.curv.spec import CurvatureSpec
from laplace_kit.data import Chunk, as_data
from laplace_kit.derivatives import linearize
from laplace_kit.likelihood import FromLoss
from laplace_kit.memory import evenly
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass

# Columns of a head to multiply at a time: with many examples each, their sums stay in the caches.
_COLUMNS_AT_A_TIME = 8


class GaussNewtonOperator(CurvatureOperator):
    """A curvature operator given by factors in the outputs; positive semi-definite."""

    @property
    def is_positive_semidefinite(self):
        return known_nonnegative(self.scale)

    @abc.abstractmethod
    def num_columns(self, event: tuple[int, ...]) -> int:
        """Return R, the number of columns of $S_n$ for outputs of shape `event`."""

    @abc.abstractmethod
    def output_factor(
        self, f: Float[Array, "B *event"], chunk: Chunk, columns: Int[Array, " R"]
    ) -> Float[Array, "B R *event"]:
        r"""Return some columns of $S_n$ for every example of a chunk; zeros beyond the last."""

    @abc.abstractmethod
    def output_mv(
        self, f: Float[Array, "B *event"], chunk: Chunk, u: Float[Array, "B *event"]
    ) -> Float[Array, "B *event"]:
        r"""Return $L_n u_n$ for every example of a chunk."""

    def output_diagonal(
        self, f: Float[Array, "B *event"], chunk: Chunk
    ) -> Float[Array, "B *event"]:
        r"""Return the diagonal of $L_n$ for every example of a chunk."""
        columns = jnp.arange(self.num_columns(f.shape[1:]))
        return jnp.sum(self.output_factor(f, chunk, columns) ** 2, axis=1)

    def linear_map(self, chunk):
        objective = self.objective
        f, push_forward, pull_back = linearize(
            lambda params: objective.model_fn(params, chunk.x), objective.params
        )

        def product(v: PyTree) -> PyTree:
            u = self.output_mv(f, chunk, push_forward(v))
            return pull_back(per_example(u, chunk.weight))

        return product

    def diagonal(self):
        r"""Return $\sum_n \sum_r (J_n^\top s_{nr})^2$ exactly, `(P,)`, at R backward passes.

        If only a head is free, from the diagonals of $L_n$ and without backward passes.

        Raises
        ------
        ValueError
            If one example with one direction exceeds the memory limit.
        """
        if self.has_closed_head:
            bases = ((None, None),)
            of_head = partial(SumOfHeadSquares, None)
            (moments,) = self.sum_columns(of_head, bases, sum_bytes=4 * self.shape[0])
            return to_flat(self.plan.layers.layouts, [moments])
        return self.sum_rows(
            partial(_SumOfRows, "diagonal", Rows.squared_sum),
            multiplied_out,
            sum_bytes=4 * self.shape[0],
        )

    def to_dense(self):
        r"""Return $\sum_n (J_n^\top S_n)(J_n^\top S_n)^\top$, `(P, P)`, at R backward passes.

        Weights used at one position of an example cost $2 N P^2$ operations, a quarter of them for
        pairs in the same layer, others $2 N R P^2$.

        Raises
        ------
        ValueError
            If one example with one direction exceeds the memory limit.
        """
        work = partial(products_of_pairs, num_directions=self._num_columns)
        grams = self.sum_rows(
            partial(_SumOfRows, "dense matrix", Rows.gram), work, sum_bytes=4 * self.shape[0] ** 2
        )
        return assemble(grams, self.plan.layers.layouts)

    def sum_rows(
        self,
        fn_of_width: Callable[[int], Callable],
        work: Callable,
        args: PyTree = None,
        *,
        sum_bytes: int,
    ) -> PyTree:
        """Sum a function of rows over examples and directions, in chunks that fit in memory.

        Parameters
        ----------
        fn_of_width
            Maps the number of directions at a time to the hashable function that `sum_over` sums.
        work
            Its memory for one block, as `rows_cost` takes it.
        args
            Further arrays.
        sum_bytes
            The size of the sum.
        """
        cost = rows_cost(self.objective, work)
        held = choose_held(cost, self._num_columns, self.limits, sum_bytes)
        return self._sum_held(fn_of_width, args, held)

    def sum_columns(
        self, fn_of_width: Callable[[int], Callable], args: PyTree = None, *, sum_bytes: int
    ) -> PyTree:
        """Sum a function of products with the columns of a head over examples; see `sum_rows`.

        Few columns and many examples at a time, as the sums go over examples.
        """
        cost = rows_cost(self.objective, products_with_columns, for_outputs=True)
        num = min(self._num_columns, _COLUMNS_AT_A_TIME)
        held = choose_held(cost, num, self.limits, sum_bytes)
        return self._sum_held(fn_of_width, args, held)

    def _sum_held(self, fn_of_width: Callable, args: PyTree, held: Held) -> PyTree:
        size = self.limits.batch_size or evenly(self.data.num_first, held.batch_size)
        return self.sum_over(fn_of_width(held.num_directions), args, batch_size=size)

    @property
    def has_closed_head(self) -> bool:
        r"""Whether only a head is free, and $S_n$ has one column for each output.

        Rows are then $a_n \otimes M$ with one M for all examples, and sums over them only need
        products $L_n u$ with the columns of M: $C^2$ operations for each example where $S_n$ would
        take $C^3$.
        """
        if sole_head(self.plan.layers) is None:
            return False
        return self._num_columns == self.plan.num_outputs

    @property
    def _num_columns(self) -> int:
        return self.num_columns(self.plan.output.shape)


def sum_directions(
    operator: GaussNewtonOperator,
    captured: Capture,
    chunk: Chunk,
    num_directions: int,
    reduce_rows: Callable[[Rows], PyTree],
) -> PyTree:
    r"""Return the sum of a function of the rows $J_n^\top S_n$ over blocks of their directions.

    Parameters
    ----------
    operator, captured, chunk
        The factors $S_n$; the model, captured at the chunk; examples without weight are ignored.
    num_directions
        Number of directions held at a time.
    reduce_rows
        A sum over examples and directions of rows in float32 or better.
    """
    f = captured.outputs
    num = operator.num_columns(f.shape[1:])
    dtype = jnp.promote_types(operator.dtype, jnp.float32)

    def block_sum(columns: Int[Array, " R"]) -> PyTree:
        factor = operator.output_factor(f, chunk, columns)
        rows = captured.pull(per_example_factor(factor, chunk.weight))
        with jax.default_matmul_precision("highest"):
            return reduce_rows(rows.astype(dtype))

    if num_directions >= num:
        return block_sum(jnp.arange(num))
    columns = jnp.arange(-(-num // num_directions) * num_directions).reshape(-1, num_directions)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(block_sum, columns[0])
    )

    def body(total, block):
        return jax.tree.map(jnp.add, total, block_sum(block)), None

    return jax.lax.scan(body, zeros, columns)[0]


class _SumOfRows(NamedTuple):
    """One chunk's part of a sum over rows; hashable, so that it is compiled once."""

    title: str
    reduce_rows: Callable[[Rows], PyTree]
    num_directions: int

    def __call__(self, operator_and_nothing, chunk):
        operator = operator_and_nothing[0]
        captured = capture(operator.objective, chunk.x)
        return sum_directions(operator, captured, chunk, self.num_directions, self.reduce_rows)


@pytree_dataclass(static=STATIC)
class GGNOperator(GaussNewtonOperator):
    r"""The generalised Gauss-Newton matrix $\sum_n J_n^\top L_n J_n$ of the summed loss.

    $L_n$ is the Hessian of $-\log p(y_n \mid f)$ in the outputs. For an exponential family in its
    natural parameters this is the Fisher matrix. A product costs one forward pass with its
    tangent and one backward pass; two backward passes where a model has a rule only for reverse
    mode (`jax.custom_vjp`).

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure.
    params
        A pytree; leaves that are not floating point are frozen.
    data
        `(x, y)` in memory or a re-iterable of such pairs; `(x, y, weights)` where each example
        counts as often as its weight says.
    likelihood
        A likelihood object, its name, or a loss `(f, y)` of one example.
    batch_size
        The number of examples held at a time, at most; `None` chooses from the memory limit.
    scale
        A factor on the sum, such as `num_total / num_used` for a subset of the data.
    memory_limit
        In bytes; `None` for a share of the device's memory.

    Raises
    ------
    TypeError, ValueError
        If data, outputs, targets and likelihood are inconsistent.

    References
    ----------
    Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent.
    Martens (2020), New insights and perspectives on the natural gradient method.
    """

    @property
    def is_positive_semidefinite(self):
        # Whether a loss of the user's own is convex in the outputs is not known.
        is_convex = not isinstance(self.likelihood, FromLoss)
        return is_convex and super().is_positive_semidefinite

    def num_columns(self, event):
        return math.prod(event)

    def output_factor(self, f, chunk, columns):
        units = unit_directions(f, columns)
        root = self.likelihood.hessian_sqrt_mv

        def one(f_n, y_n):
            return jax.vmap(lambda w: root(f_n, y_n, w))(units)

        return jax.vmap(one)(f, chunk.y)

    def output_mv(self, f, chunk, u):
        return jax.vmap(self.likelihood.hessian_mv)(f, chunk.y, u)

    def output_diagonal(self, f, chunk):
        return jax.vmap(self.likelihood.hessian_diagonal)(f, chunk.y)


@storable("GGN")
@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GGN(CurvatureSpec):
    """The generalised Gauss-Newton matrix as `curvature=`; `"ggn"` for short."""

    @property
    def name(self):
        return "ggn"

    def operator(self, objective, data):
        return unchecked(GGNOperator, objective, data, {})

    def num_columns(self, event):
        return math.prod(event)


def ggn_mv(
    model_fn,
    params: PyTree,
    batch: tuple,
    v: PyTree,
    likelihood,
    *,
    scale: Num[ArrayLike, ""] | None = 1.0,
) -> PyTree:
    """Return the product of one batch's GGN with `v`: `GGNOperator.mv` as a pure function.

    Parameters
    ----------
    model_fn, params, likelihood, scale
        As for `GGNOperator`.
    batch
        `(x, y)` or `(x, y, weights)`, all of it held at once.
    v
        A pytree like `params`, or flat `(P,)`; the answer has the same form.
    """
    data = as_data(tuple(batch))
    return GGNOperator(
        model_fn, params, data, likelihood, scale=scale, batch_size=data.num_examples
    ).mv(v)
