r"""The summed loss near the mode, on grids in a few directions of parameter space."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.bars import titled
from laplace_kit.chunks import chunk_of_sum
from laplace_kit.curv.capture.layers import Layer
from laplace_kit.curv.capture.layout import to_flat
from laplace_kit.curv.objective import Objective, chunk_loss, restrict
from laplace_kit.curv.operator import check_outputs
from laplace_kit.curv.vector import read_vectors
from laplace_kit.data import Chunk, DataLike, as_data, batch_spec, is_shared
from laplace_kit.errors import check_count
from laplace_kit.host import check_same
from laplace_kit.likelihood import LikelihoodLike, as_likelihood
from laplace_kit.memory import Limits
from laplace_kit.sums import sum_over
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class Landscape:
    r"""Losses on a grid: `losses[i, j]` at $\theta + s_i v_1 + t_j v_2$.

    `coordinates` holds the coordinates $s$ `(G1,)`, $t$ `(G2,)`, ... in each direction; `losses`
    has an axis for each of them.
    """

    coordinates: tuple[Float[Array, " _"], ...]
    losses: Float[Array, "..."]


def loss_along(
    model_fn: Callable,
    params: PyTree,
    data: DataLike,
    likelihood: LikelihoodLike,
    directions: PyTree,
    coordinates: Float[ArrayLike, " G"] | Sequence[Float[ArrayLike, " _"]],
    *,
    batch_size: int | None = None,
    memory_limit: int | None = None,
) -> Landscape:
    r"""Return the summed negative log-likelihood on a grid, $\mathcal L(\theta + \sum_k t_k v_k)$.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure.
    params
        $\theta$, a pytree; leaves that are not floating point are frozen.
    data
        `(x, y)` or `(x, y, weights)` in memory, or an iterable of such.
    likelihood
        A likelihood object, its name, or a loss `(f, y)` of one example.
    directions
        K of them, usually one or two: `(K, P)` flat, or a pytree like `params` whose leaves have a
        leading axis K. `random_directions`, or the leading eigenvectors of an operator, such as
        `eigenpairs(operator, 2, key=key).vectors`.
    coordinates
        Grid points along every direction, `(G,)`, or one such array for each; zero is $\theta$.
    batch_size, memory_limit
        Bounds of the memory, as for `GGNOperator`.

    Returns
    -------
    landscape
        Losses `(G, ...)` with one axis for each direction. Cost: one forward pass for each point of
        the grid, in one program and one pass over the data.

    Raises
    ------
    TypeError, ValueError
        If data, outputs, targets and likelihood are inconsistent, the directions are neither
        form of K vectors, or the number of arrays of coordinates is not K.

    References
    ----------
    Goodfellow, Vinyals and Saxe (2015), Qualitatively characterizing neural network optimization
    problems. Li et al. (2018), Visualizing the loss landscape of neural nets.
    """
    data = as_data(data, once=True)
    shared = is_shared(data)
    check_same("parameters or data", (params, data), shared=shared)
    limits = Limits(batch_size, memory_limit).shared_by(params, data, shared=shared)
    x, y = batch_spec(data)
    objective = restrict(model_fn, params, as_likelihood(likelihood))[0].planned(x)
    check_outputs(objective, x, y)
    num = _num_directions(directions, tree.size(objective.params))
    vectors, _ = read_vectors(directions, params, objective.params, (num,))
    axes = _read_coordinates(coordinates, num, tree.dtype(objective.params))
    points = jnp.stack([t.ravel() for t in jnp.meshgrid(*axes, indexing="ij")], axis=1)
    args = objective, tree.ravel(vectors, num_leading=1), points
    size = chunk_of_sum(_losses_at, args, data, limits)
    losses = sum_over(_losses_at, args, data, size)
    return Landscape(axes, losses.reshape([len(t) for t in axes]))


@titled("losses on the grid")
def _losses_at(
    args: tuple[Objective, Float[Array, "K P"], Float[Array, "G K"]], chunk: Chunk
) -> Float[Array, " G"]:
    """Return one chunk's losses at all points of the grid, one after the other."""
    objective, vectors, points = args
    origin = tree.ravel(objective.params)

    def at(point: Float[Array, " K"]) -> Float[Array, ""]:
        moved = origin + jnp.sum(point[:, None] * vectors, axis=0)
        return chunk_loss(objective, tree.unravel(moved, objective.params), chunk)

    return jax.lax.map(at, points)


def _num_directions(directions: PyTree, num_params: int) -> int:
    first = next(iter(jax.tree.leaves(directions)), 0.0)
    num = jnp.shape(first)[0] if jnp.ndim(first) else 0
    is_vector = getattr(directions, "shape", None) == (num_params,) and num_params > 1
    if num == 0 or is_vector:
        raise ValueError(
            f"Found directions of the shapes {[*map(jnp.shape, jax.tree.leaves(directions))]}, "
            "expected at least one, along a leading axis; a single one is v[None]."
        )
    return num


def _read_coordinates(coordinates, num: int, dtype: jnp.dtype) -> tuple[Array, ...]:
    """Return one array for each direction."""
    one = not isinstance(coordinates, Sequence)
    axes = tuple(jnp.asarray(t, dtype) for t in ([coordinates] * num if one else coordinates))
    if len(axes) != num or any(t.ndim != 1 or t.size == 0 for t in axes):
        raise ValueError(
            f"Found coordinates of the shapes {[t.shape for t in axes]} for {num} directions, "
            "expected one array (G,) for all, or a sequence of one for each; see jnp.linspace."
        )
    return axes


def random_directions(
    model_fn: Callable, params: PyTree, x: PyTree, *, key: PRNGKeyArray, num: int = 2
) -> Float[Array, "K P"]:
    r"""Return Gaussian directions, filter-normalised to the norms of the parameters' filters.

    A filter is the weights of one output of a layer: a column of its weight matrix, or the kernel
    of one output channel, with its bias. Layer capture finds them for any model. A parameter that
    enters no matrix product, such as a scale, is one filter. A coordinate is then a relative change
    of every filter, and networks that compute the same function with other scales look alike.
    Directions without normalisation are `jax.random.normal(key, (num, P))`.

    Parameters
    ----------
    model_fn, params
        As for `loss_along`.
    x
        Inputs with a leading axis, or their `jax.ShapeDtypeStruct`s: values are not read.
    key
        A random key.
    num
        K, the number of directions.

    Returns
    -------
    directions
        In flat order, `(K, P)`. Cost: one trace of the model.

    Raises
    ------
    ValueError
        If `num` is not positive.

    References
    ----------
    Li et al. (2018), Visualizing the loss landscape of neural nets, section 4.
    """
    check_count("num", num, "directions")
    objective = restrict(model_fn, params)[0].planned(x)
    theta = tree.ravel(objective.params)
    drawn = jax.random.normal(key, (num, len(theta)), theta.dtype)
    found = objective.plan.layers
    scaled = [_filter_normalised(layer, theta, drawn) for layer in found.layers]
    return to_flat(found.layouts, scaled).T


def _filter_normalised(
    layer: Layer, theta: Float[Array, " P"], drawn: Float[Array, "K P"]
) -> Float[Array, "G I O K"]:
    """Return a layer's part of the draws, its filters scaled to the norms of the parameters'."""
    axes = (0, 1, 2) if layer.product is None else 1
    weights, directions = (layer.layout.to_matrix(flat) for flat in (theta[:, None], drawn.T))
    wanted, found = (
        jnp.sqrt(jnp.sum(matrix**2, axes, keepdims=True)) for matrix in (weights, directions)
    )
    return directions * wanted / found
