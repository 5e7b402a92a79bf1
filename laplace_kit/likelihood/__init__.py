"""Likelihoods: the distribution of targets given the model's outputs, with curvature in outputs."""

from laplace_kit.likelihood.base import Factorized as Factorized
from laplace_kit.likelihood.base import Likelihood as Likelihood
from laplace_kit.likelihood.classification import Bernoulli as Bernoulli
from laplace_kit.likelihood.classification import Categorical as Categorical
from laplace_kit.likelihood.counts import Poisson as Poisson
from laplace_kit.likelihood.gaussian import Gaussian as Gaussian
from laplace_kit.likelihood.gaussian import HeteroscedasticGaussian as HeteroscedasticGaussian
from laplace_kit.likelihood.loss import FromLoss as FromLoss
from laplace_kit.likelihood.masked import Masked as Masked
from laplace_kit.likelihood.multivariate import MultivariateGaussian as MultivariateGaussian
from laplace_kit.likelihood.names import LikelihoodLike as LikelihoodLike
from laplace_kit.likelihood.names import as_likelihood as as_likelihood
from laplace_kit.likelihood.negative_binomial import NegativeBinomial as NegativeBinomial
from laplace_kit.likelihood.ordinal import Ordinal as Ordinal
from laplace_kit.likelihood.student_t import StudentT as StudentT
