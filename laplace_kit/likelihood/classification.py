"""Likelihoods of class labels: categorical and binary."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from laplace_kit.arrays import as_array
from laplace_kit.host import fetch_array
from laplace_kit.likelihood.base import Factorized, check_one_array, check_same_shape, reshaped
from laplace_kit.targets.binary import binary
from laplace_kit.targets.classes import classes
from laplace_kit.tree import pytree_dataclass


@pytree_dataclass(static=("label_smoothing", "ignore_index"))
class Categorical(Factorized):
    r"""Classification with logits `f` `(..., C)`, $p = \mathrm{softmax}(f)$.

    $-\log p(y \mid f) = -\sum_c w_c t_c \log p_c$ for the target $t$ and class weights $w$, one
    by default. Its Hessian is $L = s\, (\mathrm{diag}(p) - p p^\top)$ with the label's weight
    $s = \sum_c w_c t_c$; the root is $S = \sqrt s\, (\mathrm{diag}(\sqrt p) - p \sqrt p^\top)$.

    Targets are integer labels `(...)`, or one-hot or soft labels `(..., C)` that sum to one. Axes
    before the classes are positions with a label each: tokens `(N, T, C)`, pixels `(N, H, W, C)`.

    Parameters
    ----------
    class_weights
        $w$ `(C,)`, finite and at least zero: each label's loss and curvature are multiplied by the
        weight of its class, as in torch's cross-entropy with `reduction="sum"`. `None` for weights
        of one. Predictions and metrics do not use them.
    label_smoothing
        $a$ in [0, 1): the target of the loss is $(1 - a) t + a / C$, that of metrics $t$.
    ignore_index
        The label that marks positions without a label, such as padding; often -100 or -1. They add
        nothing to the loss, its curvature or the metrics.

    Raises
    ------
    ValueError
        If `label_smoothing` is not in [0, 1), `ignore_index` is no integer, or class weights are
        negative, not finite, all zero or not one for each of at least two classes.

    References
    ----------
    Szegedy et al. (2016), Rethinking the Inception architecture for computer vision.
    """

    class_weights: ArrayLike | Sequence[float] | None = None
    label_smoothing: float = 0.0
    ignore_index: int | None = None

    has_classes = True

    def __post_init__(self):
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", _read_class_weights(self.class_weights))
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"Found label_smoothing={self.label_smoothing}, expected a number from 0 to less "
                "than 1: the share of the target that is spread evenly over the classes."
            )
        if self.ignore_index is not None and self.ignore_index != int(self.ignore_index):
            raise ValueError(
                f"Found ignore_index={self.ignore_index}, expected an integer such as -100, or "
                "None if every label counts."
            )

    def entry_shape(self, event):
        return event[:-1]

    def entry_losses(self, f, y):
        log_p = jax.nn.log_softmax(f)
        if self.class_weights is not None:
            log_p = self.class_weights.astype(f.dtype) * log_p
        return jnp.where(self.observed(f, y), -self._expected(f, y, log_p), 0)

    def valid_entries(self, f, y):
        if jnp.shape(y) == f.shape:
            return (y >= 0).all(axis=-1) & _sum_to_one(y)
        labels = _widened(y)
        return ((labels >= 0) & (labels < f.shape[-1])) | ~self.observed(f, y)

    def observed(self, f, y):
        if self.ignore_index is None or jnp.shape(y) == f.shape:
            return jnp.ones(f.shape[:-1], bool)
        return y != self.ignore_index

    def to_outputs(self, entries, f):
        return jnp.broadcast_to(entries[..., None], f.shape)

    def hessian_mv(self, f, y, u):
        p = jax.nn.softmax(f)
        product = p * u - p * jnp.sum(p * u, axis=-1, keepdims=True)
        return self._weigh_labels(f, y, product)

    def hessian_sqrt_mv(self, f, y, w):
        root = jnp.exp(0.5 * jax.nn.log_softmax(f))
        product = root * w - root**2 * jnp.sum(root * w, axis=-1, keepdims=True)
        return self._weigh_labels(f, y, product, root=True)

    def hessian_diagonal(self, f, y):
        p = jax.nn.softmax(f)
        return self._weigh_labels(f, y, p * (1 - p))

    def sample(self, key, f):
        return jax.random.categorical(key, f)

    def sampled_gradient(self, key, f, y):
        # As in L, a drawn label is not smoothed, and has the weight of the observed one.
        drawn = jax.nn.one_hot(self.sample(key, f), f.shape[-1], dtype=f.dtype)
        return self._weigh_labels(f, y, jax.nn.softmax(f) - drawn, root=True)

    def check_shapes(self, outputs, targets):
        check_one_array(targets)
        if len(outputs) < 2 or outputs[-1] < 2:
            raise ValueError(
                f"Categorical: found outputs of shape {outputs}, expected (N, C) with a class axis "
                "of at least two at the end; for one logit per label use lk.Bernoulli()."
            )
        if self.class_weights is not None and len(self.class_weights) != outputs[-1]:
            raise ValueError(
                f"Categorical: found {len(self.class_weights)} class weights for outputs "
                f"{outputs}, expected one for each of the {outputs[-1]} classes, in the order of "
                "the labels."
            )
        if targets.shape == outputs:
            return
        if targets.shape != outputs[:-1]:
            fits = math.prod(targets.shape) == math.prod(outputs[:-1])
            remedy = reshaped(outputs[:-1]) if fits else "give a label for each row of logits"
            raise ValueError(
                f"Categorical: found targets of shape {targets.shape} for outputs {outputs}, "
                f"expected integer labels {outputs[:-1]} or one-hot or soft labels {outputs}; "
                f"{remedy}."
            )
        if not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ValueError(
                f"Categorical: found labels of dtype {targets.dtype}, expected integers from 0 to "
                f"{outputs[-1] - 1}; convert them with np.asarray(y).astype(int)."
            )
        limits = jnp.iinfo(targets.dtype)
        if self.ignore_index is not None and not limits.min <= self.ignore_index <= limits.max:
            raise ValueError(
                f"Categorical: found labels of dtype {targets.dtype}, which cannot hold "
                f"ignore_index={self.ignore_index}; convert them with np.asarray(y).astype(int), "
                "or pass the value that marks positions without a label."
            )

    def targets(self, outputs):
        return classes(outputs)

    @property
    def support(self):
        words = "integer labels from 0 to C - 1, or rows of C probabilities that sum to one"
        if self.ignore_index is None:
            return words
        return f"{words}; ignore_index={self.ignore_index} where there is no label"

    def renumbering(self, event, y):
        if not jnp.issubdtype(y.dtype, jnp.integer):
            return ""
        labels = _widened(y)
        labels = labels if self.ignore_index is None else labels[labels != self.ignore_index]
        found = (int(labels.min()), int(labels.max())) if labels.size else ()
        return _from_one(event[-1]) if found == (1, event[-1]) else ""

    def _expected(self, f, y, values: Float[Array, "... C"]) -> Float[Array, "..."]:
        """Return the mean of one value per class under the targets, smoothed if that is set."""
        if jnp.shape(y) == f.shape:
            mean = jnp.sum(y * values, axis=-1)
        else:
            labels = jnp.where(self.observed(f, y), _widened(y), 0)
            mean = jnp.take_along_axis(values, labels[..., None], axis=-1)[..., 0]
        if self.label_smoothing:
            mean = (1 - self.label_smoothing) * mean + self.label_smoothing * values.mean(axis=-1)
        return mean

    def _weigh_labels(self, f, y, values: Array, *, root: bool = False) -> Array:
        """Multiply by the weight of each label, or its root; zero where there is no label."""
        if self.class_weights is not None:
            weights = jnp.broadcast_to(self.class_weights.astype(f.dtype), f.shape)
            weights = self._expected(f, y, weights)[..., None]
            values = values * (jnp.sqrt(weights) if root else weights)
        if self.ignore_index is None:
            return values
        return jnp.where(self.to_outputs(self.observed(f, y), f), values, 0)


def _read_class_weights(values: ArrayLike | Sequence[float]) -> Float[Array, " C"]:
    weights = as_array(values, "class weights")
    expected = "one finite number of at least zero for each class, some of them positive"
    if weights.ndim != 1 or len(weights) < 2:
        raise ValueError(
            f"Found class_weights of shape {weights.shape}, expected {expected}: shape (C,); for a "
            "weight of each example pass lk.fit(..., weights=w)."
        )
    if not isinstance(weights, jax.core.Tracer):
        known = fetch_array(weights)
        if not (np.isfinite(known) & (known >= 0)).all() or not known.any():
            raise ValueError(f"Found class_weights={known.tolist()}, expected {expected}.")
    return weights


def _widened(labels: Array) -> Array:
    """Return labels in an integer dtype of at least 32 bits; uint8 holds no more than 255."""
    labels = jnp.asarray(labels)
    return labels if labels.dtype.itemsize >= 4 else labels.astype(jnp.int32)


def _sum_to_one(probs: Array) -> Array:
    """Return whether each row sums to one, up to rounding in its dtype."""
    is_rounded = jnp.issubdtype(probs.dtype, jnp.inexact)
    rounding = float(jnp.finfo(probs.dtype).eps) if is_rounded else 0.0
    total = jnp.sum(probs, axis=-1, dtype=jnp.promote_types(probs.dtype, jnp.float32))
    return jnp.abs(total - 1) < 1e-3 + rounding


def _from_one(num_classes: int) -> str:
    return f"they go from 1 to {num_classes}: where labels start at 1, use y - 1"


@pytree_dataclass()
class Bernoulli(Factorized):
    r"""Binary labels in [0, 1], one logit each: $p = \sigma(f)$, $L = \mathrm{diag}(p (1 - p))$.

    Several outputs are several binary labels: multi-label classification.
    """

    has_classes = True

    def entry_shape(self, event):
        return event

    def entry_losses(self, f, y):
        return jax.nn.softplus(f) - y * f

    def valid_entries(self, f, y):
        return (y >= 0) & (y <= 1)

    def to_outputs(self, entries, f):
        return entries

    def hessian_mv(self, f, y, u):
        return jax.nn.sigmoid(f) * jax.nn.sigmoid(-f) * u

    def hessian_sqrt_mv(self, f, y, w):
        return jnp.exp(-0.5 * (jax.nn.softplus(f) + jax.nn.softplus(-f))) * w

    def sample(self, key, f):
        return jax.random.bernoulli(key, jax.nn.sigmoid(f)).astype(f.dtype)

    def check_shapes(self, outputs, targets):
        check_same_shape("Bernoulli", outputs, targets)

    def renumbering(self, event, y):
        found = {float(value) for value in np.unique(fetch_array(y))}
        if found == {1.0, 2.0}:
            return _from_one(2)
        return "they are -1 and 1: use (y + 1) / 2" if found == {-1.0, 1.0} else ""

    def targets(self, outputs):
        return binary(outputs)

    @property
    def support(self):
        return "0 or 1, or probabilities in between"
