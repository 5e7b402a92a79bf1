r"""Leave-one-out predictions in closed form, and the labels that they contradict.

Without example n the linearised model's parameters have the covariance
$\Sigma_{-n} = (\Sigma^{-1} - J_n^\top \Lambda_n J_n)^{-1}$ and move by one Newton step,
$\Sigma_{-n} g_n$. In the outputs of the example itself both follow from their covariance
$V_n = J_n \Sigma J_n^\top$ alone: the covariance becomes $V_n (I - \Lambda_n V_n)^{-1}$, and the
mean moves by that times the gradient of the loss in the outputs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from laplace_kit.approx.posterior import Posterior
from laplace_kit.curv.mode import labelled
from laplace_kit.curv.objective import Objective
from laplace_kit.errors import warn
from laplace_kit.eval.attribution import check_num_data
from laplace_kit.eval.evaluation import example_log_probs
from laplace_kit.eval.link import LinkFunction
from laplace_kit.eval.moments import linearized_moments
from laplace_kit.eval.predictive import from_moments
from laplace_kit.host import fetch
from laplace_kit.likelihood import Likelihood
from laplace_kit.tree import pytree_dataclass

# A network that gives every training label more than half, and on average this loss in nats, has
# almost no curvature left at them.
_INTERPOLATING = 0.05


@pytree_dataclass()
class LeaveOneOut:
    r"""What the posterior says of each training example without it.

    Attributes
    ----------
    log_prob
        $\log p(y_n \mid x_n, D_{-n})$, `(N,)` in nats, summed over the example's entries.
    mean, var
        Mean and variance of the targets as in `Predictive`, predicted without the example; for
        labels the probabilities and `None`.
    leverage
        $\operatorname{tr} \Lambda_n V_n$, `(N,)`: the number of parameters that the example itself
        determines. Summed over examples, the number of effective parameters.
    self_influence
        $g_n^\top \Sigma g_n$, `(N,)` in nats: the first-order rise of the example's own loss if it
        is left out.
    shift
        `(N,)`: the distance $\sqrt{\delta^\top \Sigma^{-1} \delta}$ by which the mode moves without
        the example, in standard deviations of the posterior.
    cooks_distance
        `(N,)`: the square of `shift` for each effective parameter (Cook 1977).
    """

    log_prob: Float[Array, " N"]
    mean: Float[Array, "N ..."]
    var: Float[Array, "N ..."] | None
    leverage: Float[Array, " N"]
    self_influence: Float[Array, " N"]
    shift: Float[Array, " N"]
    cooks_distance: Float[Array, " N"]


@pytree_dataclass()
class SuspiciousLabels:
    r"""Training examples by how much their labels alone hold the model.

    `scores` `(N,)` are the self-influences $g_n^\top \Sigma g_n$ in nats: larger is more
    suspicious.
    """

    scores: Float[Array, " N"]

    @property
    def ranking(self) -> Int[np.ndarray, " N"]:
        """The examples' indices, the most suspicious first."""
        return np.argsort(-fetch(self.scores), kind="stable")


def leave_one_out(
    objective: Objective,
    posterior: Posterior,
    train: Any,
    *,
    link: str | LinkFunction = "probit",
    num_data: int | float | None = None,
) -> LeaveOneOut:
    r"""Return leave-one-out predictions and diagnostics of all training examples.

    They are exact for linear models with Gaussian noise, at the same noise and prior. For others
    they are one Newton step of the linearised model, whose curvature is that of the posterior.

    Parameters
    ----------
    objective
        The model at its mode, with its likelihood and the limits that bound the memory.
    posterior
        At a temperature of one.
    train
        The training data, `(x, y)` or `(x, y, weights)` in memory, or an iterable of such, over
        which one pass is made. An example of weight w is left out as a whole.
    link
        As in `laplace_kit.eval.predict`, without draws.
    num_data
        The number of examples, or the sum of weights, that `train` should have.

    Returns
    -------
    found
        Cost: a prediction of the training inputs with full output covariances.

    Raises
    ------
    TypeError, ValueError
        If the data do not suit the model or are not `num_data`, the likelihood has no distribution
        of targets, or covariances do not fit the memory limit.

    Warns
    -----
    UserWarning
        If the network fits every label, so that the curvature vanishes and these numbers are too
        good to choose anything by; or if an example has a leverage of nearly one or more: its
        leverage is cut, and the other numbers with it.

    References
    ----------
    Cook (1977), Detection of influential observation in linear regression. Rad and Maleki (2020), A
    scalable estimate of the out-of-sample prediction error via approximate leave-one-out.
    """
    x, y, weights = labelled(objective, train)
    total = len(jax.tree.leaves(x)[0]) if weights is None else fetch(weights).sum()
    check_num_data(float(total), num_data)
    f, _, covariance = linearized_moments(objective, posterior, x, full=True)
    if weights is None:
        weights = np.ones(len(f), f.dtype)
    without, fit = _without_each(objective.likelihood, f, covariance, y, weights)
    var = jnp.diagonal(without.covariance, axis1=1, axis2=2).reshape(f.shape)
    moments = without.mean, var, without.covariance
    predictive = from_moments(objective.likelihood, *moments, link=link, key=None, num_samples=1000)
    _warn_of(fetch(fit), without.is_cut, predictive.probs is not None)
    return _diagnostics(objective.likelihood, predictive, y, without)


