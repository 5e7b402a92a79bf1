r"""The base class of `curvature=`: an object that makes the operator of a model and its data.

`GGN`, `Hessian`, `EmpiricalFisher` and `MonteCarloFisher` are defined next to their operators.
"""

import abc
from typing import ClassVar

from jaxtyping import PRNGKeyArray

from laplace_kit.curv.linear import SelfAdjointOperator
from laplace_kit.curv.objective import Objective
from laplace_kit.data import Data


class CurvatureSpec(abc.ABC):
    r"""A curvature for `fit`, with its options: the base class.

    A subclass is a frozen dataclass and a pytree, whose arrays are leaves. Register it with
    `jax.tree_util.register_static` if it has no arrays, else with
    `jax.tree_util.register_dataclass`.

    Attributes
    ----------
    noise_power
        The k for which the curvature of a Gaussian likelihood is proportional to $\sigma^{-2k}$:
        one, as in the true curvature, or two for products of gradients.
    """

    noise_power: ClassVar[int] = 1

    @property
    def name(self) -> str:
        """The name in messages and in `la.choice`."""
        return type(self).__name__

    @abc.abstractmethod
    def operator(self, objective: Objective, data: Data) -> SelfAdjointOperator:
        """Return the curvature of the summed loss at the mode.

        Parameters
        ----------
        objective
            The model as a function of its P free parameters only:
            `objective.model_fn(params, x)`, the mode `objective.params`, `objective.likelihood`,
            and the memory limits `objective.limits`.
        data
            The data to sum over, of the kind that `objective.model_fn` takes. They may be features:
            the outputs of the part of the model that no free parameter enters.

        Returns
        -------
        operator
            An operator of shape `(P, P)`: a `CurvatureOperator` or a sum of operators, for example.
        """

    def num_columns(self, event: tuple[int, ...]) -> int | None:
        r"""Return R where the operator is a `GaussNewtonOperator`, else `None`.

        Parameters
        ----------
        event
            The shape of one example's outputs; its factor $S_n$ has R columns. Without such factors
            there is no Kronecker structure and no dual form of the full one.
        """
        return None

    def with_key(self, key: PRNGKeyArray) -> "CurvatureSpec":
        """Return the same with another random key, where it has one."""
        return self
