"""A likelihood for targets with missing entries."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from laplace_kit.likelihood.base import Factorized, Likelihood
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass()
class Masked(Factorized):
    r"""A likelihood of the observed entries, according to a mask: $\prod_{i: m_i = 1} p(y_i | f)$.

    Targets are pairs `(y, mask)`; the mask is one where an entry is observed and zero where it is
    missing: padded tokens, unlabelled pixels, missing outputs of a multi-output regression. Missing
    entries add nothing to the loss, its normaliser, its gradient, $L$, its root or the metrics.

    The mask broadcasts to the shape of the entries: that of the targets, or for `Categorical` that
    of labels, `(N, ...)` without the class axis. It has the same number of axes, each of the same
    length or of length one: a mask `(N, 1)` masks whole examples. Missing entries may have any
    value, NaN included.

    Parameters
    ----------
    likelihood
        One with independent entries: `Gaussian`, `HeteroscedasticGaussian`, `StudentT`,
        `Categorical`, `Bernoulli`, `Ordinal`, `Poisson`, `NegativeBinomial`, or a `Factorized`
        likelihood of your own.

    Raises
    ------
    TypeError
        If the likelihood does not factorise over entries, such as `FromLoss` and
        `MultivariateGaussian`.
    """

    likelihood: Likelihood

    def __post_init__(self):
        found = self.likelihood
        if not isinstance(found, Factorized) or isinstance(found, Masked):
            raise TypeError(
                f"Found a likelihood of type {type(found).__name__} to mask, expected one with "
                "independent entries: lk.Gaussian, lk.HeteroscedasticGaussian, lk.StudentT, "
                "lk.Categorical, lk.Bernoulli, lk.Ordinal, lk.Poisson, lk.NegativeBinomial or a "
                "subclass of lk.likelihood.Factorized; a loss of your own, lk.FromLoss(loss), may "
                "take (y, mask) as its targets."
            )

    def entry_shape(self, event):
        return self.likelihood.entry_shape(event)

    def entry_losses(self, f, y):
        observed, f, values = self._filled(f, y)
        return jnp.where(observed, self.likelihood.entry_losses(f, values), 0)

    def valid_entries(self, f, y):
        values, mask = y
        valid = self.likelihood.valid_entries(f, values)
        return (valid & (mask == 1)) | (mask == 0)

    def observed(self, f, y):
        values, mask = y
        return self.likelihood.observed(f, values) & (mask != 0)

    def to_outputs(self, entries, f):
        return self.likelihood.to_outputs(entries, f)

    def hessian_mv(self, f, y, u):
        observed, f, values = self._filled(f, y)
        product = self.likelihood.hessian_mv(f, values, u)
        return jnp.where(self.to_outputs(observed, f), product, 0)

    def hessian_sqrt_mv(self, f, y, w):
        observed, f, values = self._filled(f, y)
        product = self.likelihood.hessian_sqrt_mv(f, values, w)
        return jnp.where(self.to_outputs(observed, f), product, 0)

    def hessian_diagonal(self, f, y):
        observed, f, values = self._filled(f, y)
        diagonal = self.likelihood.hessian_diagonal(f, values)
        return jnp.where(self.to_outputs(observed, f), diagonal, 0)

    def sample(self, key, f):
        """Draw a target without missing entries."""
        return self.likelihood.sample(key, f), jnp.ones(self.entry_shape(f.shape), bool)

    def sampled_gradient(self, key, f, y):
        observed, f, values = self._filled(f, y)
        gradient = self.likelihood.sampled_gradient(key, f, values)
        return jnp.where(self.to_outputs(observed, f), gradient, 0)

    def check_shapes(self, outputs, targets):
        is_pair = isinstance(targets, tuple | list) and len(targets) == 2
        if not is_pair or not all(hasattr(part, "shape") for part in targets):
            raise ValueError(
                f"Masked: found targets of type {type(targets).__name__}, expected a pair of "
                "arrays (y, mask), the mask one where y was observed; pass (x, (y, mask)) as data."
            )
        values, mask = targets
        self.likelihood.check_shapes(outputs, values)
        expected = (*outputs[:1], *self.entry_shape(outputs[1:]))
        if (
            len(mask.shape) != len(expected)
            or mask.shape[:1] != expected[:1]
            or any(n not in (1, full) for n, full in zip(mask.shape, expected, strict=True))
        ):
            raise ValueError(
                f"Masked: found a mask of shape {mask.shape} for targets of shape {values.shape}, "
                f"expected one that broadcasts to {expected}, with as many axes; reshape the mask, "
                "for example mask[:, None] for whole examples."
            )

    def renumbering(self, event, y):
        values, mask = y
        entries = (len(mask), *self.entry_shape(event))
        seen = jnp.broadcast_to(mask != 0, entries)
        return self.likelihood.renumbering(event, values[seen])

    @property
    def has_classes(self) -> bool:
        """Whether targets are class labels."""
        return self.likelihood.has_classes

    def targets(self, outputs):
        return self.likelihood.targets(outputs)

    @property
    def support(self):
        return f"{self.likelihood.support}, and a mask of zeros and ones"

    def _filled(self, f, y) -> tuple[Bool[Array, "*entries"], Float[Array, "*event"], Array]:
        """Return the observed entries, and outputs and targets with zeros in missing ones.

        Zeros are needed, as masking a derivative by a factor of zero fails if it is not finite.
        """
        observed = self.observed(f, y)
        is_output, values = self.to_outputs(observed, f), y[0]
        is_target = is_output if values.shape == f.shape else observed
        return observed, jnp.where(is_output, f, 0), jnp.where(is_target, values, 0)


def has_mask(likelihood: Likelihood) -> bool:
    """Return whether the targets of the likelihood are pairs `(y, mask)`."""
    return isinstance(likelihood, Masked)


def targets_seen(likelihood: Likelihood, f: Float[Array, "*event"], y: PyTree) -> PyTree:
    """Return the target of one example without its mask, and with zeros in missing entries."""
    return likelihood._filled(f, y)[2] if has_mask(likelihood) else y


def without_mask(likelihood: Likelihood) -> Likelihood:
    """Return the likelihood under a mask, or the likelihood itself."""
    return likelihood.likelihood if has_mask(likelihood) else likelihood


def with_mask_of(likelihood: Likelihood, kind: Likelihood) -> Likelihood:
    """Return the likelihood `kind` under a mask if `likelihood` has one."""
    return Masked(kind) if has_mask(likelihood) else kind


def targets_without_mask(likelihood: Likelihood, y: PyTree) -> PyTree:
    """Return the targets, without their mask if they have one."""
    return y[0] if has_mask(likelihood) else y
