r"""Influence: how a prediction would change if a training example were left out, to first order.

At the mode the gradients of all losses and of the prior add up to zero. Without example n the mode
moves by $\Sigma g_n$ to first order, with $\Sigma = (H + d)^{-1}$ and $g_n$ the gradient of its
loss, so that a measure q with the gradient $g_q$ changes by $g_q^\top \Sigma g_n$.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from laplace_kit import tree
from laplace_kit.approx.choice import operator_of
from laplace_kit.approx.posterior import Posterior
from laplace_kit.curv.capture.capture import capture
from laplace_kit.curv.capture.cost import choose_held, multiplied_out, projections, rows_cost
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.curv.matrix_free.solve import InverseOperator
from laplace_kit.curv.mode import labelled
from laplace_kit.curv.objective import Objective
from laplace_kit.curv.operator import check_outputs
from laplace_kit.curv.per_example import gradient_rows
from laplace_kit.curv.spec import CurvatureSpec
from laplace_kit.data import Chunk, as_data, batch_spec, is_shared, read_batches, whole
from laplace_kit.errors import check_count, check_option
from laplace_kit.eval.inputs import checked_inputs
from laplace_kit.host import check_same, fetch
from laplace_kit.sums import map_over
from laplace_kit.tree import pytree_dataclass

Measure = Literal["loss", "output"] | Callable[[Array, Any], Array]
# Copies of the queries' gradients that a step holds: themselves, their images, both laid out.
_COPIES = 4


@pytree_dataclass(static=("layers",))
class Influence:
    r"""First-order changes of Q measures if one training example were left out.

    Attributes
    ----------
    scores
        `(Q, N)`, or `(Q, 2k)` with `top=k`: the k largest in descending order, and then the k
        smallest. In the unit of the measure; for losses in nats, where a positive score means that
        the loss would rise without the example, which is helpful.
    examples
        Which training example each score belongs to, of the shape of `scores`; `None` where column
        n is example n.
    layers
        The paths of the layers' weights, in flat order; empty unless asked for.
    by_layer
        `(Q, L, N)` or `(Q, L, 2k)`: the parts of each layer's parameters in the scores, which add
        up to them over L.
    """

    scores: Float[Array, "Q K"]
    examples: Int[Array, "Q K"] | None
    layers: tuple[str, ...]
    by_layer: Float[Array, "Q L K"] | None


def influence(
    objective: Objective,
    apply_covariance: Callable[[Float[Array, "Q P"]], Float[Array, "Q P"]],
    query: Any,
    train: Any,
    *,
    measure: Measure = "loss",
    top: int | None = None,
    by: Literal["example", "layer"] = "example",
    num_data: int | float | None = None,
) -> Influence:
    r"""Return $g_q^\top \Sigma g_n$ for all queries and training examples.

    Parameters
    ----------
    objective
        The model at its mode, whose limits bound the memory.
    apply_covariance
        From flat vectors $v$ `(Q, P)` to $\Sigma v$, such as `posterior_covariance`.
    query
        Labelled data `(x, y)`; for `"output"` also inputs alone.
    train
        The training data, `(x, y)` or `(x, y, weights)` in memory or an iterable of such, over
        which one pass is made for each part of the queries that fits the memory.
    measure
        What is measured of a query: its `"loss"`; its `"output"`, for models with one; or a
        function `(f, y) -> scalar` of one example's outputs and targets. A function is compiled:
        define it once.
    top
        Keep the k largest and the k smallest scores of each query, in memory independent of N.
    by
        `"layer"` also returns the parts of each layer's parameters.
    num_data
        The number of examples, or the sum of weights, that `train` should have.

    Returns
    -------
    influence
        Nothing of size N x P is held. Cost: a gradient and a product with $\Sigma$ for each query;
        a forward and a backward pass over the training data, and Q products of each gradient, in
        its factors, with a vector.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown; if data and model are inconsistent; if `top` exceeds half of the
        training examples, or their number is not `num_data`.

    References
    ----------
    Koh and Liang (2017), Understanding black-box predictions via influence functions. Grosse et al.
    (2023), Studying large language model generalization with influence functions.
    """
    check_option("by", by, ("example", "layer"))
    if not callable(measure):
        check_option("measure", measure, ("loss", "output"))
    if top is not None:
        check_count("top", top, "examples")
    x, y = _read_query(objective, query, measure)
    objective = objective.planned(x)
    if measure == "output" and objective.plan.num_outputs != 1:
        raise ValueError(
            f"Found measure='output' for a model with {objective.plan.num_outputs} outputs, "
            "expected one output; pass a function such as measure=lambda f, y: f[0]."
        )
    num = len(jax.tree.leaves(x)[0])
    in_part = _queries_at_a_time(objective, num)
    data = as_data(train, once=in_part >= num)
    shared = is_shared(data)
    check_same("queries or parameters", (objective.params, x, y), shared=shared)
    check_outputs(objective, *batch_spec(data))
    parts = []
    for start in range(0, num, in_part):
        rows = jax.tree.map(lambda a: a[start : start + in_part], (x, y))  # noqa: B023
        moved = apply_covariance(_query_gradients(objective, *rows, measure))
        parts.append(_scores(objective, moved, data, top, by == "layer", num_data))
    scores, examples = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    totals = scores.sum(axis=1, dtype=scores.dtype)
    examples = None if top is None else jax.device_put(examples)
    if by == "example":
        return Influence(jax.device_put(totals), examples, (), None)
    leaves = objective.plan.layers.leaves
    names = tuple(leaf.path for leaf in leaves if leaf.weight == leaf.path)
    return Influence(jax.device_put(totals), examples, names, jax.device_put(scores))


@jax.jit
def posterior_covariance(posterior: Posterior, vectors: Float[Array, "Q P"]) -> Float[Array, "Q P"]:
    r"""Return $\Sigma v$ for flat vectors, by a posterior's own root."""
    with jax.default_matmul_precision("highest"):
        return posterior.scale_mv(posterior.scale_rmv(vectors.astype(posterior.dtype)))


