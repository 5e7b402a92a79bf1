r"""The interfaces of curvature structures and posteriors.

A *structure* approximates the curvature $H$ of the summed loss, without the prior. With a prior
precision $d$ `(P,)` it gives $\log |H + d|$ and a *posterior*, the zero-mean Gaussian with
precision $H + d$, held through one square root $A$ of its covariance, $A A^\top = (H + d)^{-1}$:
samples are $A \epsilon$, and the covariance of outputs with Jacobian rows $J$ is $(J A)(J A)^\top$.
All vectors are flat, in float32 or better.
"""

import abc
import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from laplace_kit import tree
from laplace_kit.curv.capture.layout import Layout
from laplace_kit.curv.capture.rows import Rows
from laplace_kit.errors import check_count
from laplace_kit.tree import is_concrete, pytree_dataclass

# The number of unit vectors whose images are held at a time.
_UNITS_AT_A_TIME = 64
# The number of entries from which a copy of an array takes longer than compiling around it.
_LARGE = 2**20


class Posterior(abc.ABC):
    """A zero-mean Gaussian over flat parameters, a pytree.

    A subclass must define the root, `scale_mv`, and `size`. The other methods follow from these
    with dense rows; a subclass may override them by faster ones.
    """

    @abc.abstractmethod
    def scale_mv(self, eps: Float[Array, "*batch P"]) -> Float[Array, "*batch P"]:
        r"""Return $A \epsilon$ along the last axis: a draw where $\epsilon$ is standard normal."""

    def scale_rmv(self, rows: Float[Array, "*batch P"]) -> Float[Array, "*batch P"]:
        r"""Return $A^\top r$ along the last axis, so that $r^\top \Sigma r = \|A^\top r\|^2$.

        By default the transpose of `scale_mv`, derived by JAX.
        """
        return jax.linear_transpose(self.scale_mv, rows)(rows)[0]

    def output_covariance(self, rows: Rows) -> Float[Array, "B R R"]:
        r"""Return $J_n \Sigma J_n^\top$ for Jacobian rows held in factors; see `for_prediction`."""
        with jax.default_matmul_precision("highest"):
            rooted = self.scale_rmv(rows.to_dense())
            return jnp.einsum("brp,bsp->brs", rooted, rooted)

    def output_variance(self, rows: Rows) -> Float[Array, "B R"]:
        """Return the diagonals of `output_covariance`, at least zero."""
        with jax.default_matmul_precision("highest"):
            return jnp.sum(self.scale_rmv(rows.to_dense()) ** 2, axis=-1)

    def cross_covariance(self, rows: Rows, other: Rows) -> Float[Array, "B R D S"]:
        r"""Return $J_n \Sigma J_m'^\top$ for all pairs of two batches of rows of the same model."""
        with jax.default_matmul_precision("highest"):
            left, right = (self.scale_rmv(part.to_dense()) for part in (rows, other))
            return jnp.einsum("brp,dsp->brds", left, right)

    @property
    def is_spread(self) -> bool:
        """Whether its arrays are spread over devices, which then work on each input together."""
        return False

    @property
    def num_projections(self) -> int:
        """The number of entries to which a row is projected for its covariance: P if dense."""
        return self.size

    def for_prediction(self, layouts: tuple[Layout, ...]) -> "Posterior":
        """Return the posterior with arrays that predictions share, laid out by layers."""
        return self

    def variance(self) -> Float[Array, " P"]:
        """Return the marginal variances, the diagonal of the covariance."""
        size = min(self.size, _UNITS_AT_A_TIME)

        def squared_norm(index: Int[Array, ""]) -> Float[Array, ""]:
            return jnp.sum(self.scale_rmv(jax.nn.one_hot(index, self.size, dtype=self.dtype)) ** 2)

        with jax.default_matmul_precision("highest"):
            return jax.lax.map(squared_norm, jnp.arange(self.size), batch_size=size)

    @property
    @abc.abstractmethod
    def size(self) -> int:
        """The number of parameters P."""

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of flat vectors: the common one of all arrays."""
        return tree.dtype(self)

    def sample(self, key: PRNGKeyArray, num_samples: int) -> Float[Array, "K P"]:
        """Return draws from the Gaussian, `(K, P)`; a `ValueError` if K is not positive."""
        check_count("num_samples", num_samples, "draws")
        return _draws(self, key, num_samples)

    @jax.jit
    def covariance(self) -> Float[Array, "P P"]:
        """Return the dense covariance, `(P, P)`: for small models and tests."""
        root = self.scale_rmv(jnp.eye(self.size, dtype=self.dtype))
        with jax.default_matmul_precision("highest"):
            return root @ root.T

    def is_finite(self) -> bool:
        """Return whether the factorisation succeeded; for use outside of transformations."""
        return bool(_all_finite(self))


@partial(jax.jit, static_argnames="num_samples")
def _draws(posterior, key, num_samples):
    return posterior.scale_mv(
        jax.random.normal(key, (num_samples, posterior.size), posterior.dtype)
    )


def keep(owner: object, key: Hashable, make: Callable[[], PyTree]) -> PyTree:
    """Return the result of `make`, cached on its owner outside of transformations.

    The cached value follows from the owner's fields, which are frozen, and is not part of the owner
    as a pytree.
    """
    kept = owner.__dict__.setdefault("_kept", {})
    if key in kept:
        return kept[key]
    made = make()
    if is_concrete(made):
        kept[key] = made
    return made


class Structure(abc.ABC):
    """An approximation of the curvature, without the prior."""

    @property
    def name(self) -> str:
        """The display name."""
        return type(self).__name__.removesuffix("Structure")

    @abc.abstractmethod
    def mv(self, vector: Float[Array, " P"]) -> Float[Array, " P"]:
        """Return the product $H v$ with a flat vector."""

    @abc.abstractmethod
    def log_det(
        self, precision: Float[Array, " P"], jitter: float | Float[Array, ""] = 0.0
    ) -> Float[Array, ""]:
        r"""Return $\log |H + d|$, differentiable in the prior precision `(P,)`."""

    @abc.abstractmethod
    def posterior(
        self, precision: Float[Array, " P"], jitter: float | Float[Array, ""] = 0.0
    ) -> Posterior:
        """Return the Gaussian of precision $H + d$.

        Each diagonal entry of the matrix that is factorised is raised by the share `jitter`, which
        is relative because scales differ by orders of magnitude, and rounding with them.
        """

    @abc.abstractmethod
    def spectrum(self) -> "Spectrum":
        """Return the eigenvalues of $H$."""

    @abc.abstractmethod
    def scaled(self, factor: float | Float[Array, ""]) -> "Structure":
        """Return the structure of the curvature times a positive number."""

    def for_prior(self, precision: Float[Array, " P"]) -> "Structure":
        """Return the structure in a form that supports this prior precision, of any values.

        Raises a `ValueError` if there is none. Inside of transformations, where values are unknown,
        the form must support all values.
        """
        return self


@runtime_checkable
class SpectralPart(Protocol):
    """A positive semi-definite part of a curvature whose eigenvalues are not known one by one."""

    layout: Layout

    def bounds(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return bounds on the smallest and on the largest eigenvalue."""
        ...

    def log_det(self, delta: Float[Array, ""]) -> Float[Array, ""]:
        r"""Return $\log |H + \delta I|$."""
        ...

    def effective_parameters(self, delta: Float[Array, ""]) -> Float[Array, ""]:
        r"""Return $\operatorname{tr} H (H + \delta I)^{-1}$."""
        ...

    def undetermined_parameters(self, delta: Float[Array, ""]) -> Float[Array, ""]:
        r"""Return $\operatorname{tr} \delta (H + \delta I)^{-1}$."""
        ...


