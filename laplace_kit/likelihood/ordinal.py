"""The likelihood of labels in order, by a cumulative logit."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from laplace_kit import tree
from laplace_kit.host import fetch_array
from laplace_kit.likelihood.base import Factorized, check_one_array, check_same_shape
from laplace_kit.targets.classes import label_log_probs
from laplace_kit.targets.ordered import ordered, ordered_log_probs
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass(static=("num_classes",))
class Ordinal(Factorized):
    r"""Ordered classes 0 to K - 1 with one latent output each: $P(y \le k) = \sigma(c_k - f)$.

    The cumulative logit, or proportional odds, model. Cutpoints are fixed: a model that ends in a
    linear layer with a bias learns scale and location relative to them. Outputs and targets have
    the same shape. $-\log p_k = -\log [\sigma(c_k - f) - \sigma(c_{k-1} - f)]$ is convex in `f`,

    $$L = \mathrm{diag}\big(\sigma'(c_k - f) + \sigma'(c_{k-1} - f)\big),
        \qquad \sigma' = \sigma (1 - \sigma).$$

    It depends on `y`: the GGN is not the Fisher matrix.

    Parameters
    ----------
    num_classes
        K, at least two.
    cutpoints
        $c_1 < \dots < c_{K-1}$, the same as in training. By default $\log(k / (K - k))$, so that
        all classes are equally probable if the latent output is zero. A leaf.

    Raises
    ------
    ValueError
        If there are fewer than two classes, or cutpoints are not K - 1 finite, increasing numbers.

    References
    ----------
    McCullagh (1980), Regression models for ordinal data.
    """

    num_classes: int
    cutpoints: Float[ArrayLike, " L"] | None = None

    def __post_init__(self):
        if self.num_classes < 2 or self.num_classes != int(self.num_classes):
            raise ValueError(
                f"Found num_classes={self.num_classes}, expected a whole number of at least two "
                "ordered classes."
            )
        if self.cutpoints is None or not tree.is_concrete(self.cutpoints):
            return
        found = fetch_array(self.cutpoints)
        is_right = found.shape == (self.num_classes - 1,) and np.isfinite(found).all()
        if not (is_right and np.all(np.diff(found) > 0)):
            raise ValueError(
                f"Found cutpoints={found}, expected {self.num_classes - 1} finite, increasing "
                f"numbers, one between each pair of neighbours of the {self.num_classes} classes."
            )

    def entry_shape(self, event):
        return event

    def entry_losses(self, f, y):
        log_probs = ordered_log_probs(self._cutpoints(f), f)
        return -label_log_probs(log_probs, log_probs, jnp.asarray(y))

    def valid_entries(self, f, y):
        return (y >= 0) & (y < self.num_classes)

    def to_outputs(self, entries, f):
        return entries

    def hessian_mv(self, f, y, u):
        return self._hessian(f, y) * u

    def hessian_sqrt_mv(self, f, y, w):
        return jnp.sqrt(self._hessian(f, y)) * w

    def sample(self, key, f):
        return jax.random.categorical(key, ordered_log_probs(self._cutpoints(f), f))

    def check_shapes(self, outputs, targets):
        check_one_array(targets)
        check_same_shape("Ordinal", outputs, targets)
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ValueError(
                f"Ordinal: found labels of dtype {targets.dtype}, expected integers from 0 to "
                f"{self.num_classes - 1}; convert them with np.asarray(y).astype(int)."
            )

    has_classes = True

    def targets(self, outputs):
        return ordered(outputs, self._cutpoints(outputs.mean))

    @property
    def support(self):
        return f"integer labels from 0 to {self.num_classes - 1}"

    def renumbering(self, event, y):
        found = (int(jnp.min(y)), int(jnp.max(y))) if y.size else ()
        if found != (1, self.num_classes):
            return ""
        return f"they go from 1 to {self.num_classes}: where labels start at 1, use y - 1"

    def _cutpoints(self, f) -> Float[Array, " L"]:
        if self.cutpoints is not None:
            return jnp.asarray(self.cutpoints, f.dtype)
        k = np.arange(1, self.num_classes)
        return jnp.asarray(np.log(k / (self.num_classes - k)), f.dtype)

    def _hessian(self, f, y) -> Float[Array, "*event"]:
        cutpoints = self._cutpoints(f)
        slopes = jax.nn.sigmoid(cutpoints - f[..., None]) * jax.nn.sigmoid(f[..., None] - cutpoints)
        ends = jnp.pad(slopes, [(0, 0)] * f.ndim + [(1, 1)])  # the outermost are zero
        sums = ends[..., 1:] + ends[..., :-1]
        labels = jnp.clip(jnp.asarray(y).astype(jnp.int32), 0, self.num_classes - 1)
        return jnp.take_along_axis(sums, labels[..., None], axis=-1)[..., 0]
