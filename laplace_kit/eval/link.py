r"""Links: the class probabilities that a Gaussian over the logits implies.

With $f \sim \mathcal{N}(m, S)$ the predictive $\mathbb{E}[\mathrm{softmax}(f)]$ has no closed form.
Each function here is one approximation of it, from the mean `(N, C)` and either the variances
`(N, C)` or the covariances `(N, C, C)` of the logits; with variances only, the logits are treated
as independent. All of them equal the softmax of the mean where the covariance is zero.

| link | uses of $S$ | adding a constant to all logits | cost per example |
| --- | --- | --- | --- |
| `probit` | variances | matters, unless the variances are equal | $O(C)$ |
| `bridge` | variances, row sums | matters, unless the row sums are equal | $O(C)$, or $O(C^2)$ |
| `mean_field_1` | variances | changes nothing | $O(C^2)$ |
| `mean_field_2` | everything | changes nothing | $O(C^2)$ |
| `monte_carlo` | everything | changes nothing | $O(C^3 + \mathtt{num\_samples}\, C^2)$ |

A function `(f_mean, covariance) -> probabilities` of your own can be passed wherever a name is
accepted; see `class_logits` and `bernoulli_logits` for the shapes.

`bernoulli_probabilities` does the same for binary outputs. Every link ends in a softmax or a
sigmoid: `class_logits` and `bernoulli_logits` return its argument, from which log probabilities
follow exactly where the probabilities round to zero or one. Every function can be jitted and
differentiated and accepts NumPy arrays; half precision is computed and returned in float32.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from laplace_kit import tree
from laplace_kit.errors import check_option
from laplace_kit.eval import closed_form
from laplace_kit.eval import monte_carlo as draws
from laplace_kit.host import fetch

LinkName = Literal["probit", "bridge", "mean_field_1", "mean_field_2", "monte_carlo"]
# From the mean and the covariance of the outputs to probabilities.
LinkFunction = Callable[[Array, Array], Array]
Link = LinkName | LinkFunction
LINKS = get_args(LinkName)


def class_probabilities(
    link: str | LinkFunction,
    f_mean: ArrayLike,
    covariance: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    num_samples: int = 1000,
) -> Float[Array, "N C"]:
    r"""Approximate $\mathbb{E}[\mathrm{softmax}(f)]$ under $\mathcal{N}(m, S)$ by a link.

    Parameters
    ----------
    link, f_mean, covariance, key, num_samples
        As for `class_logits`, with the same errors.

    Returns
    -------
    Array
        Probabilities `(N, C)`, the softmax of `class_logits`; every row sums to one.
    """
    return jax.nn.softmax(class_logits(link, f_mean, covariance, key=key, num_samples=num_samples))


def class_logits(
    link: str | LinkFunction,
    f_mean: ArrayLike,
    covariance: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    num_samples: int = 1000,
) -> Float[Array, "N C"]:
    r"""Return logits whose softmax is a link's approximation under $\mathcal{N}(m, S)$.

    Parameters
    ----------
    link
        One of `LINKS`, or a function of JAX arrays that takes the mean `(N, C)` and the variances
        `(N, C)` or covariances `(N, C, C)` and returns probabilities `(N, C)`, at least zero; rows
        that do not sum to one are normalised.
    f_mean
        Mean of the logits, `(N, C)` with `C >= 2`.
    covariance
        Their variances `(N, C)` or covariances `(N, C, C)`.
    key
        Random key; required by `"monte_carlo"`, unused by the others.
    num_samples
        Number of draws for `"monte_carlo"`.

    Returns
    -------
    Array
        Logits `(N, C)`, up to a constant for each row; those of `"monte_carlo"` and of a function
        are the logarithms of the probabilities.

    Raises
    ------
    ValueError
        If the link is unknown, the shapes do not match, `"monte_carlo"` has no key, or a function
        returns a probability below zero or only zeros in a row; inside of transformations, where
        values are unknown, such a row becomes NaN.
    """
    check_link(link)
    mean, cov = _checked(f_mean, covariance)
    if callable(link):
        logits = jnp.log(_probabilities(link, mean, cov))
        check_defined(link, logits, mean, has_classes=True)
        return logits
    if link == "monte_carlo":
        return draws.average_softmax(mean, cov, _required(key), num_samples)
    return closed_form.LOGITS[link](mean, cov)


def bernoulli_probabilities(
    link: str | LinkFunction,
    f_mean: ArrayLike,
    f_var: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    num_samples: int = 1000,
) -> Float[Array, "*shape"]:
    r"""Approximate $\mathbb{E}[\sigma(f)]$ under $\mathcal{N}(m, v)$ elementwise by a link.

    Parameters
    ----------
    link, f_mean, f_var, key, num_samples
        As for `bernoulli_logits`, with the same errors.

    Returns
    -------
    Array
        $p(y = 1)$, the sigmoid of `bernoulli_logits`.
    """
    return jax.nn.sigmoid(bernoulli_logits(link, f_mean, f_var, key=key, num_samples=num_samples))


def bernoulli_logits(
    link: str | LinkFunction,
    f_mean: ArrayLike,
    f_var: ArrayLike,
    *,
    key: PRNGKeyArray | None = None,
    num_samples: int = 1000,
) -> Float[Array, "*shape"]:
    r"""Return logits whose sigmoid is a link's approximation under $\mathcal{N}(m, v)$.

    A logit $f$ stands for the two classes' logits $(0, f)$. `"probit"` and both mean-field links
    then coincide: $m / \sqrt{1 + \pi v / 8}$. `"bridge"` places the pair at $(-f/2, f/2)$, whose
    sum is zero as the bridge requires, and gives $m$ for every variance: with two classes the mean
    of its Dirichlet does not depend on it. `"monte_carlo"` averages $\sigma(f)$ and $\sigma(-f)$.

    Parameters
    ----------
    link
        One of `LINKS`, or a function of JAX arrays that takes mean and variance of the same
        arbitrary shape and returns $p(y = 1)$ of that shape, between zero and one.
    f_mean, f_var
        Mean and variance of the logits, of the same arbitrary shape.
    key
        Random key; required by `"monte_carlo"`, unused by the others.
    num_samples
        Number of draws for `"monte_carlo"`.

    Returns
    -------
    Array
        The logits of $p(y = 1)$, of the shape of `f_mean`.

    Raises
    ------
    ValueError
        If the link is unknown, the shapes differ, `"monte_carlo"` has no key, or a function returns
        a probability below zero or above one; inside of transformations that becomes NaN.
    """
    check_link(link)
    mean, var = _as_floating(f_mean, f_var)
    if var.shape != mean.shape:
        raise ValueError(
            f"Found f_var of shape {var.shape} for f_mean of shape {mean.shape}, expected the same "
            "shape; from covariances (N, C, C) pass the diagonals, one variance per logit."
        )
    var = jnp.maximum(var, 0)
    if callable(link):
        probs = _probabilities(link, mean, var)
        logits = jnp.log(probs) - jnp.log1p(-probs)
        check_defined(link, logits, mean, has_classes=False)
        return logits
    if link == "bridge":
        return mean
    if link == "monte_carlo":
        return draws.average_sigmoid(mean, jnp.sqrt(var), _required(key), num_samples)
    return mean / jnp.sqrt(1 + closed_form.PROBIT_SCALE * var)


def probit(f_mean: ArrayLike, covariance: ArrayLike) -> Float[Array, "N C"]:
    r"""Return $\mathrm{softmax}(m / \sqrt{1 + \pi v / 8})$: each logit scaled by its variance.

    $v$ are the variances; the covariances are not used. $O(C)$ per example.

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
        If the shapes do not match.

    References
    ----------
    MacKay (1992), "The evidence framework applied to classification networks"; Kristiadi, Hein and
    Hennig (2020), "Being Bayesian, even just a bit, fixes overconfidence in ReLU networks".
    """
    return jax.nn.softmax(closed_form.probit_logits(*_checked(f_mean, covariance)))


def bridge(f_mean: ArrayLike, covariance: ArrayLike) -> Float[Array, "N C"]:
    r"""Map the Gaussian to a Dirichlet by the Laplace bridge and return the Dirichlet's mean.

    The bridge is defined for logits that sum to zero, so the Gaussian is conditioned on that first,
    $m' = m - S 1 (1^\top m) / (1^\top S 1)$ and $S' = S - S 1 1^\top S / (1^\top S 1)$; then

    $$\alpha_k = \frac{1}{S'_{kk}} \Big(1 - \frac{2}{C}
        + \frac{e^{m'_k}}{C^2} \sum_l e^{-m'_l}\Big), \qquad p_k = \alpha_k / \sum_l \alpha_l.$$

    Multiplying $S$ by a number multiplies $1/\alpha$ and leaves $p$ unchanged: $p$ depends on the
    shape of the covariance and not on its size, and for two classes $p = \mathrm{softmax}(m')$. A
    class whose logit is certain while others are not receives all the mass. Two limits complete the
    formula: where the sum of the logits is certain ($1^\top S 1 = 0$) the mean is centred and $S$
    kept, the limit of $S + \epsilon I$; where $S = 0$, which has no limit (it depends on the shape
    of the vanishing $S$), the logits are known and $p = \mathrm{softmax}(m)$ is exact.
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
    return jax.nn.softmax(closed_form.bridge_logits(*_checked(f_mean, covariance)))


def mean_field_1(f_mean: ArrayLike, covariance: ArrayLike) -> Float[Array, "N C"]:
    r"""Apply the scalar probit to each pair of logits, treated as independent.

    $$p_k \propto \Big[\sum_i \exp\Big(-\frac{m_k - m_i}
        {\sqrt{1 + \frac{\pi}{8} (v_k + v_i)}}\Big)\Big]^{-1},$$

    normalised to sum to one, which the formula itself ensures for two classes only. $v$ are the
    variances; the covariances are not used. $O(C^2)$ per example.

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
    return jax.nn.softmax(closed_form.mean_field_1_logits(*_checked(f_mean, covariance)))


def mean_field_2(f_mean: ArrayLike, covariance: ArrayLike) -> Float[Array, "N C"]:
    r"""Apply the scalar probit to each pair of logits, with their covariance.

    $$p_k \propto \Big[\sum_i \exp\Big(-\frac{m_k - m_i}
        {\sqrt{1 + \frac{\pi}{8} (S_{kk} + S_{ii} - 2 S_{ki})}}\Big)\Big]^{-1},$$

    normalised as in `mean_field_1`. With variances only, the covariance is treated as diagonal, and
    the two links agree. $O(C^2)$ per example.

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
    return jax.nn.softmax(closed_form.mean_field_2_logits(*_checked(f_mean, covariance)))


def monte_carlo(
    f_mean: ArrayLike, covariance: ArrayLike, *, key: PRNGKeyArray, num_samples: int = 1000
) -> Float[Array, "N C"]:
    r"""Average $\mathrm{softmax}(m + S^{1/2} z)$ over draws $z \sim \mathcal{N}(0, I)$.

    The only link that converges to $\mathbb{E}[\mathrm{softmax}(f)]$; its standard error is at most
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
        If the shapes do not match or `num_samples` is not positive.
    """
    return jax.nn.softmax(draws.average_softmax(*_checked(f_mean, covariance), key, num_samples))


# --- checks ----------------------------------------------------------------------------------


def check_link(link: object) -> None:
    """Raise a `ValueError` if a link is neither a function nor a known name."""
    if not callable(link):
        check_option("link", link, (*LINKS, "a function (mean, covariance) -> probabilities"))


def _probabilities(link: LinkFunction, mean: Array, covariance: Array) -> Float[Array, "..."]:
    """Return the probabilities of a link function, with their shape and dtype checked."""
    probs = jnp.asarray(link(mean, covariance))
    if probs.shape != mean.shape or not jnp.issubdtype(probs.dtype, jnp.floating):
        raise ValueError(
            f"Found a link that returned {probs.dtype} of shape {probs.shape} for a mean of shape "
            f"{mean.shape} and a covariance of shape {covariance.shape}, expected floating-point "
            f"probabilities of shape {mean.shape}."
        )
    return probs.astype(mean.dtype)


def check_defined(
    link: LinkFunction,
    logits: Float[Array, "..."],
    mean: Float[Array, "..."],
    *,
    has_classes: bool,
) -> None:
    """Raise a `ValueError` for logits of a link function that are undefined; traced ones pass.

    Parameters
    ----------
    link
        The function, for the message.
    logits, mean
        Those of its probabilities, and the mean that it was given, of the same shape.
    has_classes
        Whether the last axis are classes, rather than binary labels of one logit each.
    """
    if not tree.is_concrete(logits):
        return
    count, first = fetch(_count_undefined(logits, mean, has_classes))
    if count:
        shape = logits.shape[:-1] if has_classes else logits.shape
        index = tuple(map(int, np.unravel_index(int(first), shape)))
        limits = "of at least zero, not all of them zero" if has_classes else "from zero to one"
        name = getattr(link, "__name__", type(link).__name__)
        raise ValueError(
            f"Found a link, {name}, without valid probabilities at {count} of "
            f"{math.prod(shape)} labels, the first at {index}, expected numbers {limits}; bound "
            "them inside the function, as by jnp.maximum(probs, 1e-6)."
        )


@partial(jax.jit, static_argnums=2)
def _count_undefined(logits, mean, has_classes):
    """Return how many labels have undefined logits though their mean is finite, and the first."""
    bad, known = jnp.isnan(logits), jnp.isfinite(mean)
    if has_classes:
        bad, known = ~jnp.isfinite(logits.max(axis=-1)), known.all(axis=-1)
    bad = bad & known
    return jnp.sum(bad), jnp.argmax(bad.reshape(-1))


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
            f"variances {per_class} or covariances {full}; pass Predictive.f_var or f_cov."
        )
    return [mean, cov]


def _required(key: PRNGKeyArray | None) -> PRNGKeyArray:
    if key is None:
        raise ValueError(
            "Found no key for the link 'monte_carlo', expected a random key; pass one, for example "
            "key=jax.random.key(0), or take a link in closed form, for example 'probit'."
        )
    return key
