r"""The Gauss-Newton family, $\sum_n J_n^\top L_n J_n$ with $L_n = S_n S_n^\top$ in the outputs.

The GGN takes for $L_n$ the Hessian of $-\log p(y_n \mid f)$ in $f$; both Fisher matrices of
`fisher.py` have the same form with other factors, so that products, diagonal and dense form are
written once, here.
"""

import abc
import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num, PyTree

from laplace_kit.curv.layers import capture, gram_bytes, rows_bytes, unit_directions
from laplace_kit.curv.objective import per_example
from laplace_kit.curv.operator import STATIC, CurvatureOperator, bind
from laplace_kit.curv.rows import Rows
from laplace_kit.data import Chunk, DataLike, as_data, batch_spec
from laplace_kit.likelihood import Likelihood
from laplace_kit.tree import pytree_dataclass


class GaussNewtonOperator(CurvatureOperator):
    """A curvature operator given by factors in the outputs; positive semi-definite."""

    @abc.abstractmethod
    def num_columns(self, event: tuple[int, ...]) -> int:
        """Return R, the number of columns of $S_n$ for outputs of shape `event`."""

    @abc.abstractmethod
    def output_factor(
        self, f: Float[Array, "B *event"], chunk: Chunk
    ) -> Float[Array, "B R *event"]:
        r"""Return the columns of $S_n$ for every example of a chunk."""

    @abc.abstractmethod
    def output_mv(
        self, f: Float[Array, "B *event"], chunk: Chunk, u: Float[Array, "B *event"]
    ) -> Float[Array, "B *event"]:
        r"""Return $L_n u_n$ for every example of a chunk."""

    def linear_map(self, chunk):
        objective = self.objective
        f, push_forward = jax.linearize(
            lambda params: objective.model_fn(params, chunk.x), objective.params
        )
        transpose = jax.linear_transpose(push_forward, objective.params)

        def product(v: PyTree) -> PyTree:
            u = self.output_mv(f, chunk, push_forward(v))
            return transpose(per_example(u, chunk.weight))[0]

        return product

    def diagonal(self):
        r"""Return $\sum_n \sum_r (J_n^\top s_{nr})^2$ exactly, `(P,)`, at R backward passes."""
        return self._sum_rows(_chunk_diagonal, rows_bytes)

    def to_dense(self):
        r"""Return $\sum_n (J_n^\top S_n)(J_n^\top S_n)^\top$, `(P, P)`, at R backward passes.

        Weights that are used once cost $2 N P^2$ operations, others $2 N R P^2$.
        """
        return self._sum_rows(_chunk_dense, gram_bytes)

    def _sum_rows(self, fn, bytes_of) -> Array:
        objective, (x, _) = self.objective, batch_spec(self.data)
        columns = self.num_columns(objective.output_spec(x).shape[1:])
        held = bytes_of(objective, x, columns)
        return self.sum_over(fn, num_vectors=columns, extra_bytes=held)


def factor_rows(operator: GaussNewtonOperator, chunk: Chunk) -> Rows:
    r"""Return $J_n^\top S_n$ for every example of a chunk, zero where it has no weight."""

    def weighted_factor(f: Float[Array, "B *event"]) -> Float[Array, "B R *event"]:
        return per_example(operator.output_factor(f, chunk), chunk.weight)

    _, rows = capture(operator.objective, chunk.x, weighted_factor)
    return rows.astype(jnp.promote_types(operator.dtype, jnp.float32))


def _chunk_diagonal(operator_and_nothing, chunk):
    return factor_rows(operator_and_nothing[0], chunk).squared_sum()


def _chunk_dense(operator_and_nothing, chunk):
    with jax.default_matmul_precision("highest"):
        return factor_rows(operator_and_nothing[0], chunk).gram()


@pytree_dataclass(static=STATIC)
class GGNOperator(GaussNewtonOperator):
    r"""The generalised Gauss-Newton matrix $\sum_n J_n^\top L_n J_n$ of the summed loss.

    $L_n$ is the Hessian of $-\log p(y_n \mid f)$ in the outputs. For an exponential family in its
    natural parameters this is the Fisher matrix. A product costs one forward pass with its
    tangent and one backward pass.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure.
    params
        A pytree; leaves that are not floating point are frozen.
    data
        `(x, y)` in memory or a re-iterable of such pairs.
    likelihood
        A likelihood object or its name.
    batch_size
        The number of examples held at a time, at most; `None` chooses from the memory limit.
    scale
        A factor on the sum, such as `num_total / num_used` for a subset of the data.
    memory_limit
        In bytes; `None` for a share of the device's memory.

    Raises
    ------
    TypeError, ValueError
        If data, outputs, targets or likelihood do not go together.

    References
    ----------
    Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent.
    Martens (2020), New insights and perspectives on the natural gradient method.
    """

    model_fn: Callable
    params: PyTree
    data: DataLike
    likelihood: Likelihood | str
    batch_size: int | None = dataclasses.field(default=None, kw_only=True)
    scale: Num[ArrayLike, ""] = dataclasses.field(default=1.0, kw_only=True)
    memory_limit: int | None = dataclasses.field(default=None, kw_only=True)
    example_bytes: int = dataclasses.field(default=0, init=False)

    def __post_init__(self):
        bind(self)

    def num_columns(self, event):
        return math.prod(event)

    def output_factor(self, f, chunk):
        units = unit_directions(f)
        root = self.likelihood.hessian_sqrt_mv

        def one(f_n, y_n):
            return jax.vmap(lambda w: root(f_n, y_n, w))(units)

        return jax.vmap(one)(f, chunk.y)

    def output_mv(self, f, chunk, u):
        return jax.vmap(self.likelihood.hessian_mv)(f, chunk.y, u)


def ggn_mv(
    model_fn,
    params: PyTree,
    batch: tuple,
    v: PyTree,
    likelihood,
    *,
    scale: Num[ArrayLike, ""] = 1.0,
) -> PyTree:
    """Return the product of one batch's GGN with `v`: `GGNOperator.mv` as a pure function.

    Parameters
    ----------
    model_fn, params, likelihood, scale
        As for `GGNOperator`.
    batch
        `(x, y)`, all of it held at once.
    v
        A pytree like `params`, or flat `(P,)`; the answer has the same form.
    """
    data = as_data(tuple(batch))
    return GGNOperator(
        model_fn, params, data, likelihood, scale=scale, batch_size=data.num_examples
    ).mv(v)
