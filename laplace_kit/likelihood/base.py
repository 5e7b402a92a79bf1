r"""What every likelihood can do, and what those can do whose targets are independent entries.

A likelihood is a frozen pytree whose methods speak of *one* example: outputs `f` of shape
`(*event,)` and a target `y`; callers `jax.vmap` over examples. With $\ell = -\log p(y \mid f)$,
a likelihood gives the Hessian $L = \nabla_f^2 \ell$ as a product and as an exact square root,
$L = S S^\top$, both in closed form. For an exponential family in its natural parameters $L$ does
not depend on $y$ and the generalised Gauss-Newton matrix is the Fisher matrix.
"""

import abc
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num, PRNGKeyArray, PyTree

from laplace_kit.model import check_one_output
from laplace_kit.targets.base import NoTargets, Targets
from laplace_kit.targets.outputs import Outputs


class Likelihood(abc.ABC):
    r"""What every likelihood can do, for one example.

    `hessian_sqrt_mv` maps a vector `w` shaped like the outputs to $S w$; its columns are the images
    of the unit vectors.
    """

    @abc.abstractmethod
    def negative_log_prob(self, f: Float[Array, "*event"], y: PyTree) -> Float[Array, ""]:
        r"""Return $-\log p(y \mid f)$ with its normaliser."""

    @abc.abstractmethod
    def hessian_mv(self, f, y, u: Float[Array, "*event"]) -> Float[Array, "*event"]:
        r"""Return $L u$ with $L = -\nabla_f^2 \log p(y \mid f)$."""

    @abc.abstractmethod
    def hessian_sqrt_mv(self, f, y, w: Float[Array, "*event"]) -> Float[Array, "*event"]:
        r"""Return $S w$ with $S S^\top = L$."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, f: Float[Array, "*event"]) -> PyTree:
        r"""Draw $y \sim p(y \mid f)$."""

    @abc.abstractmethod
    def check_shapes(self, outputs: tuple[int, ...], targets: PyTree) -> None:
        """Raise where outputs `(N, *event)` and targets, arrays or specs, do not go together."""

    @abc.abstractmethod
    def is_valid(self, f: Float[Array, "*event"], y: PyTree) -> Bool[Array, ""]:
        """Tell whether the target's value is one that this likelihood can give."""

    @property
    @abc.abstractmethod
    def support(self) -> str:
        """The targets that are valid, in words, for messages."""

    def renumbering(self, event: tuple[int, ...], y: PyTree) -> str:
        """Return what to do about targets that are numbered in another way, empty where unknown.

        Parameters
        ----------
        event
            The shape of one example's outputs.
        y
            All targets that are at hand, with a leading axis, some of them not valid.
        """
        return ""

    has_classes: ClassVar[bool] = False  # whether targets are labels, see `LabelTargets`

    def targets(self, outputs: Outputs) -> Targets:
        r"""Return the distribution of the targets, $\int p(y \mid f)\, p(f \mid x, D)\, df$.

        Metrics, intervals, prediction sets, conformal scores, tuning by data, recalibration and
        reports ask this distribution. A likelihood that does not override this method defines none.

        Parameters
        ----------
        outputs
            The distribution of the outputs at N inputs: a Gaussian, or that of weight draws.
        """
        return NoTargets(outputs, type(self).__name__)

    def output_gradient(self, f, y) -> Float[Array, "*event"]:
        r"""Return $g = -\nabla_f \log p(y \mid f)$."""
        return jax.grad(self.negative_log_prob)(f, y)

    def sampled_gradient(self, key: PRNGKeyArray, f, y) -> Float[Array, "*event"]:
        r"""Return $-\nabla_f \log p(\hat y \mid f)$ at $\hat y \sim p(y \mid f)$.

        Its covariance is the Fisher matrix in the outputs. Where entries of `y` are missing, it is
        zero; where the loss is weighted by the target, it has the root of the weight of `y`.
        """
        return self.output_gradient(f, self.sample(key, f))


class Factorized(Likelihood):
    r"""A likelihood of independent entries, $p(y \mid f) = \prod_i p(y_i \mid f)$.

    Each entry has outputs of its own, one or several, so that $L$ has a block for each.
    """

    @abc.abstractmethod
    def entry_shape(self, event: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the entries for outputs of shape `event`."""

    @abc.abstractmethod
    def entry_losses(self, f: Float[Array, "*event"], y) -> Float[Array, "*entries"]:
        r"""Return $-\log p(y_i \mid f)$ for every entry, zero where it is missing."""

    @abc.abstractmethod
    def valid_entries(self, f: Float[Array, "*event"], y) -> Bool[Array, "*entries"]:
        """Tell which entries have a value that this likelihood can give, or are missing."""

    @abc.abstractmethod
    def to_outputs(
        self, entries: Num[Array, "*entries"] | Bool[Array, "*entries"], f: Float[Array, "*event"]
    ) -> Array:
        """Repeat a value of every entry for the outputs that it depends on."""

    def observed(self, f: Float[Array, "*event"], y) -> Bool[Array, "*entries"]:
        """Tell which entries of the target are there: all, unless a likelihood says otherwise."""
        return jnp.ones(self.entry_shape(f.shape), bool)

    def negative_log_prob(self, f, y):
        return self.entry_losses(f, y).sum()

    def is_valid(self, f, y):
        return self.valid_entries(f, y).all()


def check_targets(likelihood: Likelihood, outputs: PyTree, targets: PyTree) -> None:
    """Raise a `ValueError` where the shapes of outputs and targets do not go together."""
    check_one_output(outputs)
    likelihood.check_shapes(tuple(outputs.shape), targets)


def check_one_array(targets: PyTree) -> None:
    """Raise a `ValueError` where targets are something other than one array."""
    if not hasattr(targets, "shape"):
        raise ValueError(
            f"Found targets of type {type(targets).__name__}, expected one array; select the array "
            "of targets, pass targets with a mask, (y, mask), to lk.Masked(likelihood), or write "
            "the loss of several as lk.FromLoss(loss)."
        )


def check_same_shape(name: str, outputs: tuple[int, ...], targets: PyTree) -> None:
    """Raise a `ValueError` where targets are not one array of the outputs' shape."""
    check_one_array(targets)
    if targets.shape != outputs:
        is_label = jnp.issubdtype(targets.dtype, jnp.integer) and targets.shape == outputs[:-1]
        remedy = "give one target for each output, or return as many outputs as there are targets"
        if is_label and outputs[-1] > 1:
            remedy = "of labels of classes take lk.Categorical()"
        elif math.prod(targets.shape) == math.prod(outputs):
            remedy = f"{reshaped(outputs)}, so that nothing is broadcast by accident"
        raise ValueError(
            f"{name}: found targets of shape {targets.shape} for outputs {outputs}, expected the "
            f"same shape; {remedy}."
        )


def reshaped(shape: tuple[int, ...]) -> str:
    """Return the words for reshaping targets, which may be an array, a Series, a tensor, a list."""
    return f"reshape the targets, np.asarray(y).reshape({shape})"