@pytree_dataclass(static=("size",))
class Spectrum:
    r"""R eigenvalues of a `(P, P)` curvature, of any shape, and `parts` of it that have others.

    The remaining eigenvalues are zero. With an isotropic prior the evidence costs $O(R)$, and what
    the parts cost. `smallest` is the smallest known eigenvalue of the curvature itself, negative
    where that is indefinite; for parts, a bound.
    """

    values: Float[Array, "..."]
    smallest: Float[Array, ""]
    size: int
    parts: tuple[SpectralPart, ...] = ()

    @property
    def largest(self) -> Float[Array, ""]:
        """The largest magnitude of an eigenvalue; for parts, a bound."""
        known = (jnp.abs(self.values).max(),) if self.values.size else ()
        return jnp.stack([*known, *(part.bounds()[1] for part in self.parts)]).max()

    @property
    def rounding(self) -> Float[Array, ""]:
        """The magnitude below which an eigenvalue cannot be distinguished from zero."""
        num = self.size - self._num_zeros
        return num * jnp.finfo(self.values.dtype).eps * self.largest

    @property
    def _num_zeros(self) -> int:
        return self.size - self.values.size - sum(part.layout.size for part in self.parts)

    def log_det(self, delta: Float[Array, ""]) -> Float[Array, ""]:
        r"""Return $\log |H + \delta I|$; NaN where that matrix is indefinite."""
        log_det = jnp.sum(jnp.log(self.values + delta)) + self._num_zeros * jnp.log(delta)
        log_det += sum(part.log_det(delta) for part in self.parts)
        return jnp.where(self.smallest + delta > 0, log_det, jnp.nan)

    def effective_parameters(self, delta: Float[Array, ""]) -> Float[Array, ""]:
        r"""Return $\sum_i s_i / (s_i + \delta)$ (MacKay 1992)."""
        known = jnp.vdot(self.values, 1 / (self.values + delta), precision="highest")
        return known + sum(part.effective_parameters(delta) for part in self.parts)

    def undetermined_parameters(self, delta: Float[Array, ""]) -> Float[Array, ""]:
        r"""Return P minus the effective ones, $\sum_i \delta / (s_i + \delta)$, uncancelled."""
        known = self._num_zeros + delta * jnp.sum(1 / (self.values + delta))
        return known + sum(part.undetermined_parameters(delta) for part in self.parts)


