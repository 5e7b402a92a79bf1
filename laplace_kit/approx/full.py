r"""The full posterior: the dense `(P, P)` curvature, one Cholesky factor for each prior.

`Full` uses this primal form or the dual form of `dual.py`, whose matrix has M rows: one for each
example and column of the curvature's factor in its outputs. Both are exact.
"""

import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from laplace_kit.approx.by_rows import by_rows_bytes, fit_by_rows
from laplace_kit.approx.dual import dual_bytes, dual_work, fit_dual
from laplace_kit.approx.posterior import Posterior, Spectrum, Structure, keep, without_rounding
from laplace_kit.approx.spec import Sizes, StructureSpec, settled
from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.errors import check_option
from laplace_kit.storage import storable
from laplace_kit.tree import pytree_dataclass, replace

Form = Literal["auto", "primal", "by_rows", "dual"]
# Up to this many parameters the matrix is cheap, and its rounding error is smaller.
_ALWAYS_PRIMAL = 2000


@storable("FullStructure")
@pytree_dataclass()
class FullStructure(Structure):
    """The curvature as a dense symmetric matrix."""

    matrix: Float[Array, "P P"]

    def mv(self, vector):
        with jax.default_matmul_precision("highest"):
            return self.matrix @ vector

    def log_det(self, precision, jitter=0.0):
        return 2 * jnp.sum(jnp.log(jnp.diagonal(self._factor(precision, jitter))))

    def posterior(self, precision, jitter=0.0):
        return FullPosterior(self._factor(precision, jitter))

    def _factor(self, precision, jitter):
        raised = precision + jitter * (jnp.diagonal(self.matrix) + precision)
        with jax.default_matmul_precision("highest"):
            return jnp.linalg.cholesky(_add_to_diagonal(self.matrix, raised))

    def scaled(self, factor):
        return FullStructure(self.matrix * factor)

    def spectrum(self):
        """Return all P eigenvalues, by one symmetric decomposition without vectors.

        It is cached outside of transformations, so that each further prior precision costs O(P).
        """
        return keep(self, "spectrum", lambda: _spectrum(self.matrix))


@jax.jit
def _spectrum(matrix: Float[Array, "P P"]) -> Spectrum:
    with jax.default_matmul_precision("highest"):
        values = jnp.linalg.eigvalsh(matrix)
    values = without_rounding(values, len(values))
    return Spectrum(values, values[0], len(values))


@storable("Full")
@dataclasses.dataclass(frozen=True)
class Full(StructureSpec):
    """The full curvature as `structure=`; `"full"` for short.

    Parameters
    ----------
    form
        `"primal"`: a matrix of P rows; `"by_rows"`: the same with its rows spread over the devices
        that hold the examples; `"dual"`: a kernel of M rows, one for each example and column of the
        curvature's factor (`num_outputs` for the GGN). The Hessian has no such factor, and only the
        primal form. `"auto"`: the cheaper of those that every device has whole, if one of them fits
        the memory limit, otherwise by rows.
    max_rows
        The largest number of rows of the matrix or kernel; `None` for any number.

    Raises
    ------
    ValueError
        If the form is unknown.
    """

    form: Form = "auto"
    max_rows: int | None = None

    def __post_init__(self):
        check_option("form", self.form, get_args(Form))

    @property
    def name(self):
        return "full"

    def forms(self, sizes):
        most = math.inf if self.max_rows is None else self.max_rows
        return (form for form in self._by_work(sizes) if form._rows(sizes) <= most)

    def _by_work(self, sizes):
        primal, dual = Full("primal"), Full("dual")
        spread = (Full("by_rows"),) if sizes.can_spread else ()
        if self.form == "by_rows":
            yield from () if sizes.num_columns is None else (self,)
        elif self.form == "primal" or sizes.num_columns is None:
            yield from () if self.form == "dual" else (primal, *spread)
        elif self.form == "dual":
            yield dual
        else:
            yield from self._exact(sizes)
            yield from spread

    def _exact(self, sizes: Sizes) -> Iterator["Full"]:
        """Yield both forms that every device has whole, the cheaper first."""
        primal, dual = Full("primal"), Full("dual")
        if sizes.num_params <= _ALWAYS_PRIMAL:
            yield primal  # if it fits, the examples of a stream need not be counted
            yield from () if sizes.num_rows is None else (dual,)
        elif sizes.num_rows is None:
            yield primal
        else:
            rows, num = sizes.num_rows, sizes.num_params
            is_primal_cheaper = rows * num**2 + num**3 <= dual_work(sizes)
            yield from (primal, dual) if is_primal_cheaper else (dual, primal)

    def _rows(self, sizes: Sizes) -> int | float:
        """Return the number of rows of the matrix to factorise.

        It is infinite for the dual form over a stream with more examples than fit, which are not
        counted to the end.
        """
        if self.form != "dual":
            return sizes.num_params
        return math.inf if sizes.num_rows is None else sizes.num_rows

    def remark(self, sizes):
        if self.form == "auto":
            return "" if self.max_rows is None else f"would have more than {self.max_rows:,} rows"
        if self.form == "by_rows":
            num, of = self._rows(sizes), sizes.num_parts
            return f"exact, by its matrix of {num:,} rows, spread over {of} device(s)"
        return f"exact, by its {self.form} matrix of {self._rows(sizes):,} rows"

    def bytes(self, sizes):
        """Estimate the peak memory; primal: the matrix, one chunk's part, a Cholesky factor."""
        if self.form == "dual":
            return dual_bytes(sizes)
        if self.form == "by_rows":
            return by_rows_bytes(sizes)
        return 3 * sizes.num_params**2 * sizes.itemsize

    def fit(self, operator, key=None):
        if self.form == "auto":
            return settled(self, operator).fit(operator)
        fits = {"primal": fit_full, "by_rows": fit_by_rows, "dual": fit_dual}
        return fits[self.form](operator)


