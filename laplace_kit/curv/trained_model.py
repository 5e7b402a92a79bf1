"""A model at its trained parameters, some of them free and the others frozen."""

from jax.tree_util import Partial
from jaxtyping import PyTree

from laplace_kit.curv.objective import Objective, restricted_model
from laplace_kit.curv.plan import Plan
from laplace_kit.likelihood import Likelihood
from laplace_kit.memory import Limits
from laplace_kit.selection import Selection
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass(static=("plan",))
class TrainedModel:
    """A model and its parameters: `mode` holds the free ones, `selection` puts the others back.

    `model_fn` takes all parameters. `plan` is what is known of the model, `None` before it has been
    traced.
    """

    model_fn: Partial
    mode: PyTree
    selection: Selection
    plan: Plan | None = None

    @property
    def params(self) -> PyTree:
        """All parameters, free and frozen."""
        return self.selection.insert(self.mode)

    def objective(self, likelihood: Likelihood, limits: Limits) -> Objective:
        """Return the model as a function of its free parameters, with a likelihood."""
        model_fn = restricted_model(self.model_fn, self.selection)
        return Objective(model_fn, self.mode, likelihood, self.plan, limits)