def exact_covariance(
    objective: Objective,
    curvature: CurvatureSpec,
    posterior: Posterior,
    precision: Float[Array, " P"],
    train: Any,
) -> Callable[[Float[Array, "Q P"]], Float[Array, "Q P"]]:
    r"""Return the product with $(H + d)^{-1}$ of the exact curvature, by conjugate gradients.

    Parameters
    ----------
    objective, curvature
        The model at its mode, and the curvature to sum over the training data.
    posterior
        Its covariance preconditions the solves: the closer its structure, the fewer steps.
    precision
        The prior precision d, `(P,)`, in both.
    train
        The training data, in memory or an iterable that can be iterated again.

    Returns
    -------
    apply_covariance
        Q vectors share each pass over the data. It warns where a solve does not converge.
    """
    data = as_data(train)
    operator = operator_of(curvature, objective.planned(batch_spec(data)[0]), data)
    inverse = InverseOperator(
        operator, damping=precision, preconditioner=CovariancePreconditioner(posterior)
    )
    return lambda vectors: inverse.solve_many(vectors).x


@pytree_dataclass()
class CovariancePreconditioner:
    r"""A posterior's covariance as the preconditioner of solves with its exact operator."""

    posterior: Posterior

    def mv(self, v: Float[Array, " P"]) -> Float[Array, " P"]:
        """Return the product with one flat vector, in its dtype."""
        return posterior_covariance(self.posterior, v[None])[0].astype(v.dtype)


def _read_query(objective: Objective, query: Any, measure: Measure) -> tuple[PyTree, PyTree]:
    is_pair = isinstance(query, tuple) and len(query) == 2
    if measure == "output":
        x = checked_inputs(query[0] if is_pair else query)
        return x, np.zeros(len(jax.tree.leaves(x)[0]))  # no targets
    return labelled(objective, query)[:2]


