r"""The Jacobian of all outputs in the parameters, as a map in both directions, never formed."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Number
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from laplace_kit import tree
from laplace_kit.chunks import chunk_of_map, chunk_of_sum
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.capture.cost import choose_held, multiplied_out, rows_cost
from laplace_kit.curv.export import to_scipy
from laplace_kit.curv.objective import Objective, per_example, restrict
from laplace_kit.curv.operator import check_differentiable
from laplace_kit.curv.plan import Plan
from laplace_kit.curv.vector import read_vectors
from laplace_kit.data import InMemory, as_data
from laplace_kit.derivatives import linearize
from laplace_kit.host import check_same
from laplace_kit.memory import Limits
from laplace_kit.placement import Placement, automatic, check_devices, in_automatic_context
from laplace_kit.sums import map_over, sum_over
from laplace_kit.tree import as_pytree_function, pytree_dataclass

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


@pytree_dataclass(static=("limits", "plan", "placement"))
class JacobianOperator:
    r"""The Jacobian $J = \partial f(x_1), \dots, f(x_N) / \partial \theta$, `(N C, P)`; a pytree.

    Its rows are the C outputs of each of N inputs, its columns the P free parameters. It maps a
    flat vector `(P,)` to flat outputs `(N C,)`, and a pytree like the parameters to outputs
    `(N, *event)`.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure.
    params
        A pytree; leaves that are not floating point are frozen.
    x
        Inputs with a leading axis N, in memory.
    batch_size
        The number of inputs held at a time, at most; `None` chooses from the memory limit.
    memory_limit
        In bytes; `None` for a share of the device's memory.

    Raises
    ------
    TypeError, ValueError
        If inputs are not arrays with one leading axis, or outputs do not have it.
    """

    model_fn: Callable
    params: PyTree
    x: PyTree
    batch_size: dataclasses.InitVar[int | None] = dataclasses.field(default=None, kw_only=True)
    memory_limit: dataclasses.InitVar[int | None] = dataclasses.field(default=None, kw_only=True)
    limits: Limits = dataclasses.field(init=False)
    plan: Plan = dataclasses.field(init=False)
    placement: Placement | None = dataclasses.field(init=False)

    def __post_init__(self, batch_size, memory_limit):
        put = object.__setattr__  # the dataclass is frozen
        put(self, "model_fn", as_pytree_function(self.model_fn))
        data = _in_memory(self.x)
        check_devices((self.model_fn, self.params), data)
        put(self, "x", data.x)
        put(self, "placement", data.placement)
        check_same("parameters or inputs", (self.params, self.x))
        put(self, "limits", Limits(batch_size, memory_limit).shared_by(self.params, self.x))
        objective = restrict(self.model_fn, self.params)[0].planned(self.x)
        put(self, "plan", objective.plan)
        check_differentiable(objective.plan.output)

    @property
    def objective(self) -> Objective:
        """The model as a function of its floating-point parameters."""
        objective, _ = restrict(self.model_fn, self.params, limits=self.limits)
        return tree.replace(objective, plan=self.plan)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the outputs, `(N, *event)`."""
        return self.plan.outputs(self.x).shape

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's shape, `(N C, P)`."""
        return math.prod(self.output_shape), tree.size(self.objective.params)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of flat vectors of parameters: the parameters' common one."""
        return tree.dtype(self.objective.params)

    @property
    def T(self) -> "TransposedJacobianOperator":
        r"""The transposed operator, $u \mapsto J^\top u$."""
        return TransposedJacobianOperator(self)

    def mv(self, v: PyTree) -> Float[Array, "..."]:
        """Return the product with one vector, at the cost of a forward pass with its tangent.

        Parameters
        ----------
        v
            A flat `(P,)` array, or a pytree like the parameters.

        Returns
        -------
        product
            Flat `(N C,)`, or `(N, *event)`.

        Raises
        ------
        ValueError
            If `v` has neither form.
        """
        return in_automatic_context(partial(_push, several=False), self, v)

    def matmat(self, vs: PyTree) -> Float[Array, "..."]:
        """Return the products with K vectors, linearising once in each chunk of inputs.

        Parameters
        ----------
        vs
            Flat `(K, P)`, or a pytree like the parameters whose leaves have a leading axis K.

        Returns
        -------
        products
            `(K, N C)`, or `(K, N, *event)`.

        Raises
        ------
        ValueError
            If `vs` has neither form.
        """
        return in_automatic_context(partial(_push, several=True), self, vs)

    def to_dense(self) -> Float[Array, "M P"]:
        """Return the matrix, `(N C, P)`, at C backward passes, in float32 or better."""
        objective = self.objective
        cost = rows_cost(objective, multiplied_out)
        size = choose_held(cost, self.plan.num_outputs, self.limits).batch_size
        rows = map_over(_rows, objective, self.x, size, self.placement)
        return automatic(lambda rows: rows.reshape(self.shape), rows)

    def to_scipy(self) -> "LinearOperator":
        """Return a SciPy `LinearOperator` on flat NumPy vectors, for `svds`, `lsmr` and so on."""
        return to_scipy(self, self.T)

    def __matmul__(self, v: PyTree) -> Float[Array, "..."]:
        """Return the product with a vector in either form, or with the columns of `(P, K)`."""
        return _matmul(self, v)