def suspicious_labels(found: LeaveOneOut) -> SuspiciousLabels:
    """Return the training examples scored by their self-influence.

    A wrong label contradicts what the other examples say: its loss at the mode has a large
    gradient, in a direction that few others determine. The loss itself ranks almost as well unless
    the network has learned the wrong labels by heart; the leave-one-out density depends more on how
    good the posterior's structure is.
    """
    return SuspiciousLabels(found.self_influence)


class _Without(NamedTuple):
    """Each example's outputs without it; and its effect on the mode."""

    mean: Float[Array, "N *event"]
    covariance: Float[Array, "N C C"]
    leverage: Float[Array, " N"]
    self_influence: Float[Array, " N"]
    squared_shift: Float[Array, " N"]
    is_cut: Array


@jax.jit
def _without_each(likelihood: Likelihood, f, covariance, y, weights):
    """Return the outputs without each example, and its loss at the mode."""
    dtype, event = covariance.dtype, f.shape[1:]

    def one(f_n, v, y_n, weight):
        units = jnp.eye(v.shape[0], dtype=dtype).reshape(-1, *event)
        root = jax.vmap(lambda u: likelihood.hessian_sqrt_mv(f_n, y_n, u).reshape(-1))(units)
        root = root.T * jnp.sqrt(weight)  # its product with its transpose is w times the curvature
        gradient = weight * likelihood.output_gradient(f_n, y_n).reshape(-1)
        shares, basis = jnp.linalg.eigh(root.T @ v @ root)
        most = 1 - jnp.sqrt(jnp.finfo(dtype).eps)
        kept = jnp.clip(shares, 0, most)
        across = v @ root @ basis
        remaining = v + (across / (1 - kept)) @ across.T
        moved = gradient + root @ basis @ ((across.T @ gradient) / (1 - kept))
        return _Without(
            f_n + (remaining @ gradient).reshape(event),
            remaining,
            jnp.sum(kept),
            gradient @ v @ gradient,
            moved @ v @ moved,
            jnp.any(shares > most),
        )

    with jax.default_matmul_precision("highest"):
        found = jax.vmap(one)(f, covariance, y, weights.astype(dtype))
    return found, jax.vmap(likelihood.negative_log_prob)(f, y)


@jax.jit
def _diagnostics(likelihood, predictive, y, without: _Without) -> LeaveOneOut:
    effective = jnp.sum(without.leverage)
    mean = predictive.mean if predictive.probs is None else predictive.probs
    return LeaveOneOut(
        log_prob=example_log_probs(likelihood, predictive, y),
        mean=mean,
        var=predictive.var,
        leverage=without.leverage,
        self_influence=without.self_influence,
        shift=jnp.sqrt(without.squared_shift),
        cooks_distance=without.squared_shift / effective,
    )


def _warn_of(losses: Float[np.ndarray, " N"], is_cut: Array, has_labels: bool) -> None:
    if num_cut := int(fetch(is_cut).sum()):
        warn(
            f"Found {num_cut} of {len(losses)} training examples with a leverage of nearly one or "
            "more, which this precision cannot tell from one; theirs is cut. With an approximate "
            "structure use structure='full', or that of fewer parameters with subset=; with a full "
            "one use float64, or a larger prior precision."
        )
    if has_labels and losses.max() < np.log(2) and losses.mean() < _INTERPOLATING:
        warn(
            "Found a network that fits every training label (mean loss "
            f"{losses.mean():.2g} nats), expected some that it does not: the curvature at the mode "
            "vanishes, so that leaving one out changes next to nothing. Do not tune by these "
            "numbers; rank by them with care."
        )
