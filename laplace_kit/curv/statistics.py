"""Curvature layer by layer, as a table: trace, mean diagonal and largest eigenvalue of blocks."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.linearization import linearized
from laplace_kit.curv.matrix_free.host import on_host, product
from laplace_kit.curv.matrix_free.tridiagonal import lanczos, ritz_pairs
from laplace_kit.curv.partition import Groups, block_diagonal
from laplace_kit.errors import check_count
from laplace_kit.memory import Limits
from laplace_kit.tree import pytree_dataclass

_ROUNDINGS = 10  # error of residuals, in roundings of the largest number of the recurrence


@pytree_dataclass(static=("names", "num_parameters"))
class LayerStatistics:
    """Statistics of the K diagonal blocks of a curvature matrix; `print` shows a table.

    `names` and `num_parameters` have one entry per block; `trace` and `largest_eigenvalue` are
    `(K,)`, and so is `residual`: a block has an eigenvalue within this distance of
    `largest_eigenvalue`.
    """

    names: tuple[str, ...]
    num_parameters: tuple[int, ...]
    trace: Float[Array, " K"]
    largest_eigenvalue: Float[Array, " K"]
    residual: Float[Array, " K"]

    @property
    def mean_diagonal(self) -> Float[Array, " K"]:
        """The mean of each block's diagonal, which is that of its eigenvalues."""
        return self.trace / jnp.asarray(self.num_parameters, self.trace.dtype)

    def to_dict(self) -> dict[str, list]:
        """Return the columns of the table by name, for `pandas.DataFrame` and others."""
        return {
            "layer": list(self.names),
            "parameters": list(self.num_parameters),
            "trace": self.trace.tolist(),
            "mean diagonal": self.mean_diagonal.tolist(),
            "largest eigenvalue": self.largest_eigenvalue.tolist(),
            "residual": self.residual.tolist(),
        }

    def __str__(self) -> str:
        """Return a table in Markdown, one line for each block."""
        columns = [[name, *map(_text, column)] for name, column in self.to_dict().items()]
        widths = [max(map(len, column)) for column in columns]
        aligned = [
            [text.rjust(width) for text in column]
            for width, column in zip(widths, columns, strict=True)
        ]
        aligned[0] = [text.strip().ljust(widths[0]) for text in aligned[0]]
        header, *rows = zip(*aligned, strict=True)
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))

    def _repr_markdown_(self) -> str:
        return str(self)


def _text(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def layer_statistics(
    operator: SelfAdjointOperator,
    *,
    key: PRNGKeyArray,
    by: Literal["leaf", "layer"] | Groups = "layer",
    diagonal: Float[ArrayLike, " P"] | None = None,
    num_steps: int = 20,
    memory_limit: int | None = None,
) -> LayerStatistics:
    r"""Return trace, mean diagonal and largest eigenvalue of each layer's block of the curvature.

    The largest eigenvalue of block k is the largest Ritz value of `num_steps` steps of Lanczos on
    $E_k^\top H E_k$, with full reorthogonalisation. It is never too large, and its residual
    $\|E_k^\top H E_k u - \lambda u\|$, rounding included, bounds its distance to an eigenvalue.

    Parameters
    ----------
    operator
        A curvature operator, or one composed of them; in memory or over a stream.
    key
        Random key for the start vectors.
    by
        The blocks: `"layer"`, a weight with its bias, `"leaf"`, or groups by name; see
        `block_diagonal`.
    diagonal
        The matrix's diagonal in flat order `(P,)`, if it is known or estimated; by default
        `operator.diagonal()`, which is exact, and costs P products for a Hessian.
    num_steps
        The number of products for each eigenvalue.
    memory_limit
        In bytes, for the vectors of Lanczos; `None` for a share of the device's memory.

    Returns
    -------
    statistics
        K blocks, in flat order. Cost: the diagonal, and `num_steps` products for each block.

    Raises
    ------
    ValueError
        If `num_steps` is not positive, the diagonal does not have P values, or `block_diagonal`
        refuses the blocks.

    Examples
    --------
    >>> model_fn, params = lk.model.from_nnx(module)
    >>> operator = curv.GGNOperator(model_fn, params, (x, y), "categorical")
    >>> print(curv.layer_statistics(operator, key=jax.random.key(0)))
    """
    check_count("num_steps", num_steps, "products")
    num = operator.shape[0]
    if diagonal is not None and jnp.shape(diagonal) != (num,):
        raise ValueError(
            f"Found a diagonal of shape {jnp.shape(diagonal)}, expected ({num},), one value for "
            "each parameter; leave it out to have it computed."
        )
    blocks = block_diagonal(operator, by)
    numbers = [blocks.numbers(name) for name in blocks.blocks]
    sizes = tuple(map(len, numbers))
    diagonal = operator.diagonal() if diagonal is None else jnp.asarray(diagonal)
    block_of = np.zeros(num, np.int32)
    for block, indices in enumerate(numbers):
        block_of[indices] = block
    block_of = jnp.asarray(block_of)
    num_steps = min(num_steps, max(sizes))
    krylov_bytes = 2 * num_steps * num * operator.dtype.itemsize
    at_once = min(len(sizes), Limits(memory=memory_limit).chunk_size(krylov_bytes))
    values, residuals = on_host(
        _largest_eigenvalues, linearized(operator), block_of, key, len(sizes), num_steps, at_once
    )
    trace = jax.ops.segment_sum(diagonal, block_of, len(sizes))
    return LayerStatistics(blocks.blocks, sizes, trace, values, residuals)


@partial(jax.jit, static_argnames=("num_blocks", "num_steps", "batch_size"))
def _largest_eigenvalues(
    operator: SelfAdjointOperator,
    block_of: Int[Array, " P"],
    key: PRNGKeyArray,
    num_blocks: int,
    num_steps: int,
    batch_size: int,
) -> tuple[Float[Array, " K"], Float[Array, " K"]]:
    """Return the largest Ritz value of every block and its residual; some blocks at a time."""
    dtype = jnp.promote_types(operator.dtype, jnp.float32)
    start = jax.random.normal(key, block_of.shape, dtype)
    whole = product(operator)

    def largest(block: Int[Array, ""]) -> tuple[Array, Array]:
        def keep(v: Float[Array, " P"]) -> Float[Array, " P"]:
            return jnp.where(block_of == block, v, 0)

        _, alphas, betas = lanczos(lambda v: keep(whole(v)), keep(start), num_steps)
        values, vectors = ritz_pairs(alphas, betas)
        rounding = _ROUNDINGS * jnp.finfo(dtype).eps * jnp.abs(alphas).max()
        return values[-1], betas[-1] * jnp.abs(vectors[-1, -1]) + rounding

    return jax.lax.map(largest, jnp.arange(num_blocks), batch_size=batch_size)
