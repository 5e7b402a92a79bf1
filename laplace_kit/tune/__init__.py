"""Noise, prior precision and temperature: functions from posterior to posterior.

Each can be called by itself and followed by any other; `Laplace.tune` is the usual chain of them.
"""

from typing import TYPE_CHECKING

from laplace_kit.lazy import on_first_use

if TYPE_CHECKING:
    from laplace_kit.tune.folds import cross_validated as cross_validated
    from laplace_kit.tune.marginal import evidence as evidence
    from laplace_kit.tune.noise import noise_of_residuals as noise_of_residuals
    from laplace_kit.tune.result import Tuning as Tuning
    from laplace_kit.tune.tempering import temperature as temperature
    from laplace_kit.tune.validation import held_out as held_out

__getattr__, __dir__ = on_first_use(__name__)
