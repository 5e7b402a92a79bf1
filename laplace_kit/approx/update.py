r"""Update a posterior with new data, without the old data (continual learning).

The log-likelihood of the old data is known by its expansion about the old mode $\theta_1$: its
value, its gradient and its curvature $H_1$. With the same expansion of the new data, at the same
parameters, the posterior of both is Gaussian with precision $H_1 + H_2 + d$ about
$\theta_1 + \Delta$, $\Delta = -(H_1 + H_2 + d)^{-1} g_2$: exact for linear models with Gaussian
noise, one Newton step for others.
"""

from functools import partial, singledispatch

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.approx.by_rows import RowsStructure
from laplace_kit.approx.diagonal import DiagonalStructure
from laplace_kit.approx.dual import DualStructure
from laplace_kit.approx.eigenblock import Eigenblock, single
from laplace_kit.approx.full import FullStructure
from laplace_kit.approx.kronecker import KroneckerStructure
from laplace_kit.approx.low_rank import DEFAULT_RANK, LowRankStructure
from laplace_kit.approx.posterior import Posterior, Structure, factorise
from laplace_kit.approx.wide_block import WideBlock
from laplace_kit.approx.wide_sum import sum_of_wide_blocks
from laplace_kit.curv.capture.layout import Layout
from laplace_kit.curv.capture.rows import alike
from laplace_kit.curv.design import Design
from laplace_kit.placement import automatic
from laplace_kit.tree import pytree_dataclass, replace


@pytree_dataclass(static=("num_data",))
class Expansion:
    r"""The log-likelihood of data, expanded about some parameters to second order.

    $\log p(D \mid \theta + \Delta) \approx \ell - g^\top \Delta - \tfrac12 \Delta^\top H \Delta$,
    with `log_likelihood` $\ell$, `gradient` $g$ `(P,)` of the summed loss, and `structure` $H$, all
    of them sums over the data; `num_data` is the number of examples, or the sum of their weights.
    For masked targets `num_entries` has the same for each entry of a target, over the examples in
    which it is observed; else it is `None`.
    """

    log_likelihood: Float[Array, ""]
    gradient: Float[Array, " P"]
    structure: Structure
    num_data: int | float
    num_entries: Float[Array, "*entries"] | None = None

    def moved(self, step: Float[Array, " P"]) -> "Expansion":
        r"""Return the same expansion about $\theta + \Delta$; the curvature stays.

        Parameters
        ----------
        step
            $\Delta$, `(P,)`.
        """
        turned = self.structure.mv(step)
        with jax.default_matmul_precision("highest"):
            change = jnp.vdot(self.gradient, step) + 0.5 * jnp.vdot(step, turned)
        log_likelihood, gradient = self.log_likelihood - change, self.gradient + turned
        return replace(self, log_likelihood=log_likelihood, gradient=gradient)

    def joined(self, other: "Expansion") -> "Expansion":
        """Return the expansion of both sets of data, about the same parameters.

        Parameters
        ----------
        other
            With a structure of the same kind; see `combine`.
        """
        counts = self.num_entries, other.num_entries
        return Expansion(
            self.log_likelihood + other.log_likelihood,
            self.gradient + other.gradient,
            combine(self.structure, other.structure),
            self.num_data + other.num_data,
            None if any(count is None for count in counts) else sum(counts),
        )


@pytree_dataclass()
class Update:
    r"""The posterior of old and new data together.

    `step` `(P,)` leads from the old mode to the new one; `expansion` is that of all data about the
    new mode; `posterior` is the Gaussian of precision $H_1 + H_2 + d + $ `jitter` about it.
    """

    step: Float[Array, " P"]
    expansion: Expansion
    posterior: Posterior
    jitter: Float[Array, ""]


def updated(old: Expansion, new: Expansion, precision: Float[Array, " P"]) -> Update:
    r"""Return the posterior of old and new data, from expansions about the old mode.

    The old posterior is the prior of the new data, so that the mode moves by
    $\Delta = -(H_1 + H_2 + d)^{-1} g_2$; this assumes that the old parameters were a mode of the
    old posterior, whatever the prior mean. For a linear model with a Gaussian likelihood, two parts
    of the data in sequence give the same posterior and evidence as all data at once. Otherwise the
    step is as good as the expansion; if you train the parameters further on the new data yourself,
    use `old.moved(step).joined(new)` with the new data's expansion there.

    Parameters
    ----------
    old
        The expansion of the data of the posterior, about its mode.
    new
        The expansion of the new data, about the same parameters, in a structure of the same kind.
    precision
        The prior precision $d$, `(P,)`, counted once.

    Returns
    -------
    update
        Cost: that of `combine` and of the structure's posterior; no pass over any data.

    Raises
    ------
    TypeError, ValueError
        If the structures cannot be added, or the posterior precision is indefinite.

    References
    ----------
    Ritter, Botev and Barber (2018), Online structured Laplace approximations for overcoming
    catastrophic forgetting. Kirkpatrick et al. (2017), Overcoming catastrophic forgetting in neural
    networks. Huszár (2018), Note on the quadratic penalties in elastic weight consolidation.
    """
    together = old.joined(new)
    posterior, jitter = factorise(together.structure, precision)
    step = newton_step(posterior, new.gradient)
    return Update(step, together.moved(step), posterior, jitter)


