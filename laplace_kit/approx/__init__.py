"""Gaussian posteriors from curvature and a prior."""

from laplace_kit.approx.diagnostics import Diagnostics as Diagnostics
from laplace_kit.approx.diagonal import DiagonalPosterior as DiagonalPosterior
from laplace_kit.approx.diagonal import DiagonalStructure as DiagonalStructure
from laplace_kit.approx.evidence import log_evidence as log_evidence
from laplace_kit.approx.full import FullPosterior as FullPosterior
from laplace_kit.approx.full import FullStructure as FullStructure
from laplace_kit.approx.kronecker import KroneckerPosterior as KroneckerPosterior
from laplace_kit.approx.kronecker import KroneckerStructure as KroneckerStructure
from laplace_kit.approx.low_rank import LowRankPosterior as LowRankPosterior
from laplace_kit.approx.low_rank import LowRankStructure as LowRankStructure
from laplace_kit.approx.posterior import Posterior as Posterior
from laplace_kit.approx.posterior import Spectrum as Spectrum
from laplace_kit.approx.posterior import Structure as Structure
