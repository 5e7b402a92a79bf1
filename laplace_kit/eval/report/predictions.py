"""Predictions for the same examples: the input arrays of a report."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
from jaxtyping import ArrayLike, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassPredictions:
    """The class probabilities of one classifier; each row sums to one.

    Parameters
    ----------
    probs
        Probabilities on the test set, `(N, C)`.
    shifted
        Probabilities on labelled shifted sets, by name, `(M, C)` each.
    ood
        Probabilities on unlabelled out-of-distribution inputs, by name, `(M, C)` each.
    epistemic
        The mutual information of each test label and the weights in nats, `(N,)`, if known: the
        part of the entropy that is due to uncertainty in the weights.
    ood_epistemic
        The mutual information on the sets of `ood`, by name, `(M,)` each, where known.
    aleatoric
        The expected entropy of each test label given the weights in nats, `(N,)`, if known:
        `epistemic` and `aleatoric` sum to the entropy of the average over the weights, which is not
        exactly the entropy of `probs` where these are computed by a link. By default the entropy of
        `probs` minus `epistemic`.
    log_probs
        The logarithms of `probs`, `(N, C)`, if known separately, such as
        `jax.nn.log_softmax(logits)`: the NLL is then exact where `probs` round to zero, and
        otherwise infinite if such a label occurs.
    shifted_log_probs
        Log probabilities on the sets of `shifted`, by name, where known.
    """

    probs: Float[ArrayLike, "N C"]
    shifted: Mapping[str, Float[ArrayLike, "_ C"]] = field(default_factory=dict)
    ood: Mapping[str, Float[ArrayLike, "_ C"]] = field(default_factory=dict)
    epistemic: Float[ArrayLike, " _"] | None = None
    ood_epistemic: Mapping[str, Float[ArrayLike, " _"]] = field(default_factory=dict)
    aleatoric: Float[ArrayLike, " _"] | None = None
    log_probs: Float[ArrayLike, "N C"] | None = None
    shifted_log_probs: Mapping[str, Float[ArrayLike, "_ C"]] = field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Distributions:
    r"""What predictive distributions of any kind imply for the targets that were observed.

    Parameters
    ----------
    log_prob
        $\log p(y_n)$ of each example, over all its outputs, `(N,)`.
    cdf, cdf_below
        $P(Y \le y)$ and $P(Y < y)$, `(N, C)`: equal except at steps, as counts have them.
    low, high
        The ends of the central 90% interval, `(N, C)`, both included.
    content
        The probability of this interval, `(N, C)`; at least 0.9 for counts.
    crps
        The continuous ranked probability score, `(N, C)`.
    """

    log_prob: Float[ArrayLike, " N"]
    cdf: Float[ArrayLike, "N C"]
    cdf_below: Float[ArrayLike, "N C"]
    low: Float[ArrayLike, "N C"]
    high: Float[ArrayLike, "N C"]
    content: Float[ArrayLike, "N C"]
    crps: Float[ArrayLike, "N C"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RegressionPredictions:
    """The predictions of one regressor on the test set.

    Parameters
    ----------
    mean
        Predictive mean, `(N, C)`.
    std
        Predictive standard deviation, noise included, `(N, C)`.
    epistemic_std
        The part of `std` that is due to uncertainty in the weights, `(N, C)`, if known.
    distributions
        What the predictive distributions imply for the targets, from
        `laplace_kit.eval.report.distributions_of`. By default the distributions are normal, with
        `mean` and `std`.
    """

    mean: Float[ArrayLike, "N C"]
    std: Float[ArrayLike, "N C"]
    epistemic_std: Float[ArrayLike, "N C"] | None = None
    distributions: Distributions | None = None
