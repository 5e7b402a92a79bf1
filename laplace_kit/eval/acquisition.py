r"""Acquisition: which unlabelled inputs to label next, by what their labels would tell.

All methods use the linearised model, $f \sim \mathcal N(f(x; \theta^*), J \Sigma J^\top)$. Scores
of single inputs are here; batches chosen jointly are in `conditioning.py`, by Gaussian outputs, and
in `batch_information.py`, by draws of labels.
"""

from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from laplace_kit.approx.posterior import Posterior
from laplace_kit.chunks import chunk_of_map
from laplace_kit.curv.capture.capture import jacobian
from laplace_kit.curv.objective import Objective
from laplace_kit.errors import check_count, check_option
from laplace_kit.eval.batch_information import batch_by_labels, drawn_probabilities
from laplace_kit.eval.conditioning import batch_by_outputs, curvature_root, whitened
from laplace_kit.eval.functions import sample_functions
from laplace_kit.eval.inputs import checked_inputs, filled_inputs
from laplace_kit.eval.joint import pairs_at_a_time
from laplace_kit.eval.moments import accurate, inputs_at_a_time
from laplace_kit.host import check_same, fetch
from laplace_kit.sums import map_over
from laplace_kit.targets.outputs import Outputs

AcquisitionMethod = Literal["bald", "batch_bald", "epig", "variance", "logdet"]
METHODS = get_args(AcquisitionMethod)
# Draws of functions for joint probabilities, and of logits for those of single labels.
_FUNCTIONS, _LOGITS = 100, 1000


@runtime_checkable
class Linearized(Protocol):
    """What acquisition needs of a posterior: that of `fit`, or any with these two parts."""

    @property
    def objective(self) -> Objective:
        """The model at its mode, the likelihood, and the limits of memory."""

    @property
    def posterior(self) -> Posterior:
        """The Gaussian over the free parameters."""


