"""Curvature of a summed loss as an operator: products in one pass over the data."""

import abc
from collections.abc import Callable
from functools import cached_property, partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from laplace_kit import memory, tree
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.mode import check_values
from laplace_kit.curv.objective import Objective, restrict
from laplace_kit.curv.vector import read_vectors
from laplace_kit.data import (
    Chunk,
    InMemory,
    as_data,
    batch_spec,
    check_batch_size,
    even_chunk,
    sum_over,
)
from laplace_kit.likelihood import as_likelihood, check_targets
from laplace_kit.tree import as_pytree_function

# What lives at once in a product, in units of one example's activations: the linearised pass with
# its inputs, and for each vector a tangent and a cotangent.
_LINEARISATION, _VECTOR = 2, 2

STATIC = ("batch_size", "memory_limit", "example_bytes")


class CurvatureOperator(SelfAdjointOperator):
    """A self-adjoint `(P, P)` curvature matrix of the summed loss, as a pytree.

    Subclasses are final dataclasses with the fields `model_fn, params, data, likelihood,
    batch_size, scale, memory_limit, example_bytes`, checked and converted by `bind`; a scale of
    `None` is one. Each says what one chunk of examples contributes; this class sums over the data
    and reads vectors.
    """

    @abc.abstractmethod
    def linear_map(self, chunk: Chunk) -> Callable[[PyTree], PyTree]:
        """Linearise at one chunk and return `v -> H_chunk v` on pytrees of free parameters."""

    @cached_property
    def objective(self) -> Objective:
        """The model as a function of its floating-point parameters, and the likelihood."""
        return restrict(self.model_fn, self.params, self.likelihood)[0]

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
            How many vectors an example pushes through the linearised model.
        batch_size
            The number of examples in a chunk; by default the operator's own, or what memory allows.
        """
        batch_size = batch_size or self.chunk_size(num_vectors)
        kernel = tree.replace(self, data=None)
        total = sum_over(fn, (kernel, args), self.data, batch_size)
        return total if self.scale is None else _scaled(total, self.scale)

    def chunk_size(self, num_vectors: int = 1) -> int:
        """Return how many examples products with so many vectors hold at a time."""
        if self.batch_size:
            return self.batch_size
        held = self._held_bytes(num_vectors)
        sums = num_vectors * tree.num_bytes(self.objective.params)
        num, limit = self.data.num_first, self.memory_limit
        return even_chunk(self.data, memory.summed_chunk(num, held, limit, sums, num_vectors))

    def largest_chunk_size(self) -> int:
        """Return how many examples the memory limit lets a product with one vector hold."""
        held = self._held_bytes(num_vectors=1)
        largest = memory.chunk_size(held, self.memory_limit)
        return self.batch_size or even_chunk(self.data, largest)

    def _held_bytes(self, num_vectors: int) -> int:
        return self.example_bytes * (_LINEARISATION + _VECTOR * num_vectors)


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


def _chunk_mv(operator_and_vector, chunk):
    operator, v = operator_and_vector
    return operator.linear_map(chunk)(v)


def _chunk_matmat(operator_and_vectors, chunk):
    operator, vs = operator_and_vectors
    return jax.vmap(operator.linear_map(chunk))(vs)


def by_unit_vectors(operator: CurvatureOperator, fn: Callable) -> Array:
    """Return the rows of `fn(units, products)` for blocks of unit vectors: P products in all.

    The memory limit bounds a block. A transformation gets a compiled loop; otherwise the host
    loops, as a stream of batches needs.
    """
    num, dtype = operator.shape[0], operator.dtype
    # One example's pass, and the unit vectors, their tangents and the products.
    row_bytes = operator.example_bytes * _VECTOR + 3 * num * dtype.itemsize
    block = min(num, memory.chunk_size(row_bytes, operator.memory_limit))

    def of_block(i: Array) -> Array:
        units = jax.nn.one_hot(i * block + jnp.arange(block), num, dtype=dtype)
        vs = tree.unravel(units, operator.objective.params)
        products = operator.sum_over(_chunk_matmat, vs, num_vectors=block)
        return fn(units, tree.ravel(products, num_leading=1))

    blocks = jnp.arange(-(-num // block))
    if tree.is_concrete(operator):
        rows = jnp.concatenate([of_block(i) for i in blocks])
    else:
        rows = jnp.concatenate(jax.lax.map(of_block, blocks))
    return rows[:num]


def bind(operator: CurvatureOperator) -> None:
    """Check and convert what a user constructed an operator from, in its `__post_init__`.

    Traces the model abstractly, and looks at the values of data in memory.

    Raises
    ------
    TypeError, ValueError
        Where data, outputs, targets, likelihood or batch size do not go together: the
        message names what was found, what was expected and the remedy.
    """
    check_batch_size(operator.batch_size)
    put = object.__setattr__  # frozen for everybody else
    put(operator, "model_fn", as_pytree_function(operator.model_fn))
    put(operator, "likelihood", as_likelihood(operator.likelihood))
    put(operator, "data", as_data(operator.data))
    if isinstance(operator.scale, float | int) and operator.scale == 1:
        put(operator, "scale", None)  # as a number it would be an argument, and multiply every sum
    objective = operator.objective
    x, y = batch_spec(operator.data)
    outputs = check_outputs(objective, x, y)
    if isinstance(operator.data, InMemory) and not operator.data.of_features:
        check_values(objective.likelihood, outputs, operator.data.x, operator.data.y)
    example_bytes = memory.activation_bytes(objective.model_fn, objective.params, x)
    put(operator, "example_bytes", example_bytes)


def check_outputs(objective: Objective, x: PyTree, y: PyTree) -> jax.ShapeDtypeStruct:
    """Trace the model abstractly and raise where outputs and targets do not go together.

    Returns
    -------
    outputs
        Shape and dtype of the model's outputs, `(N, *event)`.

    Raises
    ------
    ValueError
        If the outputs lack the leading axis of examples or do not suit the targets.
    """
    outputs = objective.output_spec(x)
    check_targets(objective.likelihood, outputs, y)
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(
            f"Found outputs of dtype {outputs.dtype}, expected floating-point numbers that can be "
            "differentiated, such as logits; return what comes before argmax or rounding."
        )
    return outputs