def spectrum_of(
    arrays: tuple[Float[Array, "..."], ...], parts: tuple[SpectralPart, ...] = ()
) -> Spectrum:
    """Return the spectrum whose eigenvalues are the entries of these arrays, and those of parts.

    A single array is not copied.
    """
    flat, smallest = _flat_and_smallest(arrays, parts)
    values = arrays[0] if len(arrays) == 1 else flat
    size = sum(array.size for array in arrays) + sum(part.layout.size for part in parts)
    return Spectrum(values, smallest, size, parts)


@jax.jit
def _flat_and_smallest(arrays, parts):
    smallest = [*(array.min() for array in arrays), *(part.bounds()[0] for part in parts)]
    flat = None
    if len(arrays) != 1:
        dtype = smallest[0].dtype
        flat = jnp.concatenate([jnp.zeros(0, dtype), *(array.reshape(-1) for array in arrays)])
    return flat, jnp.stack(smallest).min()


@partial(jax.jit, static_argnames="size", inline=True)
def without_rounding(
    values: Float[Array, " R"], size: int, coarsest: Float[ArrayLike, ""] = 0.0
) -> Float[Array, " R"]:
    """Set eigenvalues that are negative only by rounding to zero; truly negative ones stay.

    Parameters
    ----------
    values
        Eigenvalues, in the dtype in which they were computed.
    size
        The number of rows of the matrix.
    coarsest
        The rounding of the matrix itself, relative to its norm, where that is in lower precision.
    """
    rounding = jnp.maximum(_rounding(values, size), coarsest * jnp.abs(values).max())
    return jnp.where((values < 0) & (values >= -rounding), 0, values)


@partial(jax.jit, static_argnames="size", inline=True)
def _rounding(values: Float[Array, " R"], size: int) -> Float[Array, ""]:
    return size * jnp.finfo(values.dtype).eps * jnp.abs(values).max()


@jax.jit
def _all_finite(arrays):
    # One product compiles faster than a reduction of each array, which XLA turns into trees; only
    # large arrays are worth it, as that product takes a copy of the others.
    leaves = jax.tree.leaves(arrays)
    small = [leaf for leaf in leaves if leaf.size <= _LARGE]
    finite = [jnp.isfinite(leaf).all() for leaf in leaves if leaf.size > _LARGE]
    if small:
        bad = (~jnp.isfinite(tree.ravel(small))).astype(jnp.float32)
        finite.append(bad @ bad == 0)
    return jnp.stack(finite).all()


