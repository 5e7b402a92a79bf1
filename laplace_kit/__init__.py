"""Laplace approximations for JAX: from a trained model to a posterior, predictions and a report."""

from typing import TYPE_CHECKING

from laplace_kit import approx as approx
from laplace_kit import curv as curv
from laplace_kit import eval as eval
from laplace_kit import likelihood as likelihood
from laplace_kit import model as model
from laplace_kit import targets as targets
from laplace_kit import tune as tune
from laplace_kit.lazy import on_first_use as _on_first_use
from laplace_kit.likelihood import Bernoulli as Bernoulli
from laplace_kit.likelihood import Categorical as Categorical
from laplace_kit.likelihood import FromLoss as FromLoss
from laplace_kit.likelihood import Gaussian as Gaussian
from laplace_kit.likelihood import HeteroscedasticGaussian as HeteroscedasticGaussian
from laplace_kit.likelihood import Likelihood as Likelihood
from laplace_kit.likelihood import Masked as Masked
from laplace_kit.likelihood import MultivariateGaussian as MultivariateGaussian
from laplace_kit.likelihood import NegativeBinomial as NegativeBinomial
from laplace_kit.likelihood import Ordinal as Ordinal
from laplace_kit.likelihood import Poisson as Poisson
from laplace_kit.likelihood import StudentT as StudentT
from laplace_kit.storage import storable as storable
from laplace_kit.tree import pytree_dataclass as pytree_dataclass

if TYPE_CHECKING:
    from laplace_kit import data as data
    from laplace_kit.approx.choice import Auto as Auto
    from laplace_kit.approx.diagonal import Diagonal as Diagonal
    from laplace_kit.approx.full import Full as Full
    from laplace_kit.approx.kronecker import Kronecker as Kronecker
    from laplace_kit.approx.low_rank import LowRank as LowRank
    from laplace_kit.card import Card as Card
    from laplace_kit.checkpoint import Checkpoint as Checkpoint
    from laplace_kit.curv.fisher import EmpiricalFisher as EmpiricalFisher
    from laplace_kit.curv.fisher import MonteCarloFisher as MonteCarloFisher
    from laplace_kit.curv.ggn import GGN as GGN
    from laplace_kit.curv.hessian import Hessian as Hessian
    from laplace_kit.fitting import fit as fit
    from laplace_kit.fitting import load as load
    from laplace_kit.laplace import Laplace as Laplace
    from laplace_kit.train import EvidenceTraining as EvidenceTraining
    from laplace_kit.train import TrainingHistory as TrainingHistory
    from laplace_kit.train import train_with_evidence as train_with_evidence

__version__ = "0.1.0"

__getattr__, __dir__ = _on_first_use(__name__)
