r"""Random estimates of trace, diagonal and Frobenius norm from products with probes, by matfree."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.matrix_free.host import on_host, product
from laplace_kit.curv.matrix_free.probing import (
    Estimate,
    check_num_samples,
    check_probes,
    draw,
    monte_carlo,
)
from laplace_kit.errors import check_option

_ISOTROPIC = ("normal", "sphere")  # probes without a preferred direction

# matfree takes values below an absolute epsilon for zero. This factor keeps nonzero values above
# it, and the squares of 1e8 and of its inverse finite in float32.
_MAGNIFY = 2.0**20


def estimate_trace(
    operator: SelfAdjointOperator,
    *,
    key: PRNGKeyArray,
    num_samples: int = 32,
    method: str = "hutchinson",
    probes: str | None = None,
) -> Estimate:
    r"""Estimate $\mathrm{tr}\, A$, without bias.

    Hutchinson's estimate is the mean of $z^T A z$ over probes with $\mathrm E\, z z^T = I$. XTrace
    takes the trace of a low-rank approximation exactly and estimates the rest from one probe that
    the approximation has not seen, for each probe in turn: more accurate if the spectrum decays.

    Parameters
    ----------
    operator
        Any self-adjoint operator, in memory or over a stream of batches.
    key
        Random key for the probes.
    num_samples
        The number K of probes, at least 2; for XTrace at most P.
    method
        `"hutchinson"` or `"xtrace"`.
    probes
        `"signs"` (the trace of a diagonal matrix is exact), `"normal"`, `"sphere"` or
        `"sparse_signs"`; by default signs, and for XTrace `"normal"`, which suits it better.

    Returns
    -------
    estimate
        Value and standard error `()`. That of XTrace comes from its leave-one-out estimates, which
        share most of their probes: it is too small by a factor of up to 1.5 (1.7 with signs) if the
        spectrum is flat. Cost: K products in one pass over the data (several if the probes exceed
        the memory limit); XTrace 2 K in two passes, or P if that is less, which is exact.

    Raises
    ------
    ValueError
        If there are too few or too many samples, or a name is not known.

    References
    ----------
    Hutchinson (1990), A stochastic estimator of the trace of the influence matrix. Epperly, Tropp
    and Webber (2024), XTrace: making the most of every sample in stochastic trace estimation.
    """
    check_option("method", method, ("hutchinson", "xtrace"))
    probes = probes or {"hutchinson": "signs", "xtrace": "normal"}[method]
    check_probes(probes)
    if method == "xtrace":
        integrand = _xtrace if probes in _ISOTROPIC else _xtrace_plain
        return _leave_one_out(integrand, operator, key, num_samples, probes)
    return monte_carlo(_trace, operator, key=key, num_samples=num_samples, probes=probes)


def estimate_diagonal(
    operator: SelfAdjointOperator,
    *,
    key: PRNGKeyArray,
    num_samples: int = 32,
    method: str = "hutchinson",
    probes: str = "signs",
) -> Estimate:
    r"""Estimate the diagonal, without bias; `operator.diagonal()` is exact.

    Hutchinson's estimate is the mean of $z \odot A z$. XDiag takes the diagonal of a low-rank
    approximation exactly and estimates the rest, as XTrace does.

    Parameters
    ----------
    operator
        Any self-adjoint operator, in memory or over a stream of batches.
    key
        Random key for the probes.
    num_samples
        The number K of probes, at least 2; for XDiag at most P.
    method
        `"hutchinson"` or `"xdiag"`.
    probes
        `"signs"` (the diagonal of a diagonal matrix is exact), `"normal"`, `"sphere"` or
        `"sparse_signs"`.

    Returns
    -------
    estimate
        Value and standard error `(P,)` in flat order; that of XDiag is too small by a factor of up
        to 1.7 if the spectrum is flat. Cost as for `estimate_trace`.

    Raises
    ------
    ValueError
        If there are too few or too many samples, or a name is not known.

    References
    ----------
    Bekas, Kokiopoulou and Saad (2007), An estimator for the diagonal of a matrix. Epperly, Tropp
    and Webber (2024), XTrace: making the most of every sample in stochastic trace estimation.
    """
    check_option("method", method, ("hutchinson", "xdiag"))
    check_probes(probes)
    if method == "xdiag":
        return _leave_one_out(_xdiag, operator, key, num_samples, probes)
    return monte_carlo(_diagonal, operator, key=key, num_samples=num_samples, probes=probes)


def estimate_frobenius_norm_squared(
    operator: SelfAdjointOperator,
    *,
    key: PRNGKeyArray,
    num_samples: int = 32,
    probes: str = "signs",
) -> Estimate:
    r"""Estimate $\|A\|_F^2 = \sum_{ij} A_{ij}^2$, the sum of squared eigenvalues, without bias.

    The mean of $\|A z\|^2$ over probes, which is Hutchinson's estimate of $\mathrm{tr}\, A^2$.

    Parameters
    ----------
    operator
        Any self-adjoint operator, in memory or over a stream of batches.
    key, num_samples, probes
        As for `estimate_trace`.

    Returns
    -------
    estimate
        Value and standard error `()`. Cost: K products in one pass over the data (several if the
        probes exceed the memory limit).

    Raises
    ------
    ValueError
        If there are too few samples, or the probes' name is not known.

    References
    ----------
    Hutchinson (1990), A stochastic estimator of the trace of the influence matrix.
    """
    check_probes(probes)
    return monte_carlo(_frobenius, operator, key=key, num_samples=num_samples, probes=probes)


# --- integrands: static functions, which load matfree when they are traced ------------------------


def _trace(mv, probe):
    import matfree.stochtrace

    return matfree.stochtrace.monte_carlo_trace()(mv, probe)


def _diagonal(mv, probe):
    import matfree.stochtrace

    return matfree.stochtrace.monte_carlo_diagonal()(mv, probe)


def _frobenius(mv, probe):
    import matfree.stochtrace

    return matfree.stochtrace.monte_carlo_frobeniusnorm_squared()(mv, probe)


def _xtrace(mv, probes):
    import matfree.stochtrace

    return matfree.stochtrace.leave_one_out_xtrace(apply_resphering=True)(mv, probes)


def _xtrace_plain(mv, probes):
    import matfree.stochtrace

    return matfree.stochtrace.leave_one_out_xtrace(apply_resphering=False)(mv, probes)


def _xdiag(mv, probes):
    import matfree.stochtrace

    return matfree.stochtrace.leave_one_out_xdiag()(mv, probes)


def _leave_one_out(integrand, operator, key, num_samples, probes):
    check_num_samples(num_samples)
    num = operator.shape[0]
    if num_samples > num:
        raise ValueError(
            f"Found num_samples={num_samples}, expected at most P={num}, the number of parameters; "
            "lower it, or take operator.trace() or operator.diagonal(), which are exact."
        )
    value, standard_error = on_host(_from_all_probes, operator, key, num_samples, probes, integrand)
    return Estimate(value, standard_error, min(2 * num_samples, num))


@partial(jax.jit, static_argnums=(2, 3, 4))
def _from_all_probes(operator, key, num_samples, probes, integrand):
    mv = product(operator)
    probes = draw(operator, key, jnp.arange(num_samples), probes)
    with jax.default_matmul_precision("highest"):
        values = integrand(lambda v: _MAGNIFY * mv(v), probes) / _MAGNIFY
    return values.mean(0), values.std(0, ddof=1) / jnp.sqrt(num_samples)
