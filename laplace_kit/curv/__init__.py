"""Curvature of the summed negative log-likelihood: operators, factors, and layer capture."""

from laplace_kit.curv.coverage import Coverage as Coverage
from laplace_kit.curv.coverage import coverage as coverage
from laplace_kit.curv.design import Design as Design
from laplace_kit.curv.design import design_matrix as design_matrix
from laplace_kit.curv.fisher import EmpiricalFisherOperator as EmpiricalFisherOperator
from laplace_kit.curv.fisher import MonteCarloFisherOperator as MonteCarloFisherOperator
from laplace_kit.curv.fisher import empirical_fisher_mv as empirical_fisher_mv
from laplace_kit.curv.fisher import mc_fisher_mv as mc_fisher_mv
from laplace_kit.curv.ggn import GGNOperator as GGNOperator
from laplace_kit.curv.ggn import ggn_mv as ggn_mv
from laplace_kit.curv.hessian import HessianOperator as HessianOperator
from laplace_kit.curv.hessian import finite_difference_hvp as finite_difference_hvp
from laplace_kit.curv.hessian import hessian_mv as hessian_mv
from laplace_kit.curv.hessian import hvp as hvp
from laplace_kit.curv.kernel import neural_tangent_kernel as neural_tangent_kernel
from laplace_kit.curv.kronecker import KroneckerFactors as KroneckerFactors
from laplace_kit.curv.kronecker import kronecker_factors as kronecker_factors
from laplace_kit.curv.per_example import per_example_gradient_norms as per_example_gradient_norms
from laplace_kit.curv.per_example import per_example_gradients as per_example_gradients
