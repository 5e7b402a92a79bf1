r"""Heads: layers whose values are the outputs, up to order, added terms and constant factors.

Only moves, additions and constant factors lead from the product $z_n = a_n W$ of a head to the
outputs, $f_{nr} = c_r z_{n k_r} + \dots$, as when logits are divided by a temperature. The gradient
of an output in $z_n$ then has one nonzero entry, the same for every example.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import Array, Float, Int

from laplace_kit.curv.capture.layers import Layers
from laplace_kit.curv.capture.products import Convolution, MatrixProduct, Product
from laplace_kit.curv.capture.uses import as_moves, moves_entries
from laplace_kit.program import Program, Step, reached_from

_ADDITIONS = ("add", "add_any", "sub")
_FACTORS = ("neg", "mul", "div")


class Head(NamedTuple):
    """A product, the shape of its values, and the steps from there to the outputs.

    Each step comes with the index of the operand that depends on the product.
    """

    product: MatrixProduct | Convolution
    shape: tuple[int, ...]
    steps: tuple[tuple[Step, int], ...]
    program: Program

    @property
    def num_positions(self) -> int:
        """The number of positions of one example at which the weight is used."""
        return math.prod(self.shape) // self.product.shape[2]

    def places(self) -> Int[Array, " C"]:
        """Return for each flat output the index k of its entry in the values, flat `(T, 1, O)`."""
        size = self.num_positions * self.product.shape[2]
        order = self.product.outputs(jnp.arange(size).reshape(self.shape)).reshape(-1)
        places = jnp.zeros(size, order.dtype).at[order].set(jnp.arange(size)).reshape(self.shape)
        for move in as_moves((step for step, _ in self.steps if moves_entries(step)), self.program):
            places = move.apply(places, places.ndim)
        return places.reshape(-1)

    def factors(self, read: Callable[[int | Literal], Array]) -> Float[Array, " C"]:
        """Return the factor c of each flat output; `read` gives the program's constants."""
        result = self.program.steps[self.product.step].results[0]
        factors = jnp.ones(self.shape, self.program.avals[result].dtype)
        for step, place in self.steps:
            if step.primitive.name in _ADDITIONS:
                factors = -factors if step.primitive.name == "sub" and place == 1 else factors
                continue
            operands = (factors if i == place else read(o) for i, o in enumerate(step.operands))
            (factors,) = step.apply(*operands)
        return factors.reshape(-1)


def find_head(program: Program, product: Product | None) -> Head | None:
    """Return the head that ends in the outputs, or `None` if other operations are in between.

    Products with several groups, stacks of products and lookups are never heads.
    """
    if not isinstance(product, MatrixProduct | Convolution) or product.shape[0] > 1:
        return None
    varying = reached_from(program, (*program.inputs, *program.leaves))
    value = program.steps[product.step].results[0]
    shape, steps = program.shape(value), []
    while isinstance(program.output, Literal) or value != program.output:
        consumers = [step for step in program.steps if _operand_indices(step, value)]
        if len(consumers) != 1 or not _is_linear(consumers[0], value, program, varying):
            return None
        steps.append((consumers[0], _operand_indices(consumers[0], value)[0]))
        value = consumers[0].results[0]
    return Head(product, shape, tuple(steps), program)


def sole_head(layers: Layers) -> Head | None:
    """Return the head if only it is free and its weight is used at one position, or `None`."""
    if len(layers.layers) != 1:
        return None
    head = find_head(layers.program, layers.layers[0].product)
    return head if head is not None and head.num_positions == 1 else None


def _operand_indices(step: Step, value: int) -> list[int]:
    """Return the indices of a step's operands that are this value."""
    operands = enumerate(step.operands)
    return [i for i, o in operands if not isinstance(o, Literal) and o == value]


def _is_linear(step: Step, value: int, program: Program, varying: frozenset[int]) -> bool:
    """Return whether a step moves a value, adds to it, or multiplies it by constants."""
    if not step.results:  # it is written to a reference
        return False
    before, after = program.shape(value), program.shape(step.results[0])
    if moves_entries(step):
        return math.prod(before) == math.prod(after)
    places, name = _operand_indices(step, value), step.primitive.name
    if len(places) > 1 or before != after:
        return False
    if name in _ADDITIONS:
        return True
    others = [o for i, o in enumerate(step.operands) if i != places[0]]
    constant = all(isinstance(o, Literal) or o not in varying for o in others)
    return name in _FACTORS and constant and not (name == "div" and places[0] == 1)