def acquire(
    la: Linearized,
    pool: PyTree,
    num: int,
    *,
    method: AcquisitionMethod = "bald",
    target: PyTree = None,
    key: PRNGKeyArray | None = None,
    num_samples: int | None = None,
    batch_size: int | None = None,
) -> Int[np.ndarray, " num"]:
    r"""Return the indices of the inputs of a pool to label next, the best first.

    | method | chosen | likelihoods |
    | --- | --- | --- |
    | `"bald"` | the largest $I(y_n; \theta)$, each by itself | classes |
    | `"batch_bald"` | greedily the largest $I(y_1, \dots, y_b; \theta)$ | one label of classes |
    | `"epig"` | the largest mean of $I(y_n; y_*)$ over targets, each by itself | any |
    | `"logdet"` | greedily the largest $\log \lvert I + S^\top J \Sigma J^\top S \rvert$ | any |
    | `"variance"` | greedily the largest $\operatorname{tr} J_n \Sigma J_n^\top$ | any |

    With $S S^\top$ the curvature of the likelihood at the inputs. `"logdet"` is twice the joint
    information that a batch has about the weights, exactly for Gaussian noise, where it is the
    D-optimal design. Both greedy Gaussian methods condition on the labels of the inputs chosen
    before, so that near copies are not chosen twice. `"variance"` is that of the outputs, which for
    classes are logits: it is meant for regression.

    Parameters
    ----------
    la
        A posterior such as `fit` returns, with `objective` and `posterior`.
    pool
        Unlabelled inputs with a leading axis N.
    num
        How many to choose.
    method
        See above. For `"epig"` outputs are Gaussian unless there are classes.
    target
        Inputs `(T, ...)` at which predictions are to improve; for `"epig"`.
    key
        For methods that draw: `"batch_bald"`, and `"bald"` and `"epig"` with several classes. The
        draws are the same for all inputs.
    num_samples
        By default 100 functions, or for `"bald"` 1000 draws of logits. Fewer than some hundred
        functions overrate the information of inputs that tell little.
    batch_size
        The number of inputs held at a time; by default that of `fit`.

    Returns
    -------
    indices
        `(num,)`, different from each other. Cost: `"bald"` and `"epig"` make one pass over the
        pool. `"variance"` and `"logdet"` make one pass with C backward passes, and then one with C
        tangents for each choice; they keep 1 and $C^2$ numbers for each input. `"batch_bald"`
        evaluates all functions at the pool, once for each choice unless they can be kept. Nothing
        is compiled again as the pool shrinks.

    Raises
    ------
    TypeError, ValueError
        If the method is unknown or unsuitable for the likelihood, there are fewer inputs than
        `num`, a key or the target inputs are missing, inputs are not finite, or what is held
        exceeds the memory limit.

    References
    ----------
    MacKay (1992), Information-based objective functions for active data selection. Houlsby et al.
    (2011), Bayesian active learning for classification and preference learning. Kirsch, van
    Amersfoort and Gal (2019), BatchBALD. Bickford Smith et al. (2023), Prediction-oriented Bayesian
    active learning.
    """
    check_option("method", method, METHODS)
    check_count("num", num, "inputs to label")
    if num_samples is not None:
        check_count("num_samples", num_samples, "draws", least=2)
    objective = la.objective.within(batch_size)
    _check_method(objective, method, target, key)
    check_same("inputs", (objective.params, pool))
    pool, held = filled_inputs(pool)
    if num > held:
        raise ValueError(
            f"Found num={num} inputs to choose from a pool of {held}, expected at most as many as "
            "the pool has; lower num."
        )
    objective, posterior = objective.planned(pool), la.posterior
    posterior = posterior.for_prediction(objective.plan.layers.layouts)
    if method in ("variance", "logdet"):
        return fetch(batch_by_outputs(objective, posterior, pool, held, num, method))
    if method == "batch_bald":
        key, own = jax.random.split(key)
        samples = sample_functions(objective, posterior, own, num_samples or _FUNCTIONS)
        return fetch(batch_by_labels(samples, pool, held, num, key))
    if method == "bald":
        scores = _mutual_information(objective, posterior, pool, key, num_samples or _LOGITS)
    else:
        scores = _predictive_information(
            objective, posterior, pool, checked_inputs(target), key, num_samples or _FUNCTIONS
        )
    return np.argsort(-fetch(scores)[:held], kind="stable")[:num]


def _check_method(objective: Objective, method: str, target: Any, key: Any) -> None:
    has_classes, name = objective.likelihood.has_classes, type(objective.likelihood).__name__
    if method in ("bald", "batch_bald") and not has_classes:
        raise ValueError(
            f"Found method={method!r} for a {name} likelihood, expected one with classes; use "
            "method='logdet', which is the mutual information of numbers with Gaussian noise and "
            "the weights."
        )
    if method == "epig" and target is None:
        raise ValueError(
            "Found no target inputs, expected some for method='epig'; pass target=x, inputs such "
            "as those to be predicted later."
        )
    if method != "epig" and target is not None:
        raise ValueError(
            f"Found target inputs for method={method!r}, expected none; leave them out, or use "
            "method='epig'."
        )
    if key is None and (method == "batch_bald" or (method == "epig" and has_classes)):
        raise ValueError(
            f"Found no key, expected one to draw functions for method={method!r}; pass "
            "key=jax.random.key(0)."
        )


# --- of single labels with the weights ------------------------------------------------------------


class _LabelInformation(NamedTuple):
    """The mutual information of each input's labels and the weights; hashable."""

    num_samples: int

    def __call__(self, args, x) -> Float[Array, " B"]:
        objective, posterior, key = args
        f, rows = jacobian(objective, x)
        f, covariance = accurate(f), posterior.output_covariance(rows.astype(posterior.dtype))

        def information(f, covariance):
            var = jnp.maximum(jnp.diagonal(covariance), 0).reshape(f.shape)
            outputs = Outputs(f[None], var[None], covariance[None])
            found = objective.likelihood.targets(outputs)
            return found.uncertainty(key, num_samples=self.num_samples).mutual_information.sum()

        return jax.vmap(information)(f, covariance.astype(f.dtype))