@pytree_dataclass()
class TransposedJacobianOperator:
    r"""The transposed Jacobian, $u \mapsto J^\top u$, `(P, N C)`; a pytree.

    It maps flat outputs `(N C,)` to a flat vector `(P,)`, and outputs `(N, *event)` to a pytree
    like the parameters, with zeros where a leaf is frozen. If each input has one scalar output, so
    that both have the shape `(N,)`, the answer is flat.

    Parameters
    ----------
    T
        The Jacobian itself.
    """

    T: JacobianOperator

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's shape, `(P, N C)`."""
        return self.T.shape[::-1]

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the products: the parameters' common one."""
        return self.T.dtype

    def mv(self, u: ArrayLike) -> PyTree:
        """Return the product with one vector, at the cost of a gradient.

        Parameters
        ----------
        u
            Flat outputs `(N C,)`, or `(N, *event)`.

        Returns
        -------
        product
            Flat `(P,)`, or a pytree like the parameters; summed in float32 or better.

        Raises
        ------
        ValueError
            If `u` has neither shape.
        """
        return in_automatic_context(partial(_pull, several=False), self.T, jnp.asarray(u))

    def matmat(self, us: ArrayLike) -> PyTree:
        """Return the products with K vectors, linearising once in each chunk of inputs.

        Parameters
        ----------
        us
            `(K, N C)`, or `(K, N, *event)`.

        Returns
        -------
        products
            `(K, P)`, or a pytree like the parameters whose leaves have a leading axis K.

        Raises
        ------
        ValueError
            If `us` has neither shape.
        """
        return in_automatic_context(partial(_pull, several=True), self.T, jnp.asarray(us))

    def to_dense(self) -> Float[Array, "P M"]:
        """Return the matrix, `(P, N C)`; see `JacobianOperator.to_dense`."""
        return self.T.to_dense().T

    def to_scipy(self) -> "LinearOperator":
        """Return a SciPy `LinearOperator` on flat NumPy vectors."""
        return to_scipy(self, self.T)

    def __matmul__(self, u: ArrayLike) -> PyTree:
        """Return the product with a vector in either form, or with the columns of `(N C, K)`."""
        return _matmul(self, u)


def _in_memory(x: PyTree) -> InMemory:
    leaves = [leaf for leaf in jax.tree.leaves(x) if not isinstance(leaf, Mapping | Number)]
    others = [leaf for leaf in leaves if not hasattr(leaf, "__array__")]
    if others:
        raise TypeError(
            f"Found {type(others[0]).__name__} as inputs, expected arrays in memory with one "
            "leading axis; for a stream make an operator of each batch: its rows are those of its "
            "own inputs."
        )
    return as_data((x, ()))


# --- products, from the vector's form to that of the answer ---------------------------------------


@partial(jax.jit, static_argnames="several")
def _push(operator: JacobianOperator, v: PyTree, several: bool) -> Array:
    objective, (num_rows, num_params) = operator.objective, operator.shape
    first = next(iter(jax.tree.leaves(v)), 0.0)
    leading = (jnp.shape(first)[:1] or (0,)) if several else ()
    vs, _ = read_vectors(v, operator.params, objective.params, leading)
    if not several:
        vs = jax.tree.map(lambda leaf: leaf[None], vs)
    num = max(leading, default=1)
    x, placement = operator.x, operator.placement
    size = chunk_of_map(_push_chunk, (objective, vs), x, operator.limits, placement)
    products = map_over(_push_chunk, (objective, vs), x, size, placement)
    products = jnp.moveaxis(products, 1, 0)
    is_flat = isinstance(v, jax.Array) and v.shape == (*leading, num_params)
    products = products.reshape(num, num_rows) if is_flat else products
    return products if several else products[0]


@partial(jax.jit, static_argnames="several")
def _pull(operator: JacobianOperator, u: Array, several: bool) -> PyTree:
    objective, outputs = operator.objective, operator.output_shape
    leading, flat = u.shape[:1] if several else (), (operator.shape[0],)
    if u.shape not in ((*leading, *flat), (*leading, *outputs)):
        raise ValueError(
            f"Found outputs of shape {u.shape}, expected {(*leading, *flat)} or "
            f"{(*leading, *outputs)}; one vector goes to J.T.mv, several go to J.T.matmat with a "
            "leading axis K."
        )
    num = max(leading, default=1)
    us = jnp.moveaxis(u.reshape(num, *outputs), 0, 1)
    data = InMemory(operator.x, us, placement=operator.placement)
    size = chunk_of_sum(_pull_chunk, objective, data, operator.limits, num)
    sums = sum_over(_pull_chunk, objective, data, size)
    vectors = jax.tree.map(lambda s, leaf: s.astype(leaf.dtype), sums, objective.params)
    if not several:
        vectors = jax.tree.map(lambda leaf: leaf[0], vectors)
    if u.shape == (*leading, *flat):
        return tree.ravel(vectors, num_leading=len(leading))

    def fill(leaf, part):
        return jnp.zeros((*leading, *leaf.shape), leaf.dtype) if part is None else part

    return jax.tree.map(fill, operator.params, vectors)


def _push_chunk(objective_and_vectors, x):
    objective, vs = objective_and_vectors
    found = linearize(lambda params: objective.model_fn(params, x), objective.params)
    return jax.vmap(found.push_forward, out_axes=1)(vs)


def _pull_chunk(objective, chunk):
    f, pull = jax.vjp(lambda params: objective.model_fn(params, chunk.x), objective.params)
    us = per_example(chunk.y.astype(f.dtype), chunk.weight)
    return jax.vmap(pull, in_axes=1)(us)[0]


def _rows(objective, x):
    rows = jacobian(objective, x)[1]
    dtype = jnp.promote_types(tree.dtype(objective.params), jnp.float32)
    with jax.default_matmul_precision("highest"):
        return rows.astype(dtype).to_dense()


def _matmul(operator: JacobianOperator | TransposedJacobianOperator, v: PyTree) -> PyTree:
    is_block = isinstance(v, jax.Array | np.ndarray) and v.ndim == 2
    if is_block and v.shape[0] == operator.shape[1]:
        return operator.matmat(v.T).T
    return operator.mv(v)
