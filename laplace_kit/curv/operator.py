"""Curvature of a summed loss as an operator: products in one pass over the data."""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Num, PyTree

from laplace_kit import tree
from laplace_kit.bars import titled
from laplace_kit.chunks import chunk_of_map, chunk_of_sum
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.mode import check_values
from laplace_kit.curv.objective import Objective, restrict
from laplace_kit.curv.plan import Plan
from laplace_kit.curv.vector import read_vectors
from laplace_kit.data import Chunk, Data, DataLike, InMemory, as_data, batch_spec, is_shared
from laplace_kit.host import check_same
from laplace_kit.likelihood import LikelihoodLike, as_likelihood
from laplace_kit.likelihood.base import check_targets
from laplace_kit.memory import Limits, evenly
from laplace_kit.placement import check_devices
from laplace_kit.sums import sum_over
from laplace_kit.tree import as_pytree_function

STATIC = ("limits", "plan")


@dataclasses.dataclass(frozen=True, eq=False)
class CurvatureOperator(SelfAdjointOperator):
    """A self-adjoint `(P, P)` curvature matrix of the summed loss, as a pytree.

    Final subclasses, decorated by `laplace_kit.pytree_dataclass(static=("limits", "plan"))`, define
    the contribution of one chunk of examples; this class has their fields (see `GGNOperator`),
    reads vectors and sums over the data. A scale of `None` is one.
    """

    model_fn: Callable
    params: PyTree
    data: DataLike
    likelihood: LikelihoodLike
    batch_size: dataclasses.InitVar[int | None] = dataclasses.field(default=None, kw_only=True)
    scale: Num[ArrayLike, ""] | None = dataclasses.field(default=1.0, kw_only=True)
    memory_limit: dataclasses.InitVar[int | None] = dataclasses.field(default=None, kw_only=True)
    limits: Limits = dataclasses.field(init=False)
    plan: Plan = dataclasses.field(init=False)

    def __post_init__(self, batch_size, memory_limit):
        put = object.__setattr__  # the dataclass is frozen
        put(self, "model_fn", as_pytree_function(self.model_fn))
        put(self, "likelihood", as_likelihood(self.likelihood))
        put(self, "data", as_data(self.data))
        if self.in_memory:
            check_devices((self.model_fn, self.params), self.data)
        arrays, shared = (self.params, self.data), is_shared(self.data)
        check_same("parameters or data", arrays, shared=shared)
        limits = Limits(batch_size, memory_limit).shared_by(*arrays, shared=shared)
        put(self, "limits", limits)
        if isinstance(self.scale, float | int) and self.scale == 1:
            put(self, "scale", None)  # as a number it would be an argument, and multiply every sum
        x, y = batch_spec(self.data)
        objective, _ = restrict(self.model_fn, self.params, self.likelihood)
        objective = objective.planned(x)
        put(self, "plan", objective.plan)
        outputs = check_outputs(objective, x, y)
        if isinstance(self.data, InMemory) and not self.data.has_features:
            check_values(self.likelihood, outputs, self.data.x, self.data.y)

    @abc.abstractmethod
    def linear_map(self, chunk: Chunk) -> Callable[[PyTree], PyTree]:
        """Linearise at one chunk and return `v -> H_chunk v` on pytrees of free parameters."""

    @property
    def objective(self) -> Objective:
        """The model as a function of its floating-point parameters, and the likelihood."""
        objective, _ = restrict(self.model_fn, self.params, self.likelihood, limits=self.limits)
        return tree.replace(objective, plan=self.plan)

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's shape, `(P, P)`."""
        num = tree.size(self.objective.params)
        return num, num

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of flat vectors: the parameters' common one."""
        return tree.dtype(self.objective.params)

    @property
    def in_memory(self) -> bool:
        """Whether the data are arrays in memory, rather than a stream of batches."""
        return isinstance(self.data, InMemory)

    def mv(self, v: PyTree) -> PyTree:
        """Return the product with one vector, in one pass over the data.

        Parameters
        ----------
        v
            A pytree like the parameters, or a flat `(P,)` array.

        Returns
        -------
        product
            In the form of `v` and the dtype of the parameters.

        Raises
        ------
        ValueError
            If `v` has neither form.
        """
        return (_compiled_mv if self.in_memory else _mv)(self, v)

    def matmat(self, vs: PyTree) -> PyTree:
        """Return the products with K vectors, in one pass over the data.

        Parameters
        ----------
        vs
            A pytree like the parameters whose leaves have a leading axis K, or flat `(K, P)`.

        Returns
        -------
        products
            K vectors in the form of `vs`.

        Raises
        ------
        ValueError
            If `vs` has neither form.
        """
        return (_compiled_matmat if self.in_memory else _matmat)(self, vs)

    def sum_over(
        self,
        fn: Callable,
        args: PyTree = None,
        *,
        num_vectors: int = 1,
        batch_size: int | None = None,
    ) -> PyTree:
        """Sum `fn((operator, args), chunk)` over the data, times the scale.

        Parameters
        ----------
        fn
            A module-level function, or a hashable object, that reads `operator.linear_map`,
            `operator.objective` and the like; the operator it is given holds no data.
        args
            Further arrays.
        num_vectors
            The number of vectors pushed through the linearised model for each example.
        batch_size
            The number of examples in a chunk; by default the operator's own, or what memory allows.
        """
        step = tree.replace(self, data=None), args
        size = batch_size or chunk_of_sum(fn, step, self.data, self.limits, num_vectors)
        total = sum_over(fn, step, self.data, size)
        return total if self.scale is None else _scaled(total, self.scale)

    def largest_chunk_size(self) -> int:
        """Return how many examples a product with one vector can hold on each device."""
        x, y = batch_spec(self.data)
        weight = jax.ShapeDtypeStruct((self.data.num_first,), jnp.float32)
        step = tree.replace(self, data=None), self.objective.params
        chunk = jax.eval_shape(Chunk, x, y, weight)
        largest = chunk_of_map(_chunk_mv, step, chunk, self.limits, self.data.placement)
        return evenly(self.data.num_held, largest)


