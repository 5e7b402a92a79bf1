"""Curvature of the summed negative log-likelihood: operators, factors, and layer capture."""

from typing import TYPE_CHECKING

from laplace_kit.lazy import on_first_use

if TYPE_CHECKING:
    from laplace_kit.curv import plots as plots
    from laplace_kit.curv.capture.coverage import Coverage as Coverage
    from laplace_kit.curv.capture.coverage import LeafCoverage as LeafCoverage
    from laplace_kit.curv.capture.coverage import coverage as coverage
    from laplace_kit.curv.design import Design as Design
    from laplace_kit.curv.design import design_matrix as design_matrix
    from laplace_kit.curv.finite_difference import (
        FiniteDifferenceHessianOperator as FiniteDifferenceHessianOperator,
    )
    from laplace_kit.curv.finite_difference import HessianProductEstimate as HessianProductEstimate
    from laplace_kit.curv.finite_difference import finite_difference_hvp as finite_difference_hvp
    from laplace_kit.curv.finite_difference import (
        finite_difference_hvp_with_error as finite_difference_hvp_with_error,
    )
    from laplace_kit.curv.fisher import EmpiricalFisher as EmpiricalFisher
    from laplace_kit.curv.fisher import EmpiricalFisherOperator as EmpiricalFisherOperator
    from laplace_kit.curv.fisher import MonteCarloFisher as MonteCarloFisher
    from laplace_kit.curv.fisher import MonteCarloFisherOperator as MonteCarloFisherOperator
    from laplace_kit.curv.fisher import empirical_fisher_mv as empirical_fisher_mv
    from laplace_kit.curv.fisher import mc_fisher_mv as mc_fisher_mv
    from laplace_kit.curv.ggn import GGN as GGN
    from laplace_kit.curv.ggn import GaussNewtonOperator as GaussNewtonOperator
    from laplace_kit.curv.ggn import GGNOperator as GGNOperator
    from laplace_kit.curv.ggn import ggn_mv as ggn_mv
    from laplace_kit.curv.hessian import Hessian as Hessian
    from laplace_kit.curv.hessian import HessianOperator as HessianOperator
    from laplace_kit.curv.hessian import hessian_mv as hessian_mv
    from laplace_kit.curv.hessian import hvp as hvp
    from laplace_kit.curv.jacobian import JacobianOperator as JacobianOperator
    from laplace_kit.curv.jacobian import TransposedJacobianOperator as TransposedJacobianOperator
    from laplace_kit.curv.kernel import neural_tangent_kernel as neural_tangent_kernel
    from laplace_kit.curv.kronecker import KroneckerFactors as KroneckerFactors
    from laplace_kit.curv.kronecker import kronecker_factors as kronecker_factors
    from laplace_kit.curv.landscape import Landscape as Landscape
    from laplace_kit.curv.landscape import loss_along as loss_along
    from laplace_kit.curv.landscape import random_directions as random_directions
    from laplace_kit.curv.linear import DampedOperator as DampedOperator
    from laplace_kit.curv.linear import ScaledOperator as ScaledOperator
    from laplace_kit.curv.linear import SelfAdjointOperator as SelfAdjointOperator
    from laplace_kit.curv.linear import SumOperator as SumOperator
    from laplace_kit.curv.linearization import LinearizedOperator as LinearizedOperator
    from laplace_kit.curv.linearization import linearized as linearized
    from laplace_kit.curv.low_rank_factor import LowRankFactor as LowRankFactor
    from laplace_kit.curv.matrix_free.eigen import eigenpairs as eigenpairs
    from laplace_kit.curv.matrix_free.estimate import estimate_diagonal as estimate_diagonal
    from laplace_kit.curv.matrix_free.estimate import (
        estimate_frobenius_norm_squared as estimate_frobenius_norm_squared,
    )
    from laplace_kit.curv.matrix_free.estimate import estimate_trace as estimate_trace
    from laplace_kit.curv.matrix_free.krylov import Status as Status
    from laplace_kit.curv.matrix_free.precondition import (
        DiagonalPreconditioner as DiagonalPreconditioner,
    )
    from laplace_kit.curv.matrix_free.precondition import (
        KroneckerPreconditioner as KroneckerPreconditioner,
    )
    from laplace_kit.curv.matrix_free.precondition import Preconditioner as Preconditioner
    from laplace_kit.curv.matrix_free.precondition import (
        diagonal_preconditioner as diagonal_preconditioner,
    )
    from laplace_kit.curv.matrix_free.precondition import (
        kronecker_preconditioner as kronecker_preconditioner,
    )
    from laplace_kit.curv.matrix_free.probing import Estimate as Estimate
    from laplace_kit.curv.matrix_free.quadrature import SpectralDensity as SpectralDensity
    from laplace_kit.curv.matrix_free.quadrature import estimate_log_det as estimate_log_det
    from laplace_kit.curv.matrix_free.quadrature import spectral_density as spectral_density
    from laplace_kit.curv.matrix_free.ritz import Eigenpairs as Eigenpairs
    from laplace_kit.curv.matrix_free.solve import InverseOperator as InverseOperator
    from laplace_kit.curv.matrix_free.solve import NotConvergedWarning as NotConvergedWarning
    from laplace_kit.curv.matrix_free.solve import Solution as Solution
    from laplace_kit.curv.matrix_free.solve import solve as solve
    from laplace_kit.curv.objective import Objective as Objective
    from laplace_kit.curv.operator import CurvatureOperator as CurvatureOperator
    from laplace_kit.curv.partition import BlockDiagonalOperator as BlockDiagonalOperator
    from laplace_kit.curv.partition import block_diagonal as block_diagonal
    from laplace_kit.curv.per_example import (
        per_example_gradient_norms as per_example_gradient_norms,
    )
    from laplace_kit.curv.per_example import per_example_gradients as per_example_gradients
    from laplace_kit.curv.principal import submatrix as submatrix
    from laplace_kit.curv.spec import CurvatureSpec as CurvatureSpec
    from laplace_kit.curv.statistics import LayerStatistics as LayerStatistics
    from laplace_kit.curv.statistics import layer_statistics as layer_statistics

__getattr__, __dir__ = on_first_use(__name__)
