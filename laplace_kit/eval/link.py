r"""Links: the class probabilities that a Gaussian over the logits implies.

With $f \sim \mathcal{N}(m, S)$ the predictive $\mathbb{E}[\mathrm{softmax}(f)]$ has no closed form.
Each function here is one approximation of it, from the mean `(N, C)` and either the variances
`(N, C)` or the covariances `(N, C, C)` of the logits; with variances alone the logits count as
independent. All of them equal the softmax of the mean where the covariance is zero.

| link | reads of $S$ | adding a constant to all logits | cost per example |
| --- | --- | --- | --- |
| `probit` | variances | matters, unless the variances are equal | $O(C)$ |
| `bridge` | variances, row sums | matters, unless the row sums are equal | $O(C)$, or $O(C^2)$ |
| `mean_field_1` | variances | changes nothing | $O(C^2)$ |
| `mean_field_2` | everything | changes nothing | $O(C^2)$ |
| `monte_carlo` | everything | changes nothing | $O(C^3 + \mathtt{num\_samples}\, C^2)$ |

`bernoulli_probabilities` gives the same for binary outputs. Every function compiles, differentiates
and accepts numpy arrays; half precision is computed and returned in float32.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from laplace_kit.errors import check_option

Link = Literal["probit", "bridge", "mean_field_1", "mean_field_2", "monte_carlo"]
LINKS = get_args(Link)

# The logistic function is nearest to the normal CDF of a variance 8 / pi (MacKay, 1992).
_PROBIT_SCALE = math.pi / 8
# Random numbers that Monte Carlo holds at a time: 4 MiB in float32.
_BLOCK_ENTRIES = 2**20


def class_probabilities(
    link: str,
    f_mean: ArrayLike,
    covariance: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    num_samples: int = 1000,
) -> Float[Array, "N C"]:
    r"""Approximate $\mathbb{E}[\mathrm{softmax}(f)]$ under $\mathcal{N}(m, S)$ by the named link.

    Parameters
    ----------
    link
        One of `LINKS`.
    f_mean
        Mean of the logits, `(N, C)` with `C >= 2`.
    covariance
        Their variances `(N, C)` or covariances `(N, C, C)`.
    key
        Random key; only `"monte_carlo"` reads it, and needs it.
    num_samples
        Number of draws of `"monte_carlo"`.

    Returns
    -------
    Array
        Probabilities `(N, C)`; every row sums to one.

    Raises
    ------
    ValueError
        If the link is unknown, the shapes do not go together, or `"monte_carlo"` has no key.
    """
    check_option("link", link, LINKS)
    if link == "monte_carlo":
        return monte_carlo(f_mean, covariance, key=_required(key), num_samples=num_samples)
    return _CLOSED_FORM[link](f_mean, covariance)


def bernoulli_probabilities(
    link: str,
    f_mean: ArrayLike,
    f_var: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    num_samples: int = 1000,
) -> Float[Array, "*shape"]:
    r"""Approximate $\mathbb{E}[\sigma(f)]$ under $\mathcal{N}(m, v)$ elementwise by the named link.

    A logit $f$ stands for the two classes' logits $(0, f)$. `"probit"` and both mean-field links
    then coincide: $\sigma(m / \sqrt{1 + \pi v / 8})$. `"bridge"` places the pair at $(-f/2, f/2)$,
    where its sum is zero as the bridge wants it, and gives $\sigma(m)$ whatever the variance: for
    two classes its Dirichlet's mean does not depend on it. `"monte_carlo"` averages $\sigma(f)$.

    Parameters
    ----------
    link
        One of `LINKS`.
    f_mean, f_var
        Mean and variance of the logits, of the same shape, whatever it is.
    key
        Random key; only `"monte_carlo"` reads it, and needs it.
    num_samples
        Number of draws of `"monte_carlo"`.

    Returns
    -------
    Array
        $p(y = 1)$, of the shape of `f_mean`.

    Raises
    ------
    ValueError
        If the link is unknown, the shapes differ, or `"monte_carlo"` has no key.
    """
    check_option("link", link, LINKS)
    mean, var = _as_floating(f_mean, f_var)
    if var.shape != mean.shape:
        raise ValueError(
            f"Found f_var of shape {var.shape} for f_mean of shape {mean.shape}, expected the same "
            "shape; of covariances (N, C, C) pass the diagonals, one variance per logit."
        )
    var = jnp.maximum(var, 0)
    if link == "bridge":
        return jax.nn.sigmoid(mean)
    if link == "monte_carlo":
        return _average_sigmoid(mean, jnp.sqrt(var), _required(key), num_samples)
    return jax.nn.sigmoid(mean / jnp.sqrt(1 + _PROBIT_SCALE * var))


def probit(f_mean: ArrayLike, covariance: ArrayLike) -> Float[Array, "N C"]:
    r"""Scale each logit down by its own uncertainty: $\mathrm{softmax}(m / \sqrt{1 + \pi v / 8})$.

    $v$ are the variances; the covariances are not read. $O(C)$ per example.

    Parameters
    ----------
    f_mean, covariance
        Mean `(N, C)` and variances `(N, C)` or covariances `(N, C, C)` of the logits.

    Returns
    -------
    Array
        Probabilities `(N, C)`.

    Raises
    ------
    ValueError
        If the shapes do not go together.

    References
    ----------
    MacKay (1992), "The evidence framework applied to classification networks"; Kristiadi, Hein and
    Hennig (2020), "Being Bayesian, even just a bit, fixes overconfidence in ReLU networks".
    """
    mean, cov = _checked(f_mean, covariance)
    return jax.nn.softmax(mean / jnp.sqrt(1 + _PROBIT_SCALE * _variances(cov)))


def bridge(f_mean: ArrayLike, covariance: ArrayLike) -> Float[Array, "N C"]:
    r"""Map the Gaussian to a Dirichlet by the Laplace bridge and return the Dirichlet's mean.

    The bridge is defined for logits that sum to zero, so the Gaussian is conditioned on that first,
    $m' = m - S 1 (1^\top m) / (1^\top S 1)$ and $S' = S - S 1 1^\top S / (1^\top S 1)$; then

    $$\alpha_k = \frac{1}{S'_{kk}} \Big(1 - \frac{2}{C}
        + \frac{e^{m'_k}}{C^2} \sum_l e^{-m'_l}\Big), \qquad p_k = \alpha_k / \sum_l \alpha_l.$$

    Multiplying $S$ by a number multiplies $1/\alpha$ and leaves $p$ as it is: the covariance counts
    by its shape and not by its size, and for two classes $p = \mathrm{softmax}(m')$. A class whose
    logit is certain while others are not receives all the mass. Two limits complete the formula:
    where the sum of the logits is certain already ($1^\top S 1 = 0$) the mean is centred and $S$
    kept, the limit of $S + \epsilon I$; where $S = 0$, which has no limit (it depends on the shape
    of the vanishing $S$), the logits are known and $p = \mathrm{softmax}(m)$ is the exact answer.
    $O(C)$ per example from variances, $O(C^2)$ from covariances.

    Parameters
    ----------
    f_mean, covariance
        As for `probit`, with the same errors.

    Returns
    -------
    Array
        Probabilities `(N, C)`.

    References
    ----------
    Hobbhahn, Kristiadi and Hennig (2022), "Fast predictive uncertainty for classification with
    Bayesian deep networks"; MacKay (1998), "Choice of basis for Laplace approximation".
    """
    return _bridge(*_checked(f_mean, covariance))


def mean_field_1(f_mean: ArrayLike, covariance: ArrayLike) -> Float[Array, "N C"]:
    r"""Apply the scalar probit to each pair of logits, taken as independent.

    $$p_k \propto \Big[\sum_i \exp\Big(-\frac{m_k - m_i}
        {\sqrt{1 + \frac{\pi}{8} (v_k + v_i)}}\Big)\Big]^{-1},$$

    normalised to sum to one, which the bare formula does for two classes only. $v$ are the
    variances; the covariances are not read. $O(C^2)$ per example.

    Parameters
    ----------
    f_mean, covariance
        As for `probit`, with the same errors.

    Returns
    -------
    Array
        Probabilities `(N, C)`.

    References
    ----------
    Lu, Ie and Sha (2020), "Mean-field approximation to Gaussian-softmax integral with application
    to uncertainty estimation".
    """
    mean, cov = _checked(f_mean, covariance)
    return _mean_field(mean, _variances(cov))


def mean_field_2(f_mean: ArrayLike, covariance: ArrayLike) -> Float[Array, "N C"]:
    r"""Apply the scalar probit to each pair of logits, with their covariance.

    $$p_k \propto \Big[\sum_i \exp\Big(-\frac{m_k - m_i}
        {\sqrt{1 + \frac{\pi}{8} (S_{kk} + S_{ii} - 2 S_{ki})}}\Big)\Big]^{-1},$$

    normalised as `mean_field_1` is. With variances alone the covariance counts as diagonal, and the
    two links agree. $O(C^2)$ per example.

    Parameters
    ----------
    f_mean, covariance
        As for `probit`, with the same errors.

    Returns
    -------
    Array
        Probabilities `(N, C)`.

    References
    ----------
    Lu, Ie and Sha (2020), as for `mean_field_1`.
    """
    return _mean_field(*_checked(f_mean, covariance))


def monte_carlo(
    f_mean: ArrayLike, covariance: ArrayLike, *, key: PRNGKeyArray, num_samples: int = 1000
) -> Float[Array, "N C"]:
    r"""Average $\mathrm{softmax}(m + S^{1/2} z)$ over draws $z \sim \mathcal{N}(0, I)$.

    The one link that converges to $\mathbb{E}[\mathrm{softmax}(f)]$; its standard error is at most
    $1 / (2 \sqrt{\mathtt{num\_samples}})$. $S$ may be singular. Draws are independent between
    examples, and taken in blocks of bounded memory: $O(C^3 + \mathtt{num\_samples}\, C^2)$ time per
    example, $O(\mathtt{num\_samples}\, C)$ from variances. The derivative in $S$ needs eigenvalues
    that are positive and distinct.

    Parameters
    ----------
    f_mean, covariance
        Mean `(N, C)` and variances `(N, C)` or covariances `(N, C, C)` of the logits.
    key
        Random key.
    num_samples
        Number of draws.

    Returns
    -------
    Array
        Probabilities `(N, C)`.

    Raises
    ------
    ValueError
        If the shapes do not go together or `num_samples` is not positive.
    """
    return _average_softmax(*_checked(f_mean, covariance), key, num_samples)


_CLOSED_FORM = {
    "probit": probit,
    "bridge": bridge,
    "mean_field_1": mean_field_1,
    "mean_field_2": mean_field_2,
}


# --- formulas --------------------------------------------------------------------------------


def _variances(cov: Float[Array, "N C"] | Float[Array, "N C C"]) -> Float[Array, "N C"]:
    """Return the variances; those that rounding has made negative are zero."""
    return jnp.maximum(cov if cov.ndim == 2 else jnp.diagonal(cov, axis1=1, axis2=2), 0)


@jax.jit
@jax.vmap
def _bridge(
    mean: Float[Array, " C"], cov: Float[Array, " C"] | Float[Array, "C C"]
) -> Float[Array, " C"]:
    num_classes = mean.shape[0]
    tiny = jnp.finfo(mean.dtype).tiny
    rounding = num_classes * jnp.finfo(mean.dtype).eps

    var, row_sums = (cov, cov) if cov.ndim == 1 else (jnp.diagonal(cov), cov.sum(axis=1))
    # The scale of S does not count: divided out, it neither over- nor underflows.
    scale = jnp.max(var)
    certain = scale < tiny
    divisor = jnp.where(certain, 1, scale)
    var, row_sums = var / divisor, row_sums / divisor
    total = row_sums.sum()

    sum_is_certain = total <= rounding
    gain = jnp.where(
        sum_is_certain, 1 / num_classes, row_sums / jnp.where(sum_is_certain, 1, total)
    )
    mean = mean - gain * mean.sum()
    # Where the difference is mere rounding, replace it by a bound of its size: it is a divisor.
    var = jnp.maximum(var - gain * row_sums, jnp.maximum(rounding * var, tiny))

    log_constant = math.log1p(-2 / num_classes) if num_classes > 2 else -math.inf
    log_exponential = mean + jax.nn.logsumexp(-mean) - 2 * math.log(num_classes)
    log_alpha = jnp.logaddexp(log_constant, log_exponential) - jnp.log(var)
    return jax.nn.softmax(jnp.where(certain, mean, log_alpha))


@jax.jit
@jax.vmap
def _mean_field(
    mean: Float[Array, " C"], cov: Float[Array, " C"] | Float[Array, "C C"]
) -> Float[Array, " C"]:
    full = jnp.diag(cov) if cov.ndim == 1 else cov
    var = jnp.diagonal(full)
    gap = mean[None, :] - mean[:, None]
    gap_var = jnp.maximum(var[None, :] + var[:, None] - 2 * full, 0)  # rounding may be below 0
    scaled = gap / jnp.sqrt(1 + _PROBIT_SCALE * gap_var)
    return jax.nn.softmax(-jax.nn.logsumexp(scaled, axis=1))


# --- Monte Carlo -----------------------------------------------------------------------------


@partial(jax.jit, static_argnames="num_samples")
def _average_softmax(mean, cov, key, num_samples):
    if cov.ndim == 2:
        std = jnp.sqrt(jnp.maximum(cov, 0))
        return _average(lambda z: jax.nn.softmax(mean + std * z), mean, key, num_samples)
    # A Cholesky factor does not exist where S is singular, as it is with fewer parameters than
    # classes; an eigendecomposition always does.
    eigvals, eigvecs = jnp.linalg.eigh(cov)
    root = eigvecs * jnp.sqrt(jnp.maximum(eigvals, 0))[:, None, :]

    def probs(z):
        return jax.nn.softmax(mean + jnp.einsum("ncd,nd->nc", root, z, precision="highest"))

    return _average(probs, mean, key, num_samples)


@partial(jax.jit, static_argnames="num_samples")
def _average_sigmoid(mean, std, key, num_samples):
    return _average(lambda z: jax.nn.sigmoid(mean + std * z), mean, key, num_samples)


def _average(
    probs: Callable, mean: Float[Array, "*shape"], key: PRNGKeyArray, num_samples: int
) -> Float[Array, "*shape"]:
    """Average `probs(z)` over standard normal `z` of the shape of `mean`, a block at a time.

    Every draw has a key of its own, so that the blocks' size does not show in the result.
    """
    if num_samples < 1:
        raise ValueError(f"Found num_samples={num_samples}, expected at least 1; 1000 is usual.")
    block = max(1, min(num_samples, _BLOCK_ENTRIES // max(1, mean.size)))
    num_blocks = -(-num_samples // block)

    def draw(index):
        noise = jax.random.normal(jax.random.fold_in(key, index), mean.shape, mean.dtype)
        return probs(noise)

    def add_block(total, indices):
        is_counted = (indices < num_samples).astype(mean.dtype)  # the last block may be too long
        drawn = jax.vmap(draw)(indices)
        return total + jnp.tensordot(is_counted, drawn, axes=1, precision="highest"), None

    indices = jnp.arange(num_blocks * block).reshape(num_blocks, block)
    total, _ = jax.lax.scan(add_block, jnp.zeros_like(mean), indices)
    return total / num_samples


# --- checks ----------------------------------------------------------------------------------


def _as_floating(*arrays: ArrayLike) -> list[Float[Array, "..."]]:
    dtype = jnp.result_type(jnp.float32, *arrays)
    return [jnp.asarray(array, dtype) for array in arrays]


def _checked(f_mean: ArrayLike, covariance: ArrayLike) -> list[Float[Array, "..."]]:
    mean, cov = _as_floating(f_mean, covariance)
    if mean.ndim != 2 or mean.shape[1] < 2:
        raise ValueError(
            f"Found f_mean of shape {mean.shape}, expected logits (N, C) of at least two classes; "
            "for single logits of binary outputs use bernoulli_probabilities."
        )
    per_class, full = mean.shape, (*mean.shape, mean.shape[1])
    if cov.shape not in (per_class, full):
        raise ValueError(
            f"Found covariance of shape {cov.shape} for f_mean of shape {mean.shape}, expected "
            f"variances {per_class} or covariances {full}; pass one of Predictive.f_var, f_cov."
        )
    return [mean, cov]


def _required(key: PRNGKeyArray | None) -> PRNGKeyArray:
    if key is None:
        raise ValueError(
            "Found no key for the link 'monte_carlo', expected a random key; pass one, for example "
            "key=jax.random.key(0), or take a link in closed form, for example 'probit'."
        )
    return key
