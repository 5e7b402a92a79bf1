r"""Abstract base classes of likelihoods, and of likelihoods that factorise over target entries.

A likelihood is a frozen pytree whose methods take *one* example: outputs `f` of shape `(*event,)`
and a target `y`; callers `jax.vmap` over examples. With $\ell = -\log p(y \mid f)$, a likelihood
provides products with the Hessian $L = \nabla_f^2 \ell$ and with an exact square root,
$L = S S^\top$, both in closed form. For an exponential family in its natural parameters, $L$ does
not depend on $y$, and the generalised Gauss-Newton matrix is the Fisher matrix.
"""

import abc
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, PyTree

from laplace_kit.model.checks import check_one_output
from laplace_kit.targets.base import NoTargets, Targets
from laplace_kit.targets.outputs import Outputs

# The number of unit vectors in the outputs that are multiplied with a Hessian at a time.
UNITS_AT_A_TIME = 8


class Likelihood(abc.ABC):
    r"""The interface of a likelihood, for one example.

    `hessian_sqrt_mv` maps a vector `w` of the shape of the outputs to $S w$; the columns of $S$ are
    the images of the unit vectors.
    """

    @abc.abstractmethod
    def negative_log_prob(self, f: Float[Array, "*event"], y: PyTree) -> Float[Array, ""]:
        r"""Return $-\log p(y \mid f)$, normalised over $y$."""

    @abc.abstractmethod
    def hessian_mv(self, f, y, u: Float[Array, "*event"]) -> Float[Array, "*event"]:
        r"""Return $L u$ with $L = -\nabla_f^2 \log p(y \mid f)$."""

    @abc.abstractmethod
    def hessian_sqrt_mv(self, f, y, w: Float[Array, "*event"]) -> Float[Array, "*event"]:
        r"""Return $S w$ with $S S^\top = L$."""

    def hessian_diagonal(self, f: Float[Array, "*event"], y) -> Float[Array, "*event"]:
        """Return the diagonal of $L$; unless overridden by products with a few units at a time."""

        def entry(index: Int[Array, ""]) -> Float[Array, ""]:
            unit = jax.nn.one_hot(index, f.size, dtype=f.dtype).reshape(f.shape)
            return self.hessian_mv(f, y, unit).reshape(-1)[index]

        size = min(f.size, UNITS_AT_A_TIME)
        return jax.lax.map(entry, jnp.arange(f.size), batch_size=size).reshape(f.shape)

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, f: Float[Array, "*event"]) -> PyTree:
        r"""Draw $y \sim p(y \mid f)$."""

    @abc.abstractmethod
    def check_shapes(self, outputs: tuple[int, ...], targets: PyTree) -> None:
        """Raise a `ValueError` if outputs `(N, *event)` do not fit targets, arrays or specs."""

    @abc.abstractmethod
    def is_valid(self, f: Float[Array, "*event"], y: PyTree) -> Bool[Array, ""]:
        """Return whether the target is in the support of this likelihood."""

    @property
    @abc.abstractmethod
    def support(self) -> str:
        """A description of valid targets, for messages."""

    def renumbering(self, event: tuple[int, ...], y: PyTree) -> str:
        """Return a remedy for targets with another numbering, such as labels from 1, else "".

        Parameters
        ----------
        event
            The shape of the outputs of one example.
        y
            Targets with a leading axis, some of them not valid.
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
        r"""Return $-\nabla_f \log p(\hat y \mid f)$ at a draw $\hat y \sim p(y \mid f)$.

        Its covariance is the Fisher matrix in the outputs. It is zero at missing entries of `y`,
        and is multiplied by the square root of the weight of `y` if the loss weights targets.
        """
        return self.output_gradient(f, self.sample(key, f))


class Factorized(Likelihood):
    r"""A likelihood that factorises over target entries, $p(y \mid f) = \prod_i p(y_i \mid f)$.

    Each entry depends on its own outputs, one or several, so that $L$ is block-diagonal.
    """

    @abc.abstractmethod
    def entry_shape(self, event: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the target entries for outputs of shape `event`."""

    @abc.abstractmethod
    def entry_losses(self, f: Float[Array, "*event"], y) -> Float[Array, "*entries"]:
        r"""Return $-\log p(y_i \mid f)$ for every entry, zero where it is missing."""

    @abc.abstractmethod
    def valid_entries(self, f: Float[Array, "*event"], y) -> Bool[Array, "*entries"]:
        """Return whether each entry is in the support of this likelihood, or missing."""

    @abc.abstractmethod
    def to_outputs(
        self, entries: Num[Array, "*entries"] | Bool[Array, "*entries"], f: Float[Array, "*event"]
    ) -> Array:
        """Broadcast one value per entry to the outputs that the entry depends on."""

    def observed(self, f: Float[Array, "*event"], y) -> Bool[Array, "*entries"]:
        """Return whether each entry of the target is observed; all are, unless overridden."""
        return jnp.ones(self.entry_shape(f.shape), bool)

    def negative_log_prob(self, f, y):
        return self.entry_losses(f, y).sum()

    def hessian_diagonal(self, f, y):
        if self.entry_shape(f.shape) != f.shape:
            return super().hessian_diagonal(f, y)
        return self.hessian_mv(f, y, jnp.ones_like(f))  # each output is an entry of its own

    def is_valid(self, f, y):
        return self.valid_entries(f, y).all()


def check_targets(likelihood: Likelihood, outputs: PyTree, targets: PyTree) -> None:
    """Raise a `ValueError` if the shapes of outputs and targets are inconsistent."""
    check_one_output(outputs)
    likelihood.check_shapes(tuple(outputs.shape), targets)


def check_one_array(targets: PyTree) -> None:
    """Raise a `ValueError` if targets are not one array."""
    if not hasattr(targets, "shape"):
        raise ValueError(
            f"Found targets of type {type(targets).__name__}, expected one array; select the array "
            "of targets, pass targets with a mask, (y, mask), to lk.Masked(likelihood), or write "
            "the loss of several as lk.FromLoss(loss)."
        )


def check_same_shape(name: str, outputs: tuple[int, ...], targets: PyTree) -> None:
    """Raise a `ValueError` if targets are not one array of the shape of the outputs."""
    check_one_array(targets)
    if targets.shape != outputs:
        is_label = jnp.issubdtype(targets.dtype, jnp.integer) and targets.shape == outputs[:-1]
        remedy = "give one target for each output, or return as many outputs as there are targets"
        if is_label and outputs[-1] > 1:
            remedy = "for class labels use lk.Categorical()"
        elif math.prod(targets.shape) == math.prod(outputs):
            remedy = f"{reshaped(outputs)}, so that nothing is broadcast by accident"
        raise ValueError(
            f"{name}: found targets of shape {targets.shape} for outputs {outputs}, expected the "
            f"same shape; {remedy}."
        )


def reshaped(shape: tuple[int, ...]) -> str:
    """Return the remedy to reshape targets, for an array, Series, tensor or list."""
    return f"reshape the targets, np.asarray(y).reshape({shape})"