def unchecked(
    kind: type[CurvatureOperator], objective: Objective, data: Data, own: Mapping[str, Any]
) -> CurvatureOperator:
    """Return an operator on a planned objective and data that have been checked before.

    Parameters
    ----------
    kind
        The subclass.
    objective, data
        All parameters are free; the scale is one.
    own
        The further fields of the subclass.
    """
    operator = object.__new__(kind)
    fields = {
        "model_fn": objective.model_fn,
        "params": objective.params,
        "data": data,
        "likelihood": objective.likelihood,
        "scale": None,
        "limits": objective.limits,
        "plan": objective.plan,
        **own,
    }
    for field in dataclasses.fields(kind):
        object.__setattr__(operator, field.name, fields[field.name])
    return operator


@partial(jax.jit, inline=True)
def _scaled(sums: PyTree, scale: Array) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(scale, leaf.dtype) * leaf, sums)


def _mv(operator, v):
    free, restore = read_vectors(v, operator.params, operator.objective.params, ())
    return restore(_cast(operator.sum_over(_chunk_mv, free), free))


def _matmat(operator, vs):
    first = next(iter(jax.tree.leaves(vs)), 0.0)
    num = jnp.shape(first)[0] if jnp.ndim(first) else 0
    free, restore = read_vectors(vs, operator.params, operator.objective.params, (num,))
    return restore(_cast(operator.sum_over(_chunk_matmat, free, num_vectors=num), free))


# In memory a product is one program, from the vector's form and back to it.
_compiled_mv, _compiled_matmat = jax.jit(_mv), jax.jit(_matmat)


def _cast(sums: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda s, leaf: s.astype(leaf.dtype), sums, like)


@titled("product with a vector")
def _chunk_mv(operator_and_vector, chunk):
    operator, v = operator_and_vector
    return operator.linear_map(chunk)(v)


@titled("products with vectors")
def _chunk_matmat(operator_and_vectors, chunk):
    operator, vs = operator_and_vectors
    return jax.vmap(operator.linear_map(chunk))(vs)


def by_unit_vectors(operator: CurvatureOperator, fn: Callable) -> Array:
    """Return the rows of `fn(units, products)` for blocks of unit vectors: P products in all.

    The memory limit bounds a block. The loop is compiled inside a JAX transformation; otherwise the
    host loops, as a stream of batches needs.
    """
    num, dtype = operator.shape[0], operator.dtype
    # A tangent and a cotangent of one example, the unit vectors, their products and their sum.
    row_bytes = 2 * operator.plan.example_bytes + 3 * num * dtype.itemsize
    block = min(num, max(operator.limits.budget // row_bytes, 1))

    def block_rows(i: Array) -> Array:
        units = jax.nn.one_hot(i * block + jnp.arange(block), num, dtype=dtype)
        vs = tree.unravel(units, operator.objective.params)
        products = operator.sum_over(_chunk_matmat, vs, num_vectors=block)
        return fn(units, tree.ravel(products, num_leading=1))

    blocks = jnp.arange(-(-num // block))
    if tree.is_concrete(operator):
        rows = jnp.concatenate([block_rows(i) for i in blocks])
    else:
        rows = jnp.concatenate(jax.lax.map(block_rows, blocks))
    return rows[:num]


def check_outputs(objective: Objective, x: PyTree, y: PyTree) -> jax.ShapeDtypeStruct:
    """Check that the outputs of a planned model and the targets are consistent.

    Returns
    -------
    outputs
        Shape and dtype of the model's outputs, `(N, *event)`.

    Raises
    ------
    ValueError
        If the outputs do not suit the targets, or are not floating-point numbers.
    """
    outputs = objective.plan.outputs(x)
    check_targets(objective.likelihood, outputs, y)
    check_differentiable(outputs)
    return outputs


def check_differentiable(outputs: jax.ShapeDtypeStruct) -> None:
    """Raise a `ValueError` if outputs are not floating-point numbers."""
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(
            f"Found outputs of dtype {outputs.dtype}, expected floating-point numbers that can be "
            "differentiated, such as logits; return what comes before argmax or rounding."
        )
