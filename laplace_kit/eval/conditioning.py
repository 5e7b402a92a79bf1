r"""Batches of inputs chosen greedily by Gaussian outputs, each conditioned on those before.

With $S_i S_i^\top$ the curvature of the likelihood at input i, its label lowers the covariance of
the outputs at input n by $L_n L_n^\top$, $L_n = V_{ni} S_i (I + S_i^\top V_{ii} S_i)^{-1/2}$, with
$V$ the covariance that the labels before have left. That is $J_n u$ for C vectors
$u = \Sigma J_A^\top b$, combinations of the rows of the inputs A chosen so far: one pass over the
pool with C tangents, and no covariance between inputs of the pool.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, PyTree

from laplace_kit import tree
from laplace_kit.approx.posterior import Posterior
from laplace_kit.chunks import chunk_of_map
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.objective import Objective
from laplace_kit.data import Chunk, InMemory
from laplace_kit.derivatives import linearize
from laplace_kit.eval.moments import accurate, inputs_at_a_time
from laplace_kit.likelihood import Likelihood
from laplace_kit.memory import readable
from laplace_kit.placement import placement_of
from laplace_kit.sums import map_over, sum_over
from laplace_kit.targets.expectation import covariance_root

Criterion = Literal["variance", "logdet"]
# Labels drawn for a curvature that depends on them.
_LABELS = 16


def batch_by_outputs(
    objective: Objective,
    posterior: Posterior,
    pool: PyTree,
    held: int,
    num: int,
    criterion: Criterion,
) -> Int[Array, " num"]:
    r"""Return the inputs that add most to the total variance or the information, one by one.

    Parameters
    ----------
    objective, posterior
        The model at its mode, planned, and the Gaussian over its free parameters, for prediction.
    pool, held
        Inputs, only the first `held` of which may be chosen.
    num
        How many to choose, at most `held`.
    criterion
        The variance $\operatorname{tr} V_n$, or the information $\log |I + S_n^\top V_n S_n|$.

    Raises
    ------
    ValueError
        If what is kept for all inputs, or one input with all outputs, exceeds the memory limit.
    """
    limits, num_outputs = objective.limits, objective.plan.num_outputs
    rows = len(jax.tree.leaves(pool)[0])
    _check_kept_fits(rows, num, num_outputs, posterior, limits.budget, criterion)
    size, placement = inputs_at_a_time(objective, posterior), placement_of(pool)
    tangents = jax.ShapeDtypeStruct((num_outputs, posterior.size), posterior.dtype)
    reduction = _Reduction(criterion)
    pushed = chunk_of_map(reduction, (objective, tangents), pool, limits, placement)
    remaining = map_over(_Remaining(criterion), (objective, posterior), pool, size)
    indices = jnp.full(num, rows)
    basis = jnp.zeros((num, num_outputs, num, num_outputs), posterior.dtype)
    for step in range(num):
        indices = _choose(remaining, indices, step, held)
        if step + 1 < num:
            basis, vectors = _condition(objective, posterior, pool, indices, basis, step, size)
            change = map_over(reduction, (objective, vectors), pool, pushed, placement)
            remaining = _lowered(remaining, change)
    return indices


def _check_kept_fits(rows, num, num_outputs, posterior, limit, criterion) -> None:
    each = 1 if criterion == "variance" else num_outputs**2
    needed = (2 * rows * each + 2 * (num * num_outputs) ** 2) * posterior.dtype.itemsize
    if needed > limit:
        raise ValueError(
            f"Found a pool of {rows} inputs with {num_outputs} output(s), and num={num}, for which "
            f"{readable(needed)} are kept, expected at most the memory limit of {readable(limit)}; "
            "pass a random part of the pool, choose fewer at a time, or raise memory_limit=."
        )


# --- the curvature of the likelihood --------------------------------------------------------------


def curvature_root(likelihood: Likelihood, f: Float[Array, "B *event"]) -> Float[Array, "B C C"]:
    r"""Return $S_n$ with $S_n S_n^\top$ the expected curvature of the likelihood at outputs.

    Where the curvature depends on the label it is the mean over labels drawn with a fixed key.
    """
    keys = jax.random.split(jax.random.key(0), _LABELS)

    def curvature(f):
        units = jnp.eye(f.size, dtype=f.dtype).reshape(-1, *f.shape)

        def at_label(key):
            y = likelihood.sample(key, f)
            return jax.vmap(lambda u: likelihood.hessian_mv(f, y, u).reshape(-1))(units)

        return jax.vmap(at_label)(keys).mean(axis=0)

    return covariance_root(jax.vmap(curvature)(f))


def whitened(
    covariance: Float[Array, "B C C"], root: Float[Array, "B C C"]
) -> Float[Array, "B C C"]:
    r"""Return $S_n^\top V_n S_n$."""
    with jax.default_matmul_precision("highest"):
        return root.mT @ covariance @ root


# --- what is kept of each input -------------------------------------------------------------------


class _Remaining(NamedTuple):
    r"""What is kept of each input: $\operatorname{tr} V_n$ or $S_n^\top V_n S_n$; hashable."""

    criterion: Criterion

    def __call__(self, args, x):
        objective, posterior = args
        f, rows = jacobian(objective, x)
        rows = rows.astype(posterior.dtype)
        if self.criterion == "variance":
            return posterior.output_variance(rows).sum(axis=1)
        root = curvature_root(objective.likelihood, accurate(f)).astype(posterior.dtype)
        return whitened(posterior.output_covariance(rows), root)


class _Reduction(NamedTuple):
    r"""By what a label lowers that: $L_n L_n^\top$ in the same form; hashable."""

    criterion: Criterion

    def __call__(self, args, x):
        objective, vectors = args
        params = objective.params
        f, push_forward, _ = linearize(lambda free: objective.model_fn(free, x), params)
        images = jax.vmap(lambda v: push_forward(tree.unravel(v, params)), out_axes=-1)(vectors)
        lowering = images.reshape(len(f), -1, len(vectors)).astype(vectors.dtype)
        if self.criterion == "variance":
            return jnp.sum(lowering**2, axis=(1, 2))
        root = curvature_root(objective.likelihood, accurate(f)).astype(vectors.dtype)
        with jax.default_matmul_precision("highest"):
            part = root.mT @ lowering
            return part @ part.mT


@jax.jit
def _lowered(remaining, change):
    return remaining - change


@jax.jit
def _choose(remaining, indices, step, held):
    """Return the indices with the best of the inputs that are not among them yet."""
    scores = remaining
    if remaining.ndim == 3:
        values = jnp.maximum(jnp.linalg.eigvalsh(remaining), 0)
        scores = jnp.sum(jnp.log1p(values), axis=-1)  # log det, also of tiny ones
    is_free = jnp.arange(len(scores)) < held
    is_free = is_free.at[indices].set(False, mode="drop")
    return indices.at[step].set(jnp.argmax(jnp.where(is_free, scores, -jnp.inf)))


# --- the next label -------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="size")
def _condition(objective, posterior, pool, indices, basis, step, size):
    r"""Return coefficients with those of one more label, and its vectors u `(C, P)`.

    `basis` `(num, C, num, C)` holds for each label the coefficients b of the rows of the inputs
    chosen, a block Cholesky factor that grows by one column; later inputs have zeros.
    """
    chosen = jax.tree.map(lambda leaf: leaf.at[indices].get(mode="clip"), pool)
    own = jax.tree.map(lambda leaf: leaf[indices[step]][None], pool)
    f, rows = jacobian(objective, own)
    rows = rows.astype(posterior.dtype)
    root = curvature_root(objective.likelihood, accurate(f))[0].astype(posterior.dtype)
    kernel = map_over(_with_rows, (objective, posterior, rows), chosen, size)
    with jax.default_matmul_precision("highest"):
        before = jnp.einsum("jcbk,jcd,de->bke", basis, kernel, root)
        gain = jnp.eye(len(root), dtype=root.dtype) + root.T @ kernel[step] @ root
        factor = jnp.linalg.cholesky(gain - jnp.einsum("bkd,bke->de", before, before))
        column = jnp.zeros_like(kernel).at[step].set(root)
        column -= jnp.einsum("jcbk,bke->jce", basis, before)
        shape = column.shape
        column = solve_triangular(factor, column.reshape(-1, shape[-1]).T, lower=True).T
        column = column.reshape(shape)
        pulled = sum_over(_pulled, objective, InMemory(chosen, column), size)
        vectors = posterior.scale_mv(posterior.scale_rmv(pulled.T.astype(posterior.dtype)))
    return basis.at[:, :, step].set(column), vectors


def _with_rows(args, x):
    r"""Return $J_n \Sigma J_i^\top$ for the rows of one input i, `(B, C, C)`."""
    objective, posterior, rows = args
    others = jacobian(objective, x)[1].astype(posterior.dtype)
    return posterior.cross_covariance(others, rows)[:, :, 0]


def _pulled(objective, chunk: Chunk) -> Float[Array, "P C"]:
    """Return the combination of rows with the coefficients y `(B, C, C)` of the chunk."""
    _, rows = jacobian(objective, chunk.x)
    weights = chunk.weight.astype(chunk.y.dtype)[:, None, None]
    return rows.astype(chunk.y.dtype).combine(weights * chunk.y)
