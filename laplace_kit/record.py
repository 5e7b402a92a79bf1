"""The record of how a posterior was made."""

from jaxtyping import Array, Float

from laplace_kit.approx.choice import Choice
from laplace_kit.curv.capture.coverage import Coverage
from laplace_kit.examples import Examples
from laplace_kit.tree import pytree_dataclass
from laplace_kit.tune.result import Tuning


@pytree_dataclass(static=("coverage",))
class Record:
    """The choices of `fit` and `tune`, and a sample of the training data.

    `choice` is what `fit` chose and why; `coverage` how layer capture treats each parameter;
    `jitter` the share by which the posterior precision's diagonal was raised to be factorised;
    `tuning` how the prior precision was tuned, `None` where it was set by hand; `examples` some of
    the training data, `None` in a posterior from a file.
    """

    choice: Choice
    coverage: Coverage
    jitter: Float[Array, ""]
    tuning: Tuning | None = None
    examples: Examples | None = None
