"""Gaussian posteriors from curvature and a prior; which parameters, and which structure."""

from typing import TYPE_CHECKING

from laplace_kit.lazy import on_first_use

if TYPE_CHECKING:
    from laplace_kit.approx.choice import Auto as Auto
    from laplace_kit.approx.choice import Choice as Choice
    from laplace_kit.approx.diagnostics import Diagnostics as Diagnostics
    from laplace_kit.approx.diagonal import Diagonal as Diagonal
    from laplace_kit.approx.diagonal import DiagonalPosterior as DiagonalPosterior
    from laplace_kit.approx.diagonal import DiagonalStructure as DiagonalStructure
    from laplace_kit.approx.dual import DualPosterior as DualPosterior
    from laplace_kit.approx.dual import DualStructure as DualStructure
    from laplace_kit.approx.evidence import log_evidence as log_evidence
    from laplace_kit.approx.full import Full as Full
    from laplace_kit.approx.full import FullPosterior as FullPosterior
    from laplace_kit.approx.full import FullStructure as FullStructure
    from laplace_kit.approx.kronecker import Kronecker as Kronecker
    from laplace_kit.approx.kronecker import KroneckerPosterior as KroneckerPosterior
    from laplace_kit.approx.kronecker import KroneckerStructure as KroneckerStructure
    from laplace_kit.approx.low_rank import LowRank as LowRank
    from laplace_kit.approx.low_rank import LowRankPosterior as LowRankPosterior
    from laplace_kit.approx.low_rank import LowRankStructure as LowRankStructure
    from laplace_kit.approx.merge import Mergeable as Mergeable
    from laplace_kit.approx.merge import merged as merged
    from laplace_kit.approx.posterior import Posterior as Posterior
    from laplace_kit.approx.posterior import Spectrum as Spectrum
    from laplace_kit.approx.posterior import Structure as Structure
    from laplace_kit.approx.prior import Prior as Prior
    from laplace_kit.approx.spec import Sizes as Sizes
    from laplace_kit.approx.spec import StructureSpec as StructureSpec
    from laplace_kit.approx.subset import largest_magnitude as largest_magnitude
    from laplace_kit.approx.subset import largest_variance as largest_variance
    from laplace_kit.approx.subset import last_layer as last_layer
    from laplace_kit.approx.subset import layers as layers
    from laplace_kit.approx.update import Expansion as Expansion
    from laplace_kit.approx.update import Update as Update
    from laplace_kit.approx.update import sum_of_curvatures as sum_of_curvatures
    from laplace_kit.approx.update import updated as updated

__getattr__, __dir__ = on_first_use(__name__)