def fit_full(operator: SelfAdjointOperator) -> FullStructure:
    """Return the dense curvature of an operator; see its `to_dense` for the cost."""
    return FullStructure(operator.to_dense())


@partial(jax.jit, static_argnames="layouts")
def _root(cholesky, layouts):
    identity = jnp.eye(len(cholesky), dtype=cholesky.dtype)
    with jax.default_matmul_precision("highest"):
        root = jax.scipy.linalg.solve_triangular(cholesky, identity, lower=True, trans=1)
    return tuple(layout.to_matrix(root) for layout in layouts)


def _add_to_diagonal(matrix, values):
    index = jnp.arange(len(matrix))
    return matrix.at[index, index].add(values)


@storable("FullPosterior")
@pytree_dataclass()
class FullPosterior(Posterior):
    r"""The Gaussian with precision $H + d = L L^\top$; its covariance has the root $A = L^{-\top}$.

    `root` is $A$, laid out by the layers of a model, once `for_prediction` has made it; it is
    applied to rows in factors, which need not be multiplied out.
    """

    cholesky: Float[Array, "P P"]
    root: tuple[Float[Array, "_ _ _ P"], ...] | None = None

    @property
    def size(self):
        return len(self.cholesky)

    def scale_mv(self, eps):
        return self._solve(eps, trans=1)

    def scale_rmv(self, rows):
        return self._solve(rows, trans=0)

    def for_prediction(self, layouts):
        """Return the posterior with its root; cached outside of transformations."""
        if self.root is not None:
            return self
        return keep(self, layouts, lambda: replace(self, root=self._root_for(layouts)))

    @property
    def num_projections(self):
        return self.size

    def output_covariance(self, rows):
        with jax.default_matmul_precision("highest"):
            rooted = rows.project(self._root_for(rows.layouts))
            return jnp.einsum("brp,bsp->brs", rooted, rooted)

    def output_variance(self, rows):
        with jax.default_matmul_precision("highest"):
            return jnp.sum(rows.project(self._root_for(rows.layouts)) ** 2, axis=-1)

    def cross_covariance(self, rows, other):
        with jax.default_matmul_precision("highest"):
            root = self._root_for(rows.layouts)
            return jnp.einsum("brp,dsp->brds", rows.project(root), other.project(root))

    @jax.jit
    def variance(self):
        return jnp.sum(self.scale_mv(jnp.eye(self.size, dtype=self.dtype)) ** 2, axis=0)

    def _root_for(self, layouts):
        return _root(self.cholesky, layouts) if self.root is None else self.root

    @partial(jax.jit, static_argnames="trans")
    def _solve(self, vectors, trans):
        columns = vectors.reshape(-1, self.size).astype(self.dtype).T
        with jax.default_matmul_precision("highest"):
            solved = jax.scipy.linalg.solve_triangular(
                self.cholesky, columns, lower=True, trans=trans
            )
        return solved.T.reshape(vectors.shape)
