"""Distributions of the targets, which a likelihood derives from the distribution of its outputs.

`likelihood` makes these distributions, and `eval` computes predictions and metrics from them.
"""

from typing import TYPE_CHECKING

from laplace_kit.lazy import on_first_use

if TYPE_CHECKING:
    from laplace_kit.targets.base import LabelTargets as LabelTargets
    from laplace_kit.targets.base import NoTargets as NoTargets
    from laplace_kit.targets.base import NumberTargets as NumberTargets
    from laplace_kit.targets.base import Targets as Targets
    from laplace_kit.targets.binary import BinaryTargets as BinaryTargets
    from laplace_kit.targets.classes import ClassTargets as ClassTargets
    from laplace_kit.targets.inversion import inverted as inverted
    from laplace_kit.targets.inversion import inverted_counts as inverted_counts
    from laplace_kit.targets.mixtures import Law as Law
    from laplace_kit.targets.mixtures import MixtureTargets as MixtureTargets
    from laplace_kit.targets.mixtures import mixture as mixture
    from laplace_kit.targets.multivariate_normal import (
        MultivariateNormalTargets as MultivariateNormalTargets,
    )
    from laplace_kit.targets.normal import NormalTargets as NormalTargets
    from laplace_kit.targets.normal_mixture import NormalMixtureTargets as NormalMixtureTargets
    from laplace_kit.targets.ordered import OrderedTargets as OrderedTargets
    from laplace_kit.targets.outputs import Outputs as Outputs
    from laplace_kit.targets.student_t import StudentTTargets as StudentTTargets
    from laplace_kit.targets.uncertainty import Uncertainty as Uncertainty

__getattr__, __dir__ = on_first_use(__name__)