def _mutual_information(objective, posterior, pool, key, num_samples) -> Float[Array, " N"]:
    size = inputs_at_a_time(objective, posterior)
    return map_over(_LabelInformation(num_samples), (objective, posterior, key), pool, size)


# --- of single targets with those of other inputs -------------------------------------------------


def _predictive_information(
    objective, posterior, pool, target, key, num_samples
) -> Float[Array, " N"]:
    """Return the information that each target of the pool has about one of the others, on average.

    It is that of joint Gaussian outputs, or between labels by draws of functions.
    """
    if not objective.likelihood.has_classes:
        size = objective.limits.batch_size or pairs_at_a_time(objective, posterior)
        return map_over(_OutputPairs(size), (objective, posterior, target), pool, size)
    samples = sample_functions(objective, posterior, key, num_samples)
    size = chunk_of_map(drawn_probabilities, samples, target, objective.limits)
    args = samples, map_over(drawn_probabilities, samples, target, size)
    return map_over(
        _label_pairs, args, pool, chunk_of_map(_label_pairs, args, pool, objective.limits)
    )


def _label_pairs(args, x) -> Float[Array, " B"]:
    r"""Return the mean over targets of the information between two labels.

    With $c$ the covariance of their probabilities over draws and $q$ the product of their means,
    the sum of $q\, ((1 + c/q) \log(1 + c/q) - c/q)$, which does not cancel for small ones.
    """
    samples, others = args
    p = drawn_probabilities(samples, x)
    mean, mean_of_others = p.mean(axis=1), others.mean(axis=1)
    shift, shift_of_others = p - mean[:, None], others - mean_of_others[:, None]
    covariance = jnp.einsum("bkl,tkm->btlm", shift, shift_of_others, precision="highest")
    product = mean[:, None, :, None] * mean_of_others[:, None, :]
    tiny = jnp.finfo(p.dtype).tiny
    change = jnp.maximum(covariance / p.shape[1] / jnp.maximum(product, tiny), -1)
    log = jnp.log1p(jnp.where(change > -1, change, 0))  # x log x is zero at zero
    return jnp.sum(product * ((1 + change) * log - change), axis=(2, 3)).mean(axis=1)


class _OutputPairs(NamedTuple):
    """The mean over targets of the information between two Gaussian targets; hashable."""

    batch_size: int

    def __call__(self, args, x) -> Float[Array, " B"]:
        objective, posterior, target = args
        args = objective, posterior, _whitener(objective, posterior, x)
        return map_over(_with_targets, args, target, self.batch_size).mean(axis=0)


def _with_targets(args, target) -> Float[Array, "T B"]:
    objective, posterior, (rows, root) = args
    others, root_of_others = _whitener(objective, posterior, target)
    with jax.default_matmul_precision("highest"):
        cross = posterior.cross_covariance(others, rows)
        correlation = jnp.einsum("tpc,tpbq,bqd->tbcd", root_of_others, cross, root)
        shares = jnp.linalg.eigvalsh(correlation @ correlation.mT)
    most = 1 - jnp.finfo(shares.dtype).eps
    return -jnp.sum(jnp.log1p(-jnp.clip(shares, 0, most)), axis=-1) / 2


def _whitener(objective, posterior, x):
    r"""Return rows, and $S (I + S^\top V S)^{-1/2}$, which turns outputs into white targets."""
    f, rows = jacobian(objective, x)
    rows = rows.astype(posterior.dtype)
    root = curvature_root(objective.likelihood, accurate(f)).astype(posterior.dtype)
    with jax.default_matmul_precision("highest"):
        values, vectors = jnp.linalg.eigh(whitened(posterior.output_covariance(rows), root))
        return rows, root @ (vectors / jnp.sqrt(1 + jnp.maximum(values, 0))[:, None])
