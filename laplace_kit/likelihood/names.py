"""Likelihoods from names or losses."""

from collections.abc import Callable

from laplace_kit.errors import check_option
from laplace_kit.likelihood.base import Likelihood
from laplace_kit.likelihood.classification import Bernoulli, Categorical
from laplace_kit.likelihood.counts import Poisson
from laplace_kit.likelihood.gaussian import Gaussian, HeteroscedasticGaussian
from laplace_kit.likelihood.loss import FromLoss
from laplace_kit.likelihood.masked import Masked
from laplace_kit.likelihood.multivariate import MultivariateGaussian
from laplace_kit.likelihood.negative_binomial import NegativeBinomial
from laplace_kit.likelihood.ordinal import Ordinal
from laplace_kit.likelihood.student_t import StudentT

LikelihoodLike = Likelihood | str | Callable  # what `as_likelihood` reads

# The classes that a file may name; see `laplace_kit.stored`.
BUILT_IN = (
    *(Gaussian, MultivariateGaussian, HeteroscedasticGaussian, StudentT),
    *(Categorical, Bernoulli, Ordinal, Poisson, NegativeBinomial, Masked),
)
_BY_NAME = {
    "gaussian": Gaussian,
    "heteroscedastic_gaussian": HeteroscedasticGaussian,
    "student_t": StudentT,
    "categorical": Categorical,
    "bernoulli": Bernoulli,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
}
_CATEGORICAL = (
    "Did you mean 'categorical', for outputs (N, C) of C classes? With one logit for each label it "
    "is 'bernoulli'."
)
_BERNOULLI = (
    "Did you mean 'bernoulli', for one logit for each label? With outputs (N, 2) for two classes "
    "it is 'categorical'."
)
# Names in other libraries; see `laplace_kit.errors.check_option`.
_HINTS = {
    **dict.fromkeys(
        ("classification", "multiclass", "softmax", "cross_entropy", "softmax_cross_entropy"),
        _CATEGORICAL,
    ),
    **dict.fromkeys(
        ("binary", "binary_classification", "sigmoid", "logistic", "bce", "multilabel"), _BERNOULLI
    ),
    **dict.fromkeys(("regression", "mse", "normal", "l2"), "Did you mean 'gaussian'?"),
    **dict.fromkeys(("count", "counts"), "Did you mean 'poisson'?"),
    **dict.fromkeys(("nb", "nb2", "overdispersed"), "Did you mean 'negative_binomial'?"),
    **dict.fromkeys(("t", "studentt", "robust"), "Did you mean 'student_t'?"),
    **dict.fromkeys(
        ("ordinal", "ordered", "cumulative_logit", "proportional_odds"),
        "The number of classes is needed: pass lk.Ordinal(num_classes).",
    ),
}


def as_likelihood(likelihood: object) -> Likelihood:
    """Return the likelihood object for a name such as `"categorical"`, or for a loss `(f, y)`.

    A likelihood is returned unchanged; a function is a loss of one example, `FromLoss(loss)`.

    Raises
    ------
    ValueError
        If the name is unknown; the message has the nearest known name.
    TypeError
        If it is none of these, or a function with another signature.
    """
    if isinstance(likelihood, str):
        return _BY_NAME[check_option("likelihood", likelihood, _BY_NAME, _HINTS)]()
    if isinstance(likelihood, Likelihood):
        return likelihood
    if callable(likelihood) and not isinstance(likelihood, type):
        return FromLoss(likelihood)
    is_class = isinstance(likelihood, type)
    found = f"class {likelihood.__name__}" if is_class else f"object {likelihood!r}"
    raise TypeError(
        f"Found as likelihood the {found}, expected an object such as lk.Categorical(), one of "
        f"{', '.join(map(repr, _BY_NAME))}, or a loss (f, y) of one example."
    )