def _posterior(structure, precision, jitter, temperature, size):
    """Return the posterior, which shares arrays with the structure, and whether it is finite."""
    rest, finite = _without_shared_leaves(structure, precision, jitter, temperature, size)
    return rest(structure), finite


@partial(jax.jit, static_argnames="size")
def _without_shared_leaves(structure, precision, jitter, temperature, size):
    # What is as large as the parameters and only needed here is made here.
    scaled = structure
    if temperature is not None:
        scaled, precision = structure.scaled(1 / temperature), precision / temperature
    precision = precision if size is None else jnp.broadcast_to(precision, (size,))
    rest = tree.without_shared_leaves(scaled.posterior(precision, jitter), structure)
    return rest, _all_finite(rest)


def factorise(
    structure: Structure,
    precision: Float[Array, " P"] | Float[Array, ""],
    temperature: float | Float[Array, ""] = 1.0,
    *,
    size: int | None = None,
) -> tuple[Posterior, Array]:
    """Return the posterior, with jitter only where rounding requires it.

    Parameters
    ----------
    structure
        The curvature.
    precision
        The prior precision, `(P,)`, or one for all with `size`.
    temperature
        T > 0: the covariance is T times the inverse of $H + d$.
    size
        P, if the precision is one number.

    Returns
    -------
    posterior, jitter
        The posterior, and the share by which the diagonal was raised, relative to its own entries
        or, where that does not help, to the largest curvature; zero unless the first attempt
        failed. Inside a JAX transformation, where values are unknown, no jitter is tried.

    Raises
    ------
    ValueError
        If the structure cannot be combined with this prior precision, or the posterior precision is
        indefinite beyond rounding: the message names the most negative curvature and the choices.
    """
    if size is None and is_concrete(precision):
        structure = structure.for_prior(precision)
    if is_concrete(temperature) and float(temperature) == 1:
        temperature = None

    def attempt(precision: Array, jitter: float | Array = 0.0) -> tuple[Posterior, Array]:
        return _posterior(structure, precision, jitter, temperature, size)

    posterior, finite = attempt(precision)
    zero = jnp.zeros((), precision.dtype)
    if not is_concrete(finite) or bool(finite):
        return posterior, zero
    spectrum, lowest_precision = structure.spectrum(), float(precision.min())
    lowest, highest = float(spectrum.smallest), float(spectrum.largest)
    if not math.isfinite(highest):
        raise ValueError(
            "Found a curvature that is not finite, expected finite entries: a loss that is not "
            "convex in the outputs has no square root (use curvature='hessian'), and activations "
            "may overflow in this dtype."
        )
    rounding = float(spectrum.rounding)
    if lowest < -rounding:
        raise ValueError(
            f"Found an indefinite curvature whose most negative eigenvalue is {lowest:.4g}, "
            f"expected a positive definite posterior precision (the smallest prior precision is "
            f"{lowest_precision:.4g}); train to a minimum, raise prior_precision above "
            f"{-lowest:.4g}, or use curvature='ggn', which is never indefinite."
        )
    held = False
    for power in range(1, 6):
        jitter = jnp.asarray(10.0**power * jnp.finfo(precision.dtype).eps, precision.dtype)
        posterior, finite = attempt(precision, jitter)
        if held and bool(finite):  # the first success may be marginal
            return posterior, jitter
        held = bool(finite)
    for factor in (1.0, 10.0, 100.0):  # entries of the diagonal are themselves lost in rounding
        raised = factor * rounding
        posterior, finite = attempt(precision + raised)
        if bool(finite):
            return posterior, jnp.asarray(raised / highest, precision.dtype)
    raise ValueError(
        f"Found a posterior precision that cannot be factorised in {precision.dtype} (largest "
        f"curvature {highest:.4g}, smallest prior precision {lowest_precision:.4g}); raise "
        "prior_precision or use float64 parameters."
    )
