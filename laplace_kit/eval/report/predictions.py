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
    """

    probs: Float[ArrayLike, "N C"]
    shifted: Mapping[str, Float[ArrayLike, "_ C"]] = field(default_factory=dict)
    ood: Mapping[str, Float[ArrayLike, "_ C"]] = field(default_factory=dict)
    epistemic: Float[ArrayLike, " _"] | None = None
    ood_epistemic: Mapping[str, Float[ArrayLike, " _"]] = field(default_factory=dict)


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