def newton_step(posterior: Posterior, gradient: Float[Array, " P"]) -> Float[Array, " P"]:
    r"""Return $-\Sigma g$, the Newton step from the old mode to that with one more term.

    Parameters
    ----------
    posterior
        The posterior of all terms, including the new one's curvature.
    gradient
        The gradient of the new term, `(P,)`.

    Returns
    -------
    step
        Flat, `(P,)`. Cost: the posterior's root applied twice.
    """
    return -posterior.scale_mv(posterior.scale_rmv(gradient.astype(posterior.dtype)))


# --- the sum of two curvatures --------------------------------------------------------------------


def combine(old: Structure, new: Structure) -> Structure:
    r"""Return $H_1 + H_2$ in the structure that both have.

    Full and diagonal curvatures add up exactly. Dual ones concatenate their rows if these are not
    more than the parameters; otherwise, or to be added to a full matrix, they are multiplied out.
    For low rank the leading eigenpairs of the sum are kept: the larger of the two ranks, and at
    least 50; their `residuals` are bounds on $\|(H_1 + H_2) u - s u\|$, including the eigenpairs
    that both had left out. The sum of two Kronecker structures is an EKFAC one: its basis is that
    of the sum's exact partial traces over inputs and over outputs, and its values are the sum's
    diagonal in that basis, the best in the Frobenius norm. For sides of low rank see `wide_sum.py`.

    Parameters
    ----------
    old, new
        Curvatures at the same parameters, in structures of the same kind.

    Returns
    -------
    structure
        Cost: low rank, a QR decomposition of `(P, 2R)`; Kronecker, an eigendecomposition of every
        layer's factors; else the sum.

    Raises
    ------
    TypeError
        If the structures differ in kind, or are of one that cannot be added.
    ValueError
        If they belong to different parameters.

    References
    ----------
    Ritter, Botev and Barber (2018), Online structured Laplace approximations for overcoming
    catastrophic forgetting. George et al. (2018), Fast approximate natural gradient descent in a
    Kronecker-factored eigenbasis.
    """
    kinds = {type(old), type(new)}
    if len(kinds) > 1 and kinds != {FullStructure, DualStructure}:
        raise TypeError(
            f"Found curvatures of the structures {old.name} and {new.name}, expected two of the "
            "same kind; fit the new data with the structure that the old posterior has."
        )
    return _combine(old, new)


@jax.jit
def _combine(old, new):
    with jax.default_matmul_precision("highest"):
        if type(old) is not type(new):
            old, new = _to_full(old), _to_full(new)
        return sum_of_curvatures(old, new)


@singledispatch
def sum_of_curvatures(old: Structure, new: Structure) -> Structure:
    """Return $H_1 + H_2$ for structures of one kind; open to registration."""
    raise TypeError(
        f"Found a curvature of the structure {old.name}, which cannot be added to another, "
        "expected one that is full, diagonal, of low rank or Kronecker-factored; for a class of "
        "your own register the sum with laplace_kit.approx.sum_of_curvatures.register."
    )


def _check_same(what: str, old: object, new: object) -> None:
    if old != new:
        found = f" ({old} and {new})" if isinstance(old, int) else ""
        raise ValueError(
            f"Found two curvatures that differ in the {what}{found}, expected the same; fit the "
            "new data with the model, the subset and the kind of inputs of the old posterior."
        )


@sum_of_curvatures.register
def _(old: FullStructure, new):
    _check_same("number of parameters", len(old.matrix), len(new.matrix))
    return FullStructure(old.matrix + new.matrix)


@sum_of_curvatures.register
def _(old: RowsStructure, new):
    _check_same("number of parameters", old.size, new.size)
    _check_same("devices over which their rows are spread", old.placement, new.placement)
    return replace(old, matrix=old.matrix + new.matrix)


@sum_of_curvatures.register
def _(old: DiagonalStructure, new):
    _check_same("number of parameters", len(old.diagonal), len(new.diagonal))
    return DiagonalStructure(old.diagonal + new.diagonal)


