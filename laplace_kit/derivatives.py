r"""Derivatives of a function in both directions, also if it has only a reverse-mode rule.

A function with a `jax.custom_vjp` rule has no forward mode. Its $J v$ is the derivative in $u$ of
$J^\top u$, transposed, for which the rule itself is differentiated; its Hessian is computed by
reverse over reverse.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from laplace_kit.program import has_operation
from laplace_kit.xla_cpu import adapted

# What JAX puts in place of the tangents of a function with only a reverse-mode rule, the second one
# under `jax_custom_vjp3`.
_MISSING_TANGENTS = ("custom_lin", "CustomVJPTraced")


class Linearized(NamedTuple):
    r"""A function's value at a point; $v \mapsto J v$; and $u \mapsto J^\top u$."""

    value: PyTree
    push_forward: Callable[[PyTree], PyTree]
    pull_back: Callable[[PyTree], PyTree]


def linearize(fn: Callable[[PyTree], PyTree], at: PyTree) -> Linearized:
    r"""Linearise a function at a point, in both directions.

    Parameters
    ----------
    fn
        A function from pytrees to pytrees of floating-point arrays.
    at
        The point.

    Returns
    -------
    linearized
        Cost: one evaluation; then $J v$ and $J^\top u$ cost about one each. If `fn` has only
        reverse mode, $J v$ costs about two; the rule is differentiated at zero.

    References
    ----------
    Townsend (2017), A new trick for calculating Jacobian vector products.
    """
    value, push_forward = jax.linearize(fn, at)
    if not has_operation(push_forward, at, names=_MISSING_TANGENTS):
        transpose = jax.linear_transpose(push_forward, at)
        return Linearized(value, adapted(push_forward, is_linear=True), lambda u: transpose(u)[0])
    value, pullback = jax.vjp(fn, at)
    zeros = jax.tree.map(jnp.zeros_like, value)

    def pull_back(u: PyTree) -> PyTree:
        return pullback(u)[0]

    def push_forward_by_rule(v: PyTree) -> PyTree:
        return jax.vjp(pull_back, zeros)[1](v)[0]

    return Linearized(value, adapted(push_forward_by_rule, is_linear=True), pull_back)


def linearize_gradient(gradient: Callable[[PyTree], PyTree], at: PyTree) -> Callable:
    r"""Return $v \mapsto H v$, the derivative of a gradient at a point.

    Parameters
    ----------
    gradient
        The gradient of a twice-differentiable scalar function, whose derivative is symmetric.
    at
        The point.

    Returns
    -------
    product
        By forward over reverse, or reverse over reverse if there is only reverse mode.
    """
    push_forward = jax.linearize(gradient, at)[1]
    if not has_operation(push_forward, at, names=_MISSING_TANGENTS):
        return push_forward
    pullback = jax.vjp(gradient, at)[1]
    return lambda v: pullback(v)[0]
