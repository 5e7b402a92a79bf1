"""What predictors say about the same examples: the arrays that a report is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
from jaxtyping import ArrayLike, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassPredictions:
    """One classifier's probabilities, each row summing to one.

    Parameters
    ----------
    probs
        On the test set, `(N, C)`.
    shifted
        On shifted sets, whose labels are known, by name, `(M, C)` each.
    ood
        On out-of-distribution inputs, which have no labels, by name, `(M, C)` each.
    epistemic
        The mutual information of each test label and the weights in nats, `(N,)`, if known: the
        part of the entropy that is uncertainty about the weights.
    ood_epistemic
        The same on the sets of `ood`, by name, `(M,)` each, as far as it is known.
    aleatoric
        The entropy of each test label that is expected under the weights in nats, `(N,)`, if known:
        the other part of the same total as `epistemic`. Where the probabilities are those of a link
        that total is not their entropy. By default what `epistemic` leaves of the entropy of
        `probs`.
    log_probs
        The logarithms of `probs`, `(N, C)`, if they are known by themselves, such as
        `jax.nn.log_softmax(logits)`: the NLL is then exact where `probs` round to zero.
    shifted_log_probs
        The same on the sets of `shifted`, by name, as far as they are known.
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
class RegressionPredictions:
    """One regressor's Gaussian predictions on the test set.

    Parameters
    ----------
    mean
        Predictive mean, `(N, C)`.
    std
        Predictive standard deviation, noise included, `(N, C)`.
    epistemic_std
        The part of it that is uncertainty about the weights, `(N, C)`, if known.
    """

    mean: Float[ArrayLike, "N C"]
    std: Float[ArrayLike, "N C"]
    epistemic_std: Float[ArrayLike, "N C"] | None = None