@sum_of_curvatures.register
def _(old: DualStructure, new):
    parts = alike(old.design.rows, new.design.rows)
    shapes = ([leaf.shape[1:] for leaf in jax.tree.leaves(rows)] for rows in parts)
    _check_same("layers", *(rows.layouts for rows in parts))
    _check_same("shapes of their rows", *shapes)
    (num, size), (num_new, _) = old.design.shape, new.design.shape
    if num + num_new > size:
        return sum_of_curvatures(_to_full(old), _to_full(new))
    same = old.design.placement == new.design.placement
    placement = old.design.placement if same else None  # every device holds all rows then
    axes = None if placement is None else placement.axes
    rows = automatic(partial(jax.tree.map, lambda *of: jnp.concatenate(of)), *parts, axes=axes)
    return DualStructure(replace(old.design, rows=rows, placement=placement))


def _to_full(structure: Structure) -> Structure:
    """Return a dual curvature as a dense matrix; any other as it is."""
    if not isinstance(structure, DualStructure):
        return structure

    def multiply(design: Design) -> Array:
        rows = design.rows.to_dense().reshape(design.shape)
        return rows.T @ rows

    return FullStructure(automatic(multiply, structure.design))


@sum_of_curvatures.register
def _(old: LowRankStructure, new):
    _check_same("number of parameters", old.vectors.shape[1], new.vectors.shape[1])
    parts = [jnp.sqrt(part.values)[:, None] * part.vectors for part in (old, new)]
    basis, triangle = jnp.linalg.qr(jnp.concatenate(parts).T)
    vectors, roots, _ = jnp.linalg.svd(triangle, full_matrices=False)
    rank = max(len(old.values), len(new.values), DEFAULT_RANK)
    kept = (basis @ vectors[:, :rank]).T
    bound = _residual_bound(old, kept) + _residual_bound(new, kept)
    # Weyl: no eigenvalue of the sum is below the sum of the smallest ones.
    return LowRankStructure(roots[:rank] ** 2, kept, bound, old.smallest + new.smallest)


def _residual_bound(structure, vectors):
    r"""Bound $\|E u\|$ for unit vectors u, with E the part of the curvature that was left out.

    On an eigenvector $\|E u\|$ is its residual; elsewhere at most the smallest eigenvalue kept.
    """
    inside = vectors @ structure.vectors.T
    outside = jnp.linalg.norm(vectors - inside @ structure.vectors, axis=1)
    return jnp.abs(inside) @ structure.residuals + outside * structure.values.min()


@sum_of_curvatures.register
def _(old: KroneckerStructure, new):
    parts = (old.blocks, new.blocks)
    if _layouts(old.blocks) != _layouts(new.blocks):  # layers may be grouped otherwise
        parts = tuple(map(single, parts))
    _check_same("layers", *map(_layouts, parts))
    _check_same("forms of their factors", *([_form(block) for block in blocks] for blocks in parts))
    pairs = zip(*parts, strict=True)
    return KroneckerStructure(tuple(_sum_of_blocks(*pair) for pair in pairs), corrected=True)


def _layouts(blocks: tuple[Eigenblock | WideBlock, ...]) -> list[Layout]:
    return [block.layout for block in blocks]


def _form(block: Eigenblock | WideBlock) -> tuple[int, int] | None:
    """Return the wide side and its rank, or `None`."""
    return (block.axis, block.vectors.shape[2]) if isinstance(block, WideBlock) else None


def _sum_of_blocks(*blocks: Eigenblock | WideBlock) -> Eigenblock | WideBlock:
    if isinstance(blocks[0], WideBlock):
        return sum_of_wide_blocks(*blocks)
    left = _common_basis((block.left, block.values.sum(axis=2)) for block in blocks)
    right = _common_basis((block.right, block.values.sum(axis=1)) for block in blocks)
    values = sum(_diagonal_in(left, right, block) for block in blocks)
    return Eigenblock(left, right, values, blocks[0].layout)


def _common_basis(factors):
    r"""Return the eigenvectors of $\sum Q \operatorname{diag}(s) Q^\top$; `None` for identity."""
    factors = tuple(factors)
    if any(basis is None for basis, _ in factors):
        return None
    total = sum(jnp.einsum("gij,gj,gkj->gik", basis, part, basis) for basis, part in factors)
    return jnp.linalg.eigh(total)[1]


def _diagonal_in(left, right, block: Eigenblock) -> Float[Array, "G I O"]:
    """Return a layer's diagonal in another basis, by squared cosines between the bases."""
    values = block.values
    if block.left is not None:
        cosines = block.left if left is None else left.mT @ block.left
        values = jnp.einsum("gij,gjo->gio", cosines**2, values)
    if block.right is not None:
        cosines = block.right if right is None else right.mT @ block.right
        values = jnp.einsum("gpo,gio->gip", cosines**2, values)
    return values
