"""Floating-point operations of products and convolutions, counted in a function's program."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import JaxprEqn

from laplace_kit.program import programs_in


def product_flops(fn: Callable, *args: Any) -> int:
    """Return the operations of all matrix products and convolutions.

    A multiplication and an addition count as two. A loop counts as often as it runs, if that is
    known, and of branches the largest.
    """
    return _flops(jax.make_jaxpr(fn)(*args))


def _flops(program) -> int:
    return sum(map(_equation_flops, program.eqns))


def _equation_flops(equation: JaxprEqn) -> int:
    inner = [_flops(program) for program in programs_in(equation.params)]
    if inner:
        several = max if equation.primitive.name == "cond" else sum
        return several(inner) * equation.params.get("length", 1)
    size = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * size * math.prod(shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return 2 * size * math.prod(kernel) // outputs
    return 0
