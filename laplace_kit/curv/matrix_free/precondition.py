r"""Preconditioners: cheap approximations $M \approx (H + \mathrm{diag}(\delta))^{-1}$.

Krylov methods converge in a number of products that grows with the condition number, here that of
$M (H + \mathrm{diag}(\delta))$: few where the approximation is good, one where it is exact.
"""

from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from laplace_kit.curv.capture.layout import Layout, to_flat
from laplace_kit.curv.eigenbasis import eigenbasis, from_basis, to_basis
from laplace_kit.curv.ggn import GaussNewtonOperator
from laplace_kit.curv.kronecker import KroneckerFactors, kronecker_factors
from laplace_kit.curv.linear import DampedOperator, SelfAdjointOperator
from laplace_kit.curv.low_rank_factor import LowRankFactor
from laplace_kit.tree import pytree_dataclass


@runtime_checkable
class Preconditioner(Protocol):
    """Anything that multiplies flat vectors by a positive definite matrix, such as an operator."""

    def mv(self, v: Float[Array, " P"]) -> Float[Array, " P"]:
        """Return the product with one flat vector."""
        ...


@pytree_dataclass()
class DiagonalPreconditioner:
    """Multiplies by a diagonal matrix; `inverse` `(P,)` is positive."""

    inverse: Float[Array, " P"]

    def mv(self, v: Float[Array, " P"]) -> Float[Array, " P"]:
        """Return the product with one flat vector, in its dtype."""
        return (self.inverse * v).astype(v.dtype)


@pytree_dataclass()
class KroneckerPreconditioner:
    """Multiplies each layer by a matrix that is diagonal in a Kronecker eigenbasis of its own."""

    layers: tuple["_Layer", ...]

    def mv(self, v: Float[Array, " P"]) -> Float[Array, " P"]:
        """Return the product with one flat vector, in its dtype.

        Cost: $2 G I O (I + O)$ multiplications for each layer of G matrices `(I, O)`.

        Raises
        ------
        ValueError
            If the vector does not have one entry for each parameter of the layers.
        """
        layouts = [layer.layout for layer in self.layers]
        num = sum(layout.size for layout in layouts)
        if v.shape != (num,):
            raise ValueError(
                f"Found a vector of shape {v.shape}, expected ({num},), as many entries as the "
                "preconditioner's layers have parameters; make it from factors of the same model."
            )
        with jax.default_matmul_precision("highest"):
            parts = [layer.mv(layer.layout.to_matrix(v)) for layer in self.layers]
        return to_flat(layouts, parts).astype(v.dtype)


@pytree_dataclass(static=("layout",))
class _Layer:
    """One layer: the inverse's eigenvalues, and its bases (`None` for the identity)."""

    left: Float[Array, "G I I"] | None
    right: Float[Array, "G O O"] | None
    inverse: Float[Array, "G I O"]
    layout: Layout

    def mv(self, matrix: Float[Array, "G I O"]) -> Float[Array, "G I O"]:
        rotated = to_basis(self.left, self.right, matrix)
        return from_basis(self.left, self.right, self.inverse * rotated)


def diagonal_preconditioner(
    operator: SelfAdjointOperator,
    *,
    damping: PyTree = 0.0,
    diagonal: Float[Array, " P"] | None = None,
) -> DiagonalPreconditioner:
    r"""Return Jacobi's preconditioner, $M = |\mathrm{diag}(H) + \delta|^{-1}$.

    Parameters
    ----------
    operator
        Any self-adjoint operator; its diagonal plus damping enters by its absolute value.
    damping
        $\delta$: a scalar, one value per leaf or group (a pytree prefix of the parameters), one per
        parameter, or flat `(P,)`.
    diagonal
        An estimate of the diagonal, `(P,)`; by default the exact diagonal.

    Returns
    -------
    preconditioner
        Cost: that of `operator.diagonal()`.

    Raises
    ------
    ValueError
        If `damping` has none of these forms, or `diagonal` another shape.

    References
    ----------
    Saad (2003), Iterative methods for sparse linear systems, chapter 10.
    """
    if diagonal is None:
        diagonal = operator.diagonal()
    elif diagonal.shape != operator.shape[:1]:
        raise ValueError(
            f"Found a diagonal of shape {diagonal.shape}, expected {operator.shape[:1]}, one value "
            "for each free parameter in flat order."
        )
    return _inverse_diagonal(diagonal, DampedOperator(operator, damping).damping_vector())


def kronecker_preconditioner(
    operator: SelfAdjointOperator,
    *,
    damping: PyTree = 0.0,
    factors: tuple[KroneckerFactors, ...] | None = None,
    weight_sharing: Literal["expand", "reduce"] = "expand",
) -> KroneckerPreconditioner:
    r"""Return $M = (A \otimes B + \delta)^{-1}$ for every layer, with its K-FAC factors.

    If $\delta$ differs within a layer, it is averaged over the entries that the eigenbasis mixes.

    Parameters
    ----------
    operator
        A GGN, or an empirical or Monte-Carlo Fisher operator; any operator if `factors` are given.
    damping
        $\delta$: a scalar, one value per leaf or group (a pytree prefix of the parameters), one per
        parameter, or flat `(P,)`.
    factors
        From `kronecker_factors`, such as those of the GGN for a Hessian.
    weight_sharing
        See `kronecker_factors`.

    Returns
    -------
    preconditioner
        Cost: that of `kronecker_factors`, and eigendecompositions of every layer's factors.

    Raises
    ------
    TypeError
        If the operator has no K-FAC factors and none are given.
    ValueError
        If `damping` has none of these forms, or factors are of low rank.

    References
    ----------
    Martens and Grosse (2015), Optimizing neural networks with Kronecker-factored approximate
    curvature.
    """
    if factors is None:
        if not isinstance(operator, GaussNewtonOperator):
            raise TypeError(
                f"Found an operator of type {type(operator).__name__}, expected a GGN or Fisher "
                "operator, which have K-FAC factors; pass those of one over the same model by "
                "factors=kronecker_factors(...)."
            )
        factors = kronecker_factors(operator, weight_sharing=weight_sharing)
    if any(isinstance(side, LowRankFactor) for f in factors for side in (f.inputs, f.gradients)):
        raise ValueError(
            "Found factors of low rank, expected matrices or diagonals, which have eigenbases; "
            "pass kronecker_factors(...) without rank=."
        )
    return _inverse_factors(factors, DampedOperator(operator, damping).damping_vector())


@jax.jit
def _inverse_diagonal(diagonal, damping):
    return DiagonalPreconditioner(_reciprocal(jnp.abs(diagonal + damping)))


@jax.jit
def _inverse_factors(factors, damping):
    return KroneckerPreconditioner(tuple(_inverse_factor(factor, damping) for factor in factors))


def _inverse_factor(factor: KroneckerFactors, damping: Float[Array, " P"]) -> _Layer:
    (a, left), (b, right) = eigenbasis(factor.inputs), eigenbasis(factor.gradients)
    mixed = tuple(axis for axis, basis in ((1, left), (2, right)) if basis is not None)
    shift = factor.layout.to_matrix(damping).mean(axis=mixed, keepdims=True)
    values = a[:, :, None] * b[:, None, :] + shift
    return _Layer(left, right, _reciprocal(values), factor.layout)


def _reciprocal(values: Array) -> Array:
    """Return the inverse of values, clipped from below at rounding relative to the largest."""
    largest = values.max()
    return 1 / jnp.maximum(values, jnp.finfo(values.dtype).eps * jnp.where(largest > 0, largest, 1))