def _queries_at_a_time(objective: Objective, num: int) -> int:
    size = tree.size(objective.params) * max(tree.dtype(objective.params).itemsize, 4)
    return min(num, max(objective.limits.working_set() // (_COPIES * size), 1))


# --- gradients of the measures --------------------------------------------------------------------


class _QueryRows(NamedTuple):
    """The gradients of a measure of each query; hashable, to be compiled once."""

    measure: Measure

    def __call__(self, objective: Objective, batch: Chunk) -> Float[Array, "B P"]:
        return self.rows(objective, batch).to_dense()[:, 0]

    def rows(self, objective: Objective, batch: Chunk) -> Rows:
        """Return the gradients in factors."""
        if self.measure == "loss":
            return gradient_rows(objective, batch)
        captured = capture(objective, batch.x)
        if self.measure == "output":
            return captured.pull(jnp.ones_like(captured.outputs)[:, None])
        found = jax.vmap(jax.grad(self.measure))(captured.outputs, batch.y)
        return captured.pull(found[:, None])


def _query_gradients(
    objective: Objective, x: PyTree, y: PyTree, measure: Measure
) -> Float[Array, "Q P"]:
    size = choose_held(rows_cost(objective, multiplied_out), 1, objective.limits).batch_size
    ones = jax.device_put(np.ones(len(jax.tree.leaves(x)[0]), np.float32))
    return map_over(_QueryRows(measure), objective, Chunk(x, y, ones), size)


# --- over the training data -----------------------------------------------------------------------


def _scores(objective, moved, data, top, by_layer, num_data):
    """Return scores `(Q, L, K)` and the examples `(Q, K)` that they belong to, on the host."""
    work = partial(projections, num_vectors=len(moved))
    size = choose_held(rows_cost(objective, work), 1, objective.limits).batch_size
    kept, num, total = None, 0, 0.0
    parts = []
    for batch in read_batches(data, "influence"):
        chunk = whole(batch)
        found = fetch(map_over(_Products(by_layer), (objective, moved), chunk, size))
        rows = np.arange(num, num + batch.num_examples)
        num, total = num + batch.num_examples, total + float(fetch(chunk.weight).sum())
        if top is None:
            parts.append(found)
        else:
            kept = _extremes(kept, np.moveaxis(found, 0, -1), rows, top)
    check_num_data(total, num_data)
    if top is not None and 2 * top > num:
        raise ValueError(
            f"Found top={top} for {num} training examples, expected at most half of them; lower "
            "top, or leave it out for all scores."
        )
    if kept is not None:
        return kept
    scores = np.moveaxis(np.concatenate(parts), 0, -1)
    return scores, np.zeros((len(scores), 0), np.int32)


class _Products(NamedTuple):
    r"""The products $v_q^\top g_n$, of all layers together or of each; hashable."""

    by_layer: bool

    def __call__(self, args, batch: Chunk) -> Float[Array, "B Q L"]:
        objective, vectors = args
        rows = gradient_rows(objective, batch).astype(vectors.dtype)
        rows = rows.split() if self.by_layer else rows
        with jax.default_matmul_precision("highest"):
            matrices = [layout.to_matrix(vectors.T) for layout in rows.layouts]
            if not self.by_layer:
                return rows.project(matrices)[:, 0, :, None]
            pairs = zip(rows.blocks, matrices, strict=True)
            return jnp.stack([block.project(part)[:, 0] for block, part in pairs], axis=-1)


def _extremes(kept, scores: Float[np.ndarray, "Q L B"], rows: Int[np.ndarray, " B"], top: int):
    """Return the `top` largest and smallest of those kept so far and new ones, in order."""
    examples = np.broadcast_to(rows.astype(np.int32), (len(scores), len(rows)))
    if kept is not None:
        scores = np.concatenate([kept[0], scores], axis=-1)
        examples = np.concatenate([kept[1], examples], axis=-1)
    order = np.argsort(-scores.sum(axis=1), axis=-1, kind="stable")
    if order.shape[-1] > 2 * top:
        order = np.concatenate([order[:, :top], order[:, -top:]], axis=-1)
    chosen = np.take_along_axis(scores, order[:, None], axis=-1)
    return chosen, np.take_along_axis(examples, order, axis=-1)


def check_num_data(found: int | float, num_data: int | float | None) -> None:
    """Refuse training data whose number of examples, or sum of weights, is not the posterior's."""
    if num_data is not None and abs(found - num_data) > 1e-4 * num_data:
        raise ValueError(
            f"Found {found:g} training examples, or sum of their weights, for a posterior that was "
            f"fitted to {num_data:g}, expected the same data; pass what fit was given."
        )
