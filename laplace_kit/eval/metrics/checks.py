"""Validation of metric arguments: a common dtype, consistent shapes and valid values.

Shapes are always checked. Values are checked where they are concrete, not under `jax.jit`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Num, Shaped

from laplace_kit.errors import check_count
from laplace_kit.host import fetch_array
from laplace_kit.tree import is_concrete

# How far the sum of a row of probabilities may be from one: rounding to bfloat16 passes, logits do
# not.
TOLERANCE = 0.02
# Remedies for rows that are not distributions.
LOGITS = "for logits, pass jax.nn.softmax(logits)"
SOFT_LABELS = "or pass integer labels (N,)"


def as_floating(*arrays: ArrayLike) -> list[Float[Array, "..."]]:
    """Return arrays in their common dtype, float32 at least."""
    dtype = jnp.result_type(jnp.float32, *arrays)
    return [jnp.asarray(array, dtype) for array in arrays]


def require(condition: Bool[Array, ""], found: str, expected: str) -> None:
    """Raise a `ValueError` if the condition is concrete and false."""
    if is_concrete(condition) and not condition:
        raise ValueError(f"Found {found}, expected {expected}.")


def check_num_bins(num_bins: int) -> None:
    """Raise a `ValueError` unless the number of bins is a positive integer."""
    check_count("num_bins", num_bins, "bins")


def fractions(
    name: str, values: ArrayLike | Sequence[float], dtype: jnp.dtype
) -> Float[Array, "..."]:
    """Return numbers from 0 to 1, such as levels, as an array of any shape."""
    values = jnp.asarray(values, dtype)
    valid = _all_within(values, 0.0, 1.0)
    require(valid, f"{name} outside 0 to 1", "fractions; divide percentages by 100")
    return values


@jax.jit
def _all_within(
    values: Num[Array, "..."], low: Num[ArrayLike, ""], high: Num[ArrayLike, ""]
) -> Bool[Array, ""]:
    return jnp.all((values >= low) & (values <= high))


# --- classification --------------------------------------------------------------------------


def labelled(probs: ArrayLike, y: ArrayLike) -> tuple[Float[Array, "N C"], Float[Array, "N C"]]:
    """Return the probabilities and the labels as distributions over the classes."""
    (probs,) = as_floating(probs)
    given, y = y, _without_wrapping(y)
    check_label_shapes(probs, y)
    _check_distributions("probs", probs, LOGITS)
    if y.ndim == 2:
        targets = y.astype(probs.dtype)
        _check_distributions("y", targets, SOFT_LABELS)
        return probs, targets
    targets, all_in_range = _one_hot(y, probs)
    if is_concrete(all_in_range) and not all_in_range:
        first = int(np.argmax(np.isnan(fetch_array(targets)[:, 0])))
        raise label_out_of_range(given, first, probs)
    return probs, targets


def check_label_shapes(probs: Shaped[ArrayLike, "..."], y: Shaped[ArrayLike, "..."]) -> None:
    """Raise a `ValueError` unless labels `(N,)` or `(N, C)` fit probabilities `(N, C)`."""
    if probs.ndim != 2 or probs.size == 0:
        raise ValueError(
            f"Found probs of shape {probs.shape}, expected (N, C) with at least one example; for "
            "more axes, use probs.reshape(-1, C), for p(y = 1), jnp.stack([1 - p, p], axis=-1)."
        )
    if y.shape == probs.shape:
        return
    if y.shape != probs.shape[:1]:
        raise ValueError(
            f"Found y of shape {y.shape} for probs of shape {probs.shape}, expected integer labels "
            f"{probs.shape[:1]} or one-hot labels {probs.shape}; for labels (N, 1), pass y[:, 0]."
        )
    if jnp.issubdtype(y.dtype, jnp.inexact):
        raise ValueError(
            f"Found labels y of dtype {y.dtype} and shape {y.shape}, expected integers; convert "
            "them with y.astype(int), or pass soft labels as (N, C)."
        )


def label_out_of_range(
    y: Shaped[ArrayLike, " N"], first: int, probs: Shaped[ArrayLike, "N C"]
) -> ValueError:
    """Return the error for labels of which the one at `first` is no class."""
    return ValueError(
        f"Found the label {int(y[first])} at y[{first}], expected integers from 0 to "
        f"{probs.shape[1] - 1} for probs of shape {probs.shape}; drop or renumber such labels."
    )


def _without_wrapping(y: ArrayLike) -> Array:
    """Return labels as an array, clipping 64-bit integers so that they do not wrap into range."""
    if isinstance(y, np.ndarray) and y.dtype in (np.int64, np.uint64):
        y = np.clip(y, -1, np.iinfo(np.int32).max)
    return jnp.asarray(y)


@jax.jit
def _one_hot(y: Num[Array, " N"] | Bool[Array, " N"], probs: Float[Array, "N C"]):
    """Return one-hot rows like `probs`, NaN for labels out of range, and whether none is."""
    one_hot = y[:, None] == jnp.arange(probs.shape[1])
    in_range = one_hot.any(axis=1, keepdims=True)
    return jnp.where(in_range, one_hot.astype(probs.dtype), jnp.nan), in_range.all()


def distributions(probs: ArrayLike, axes: str) -> Float[Array, "*batch C"]:
    """Return probabilities with the classes on the last axis; `axes` is the expected shape."""
    (probs,) = as_floating(probs)
    if probs.ndim != axes.count(",") + 1 or probs.size == 0:
        raise ValueError(
            f"Found probs of shape {probs.shape}, expected {axes} with at least one example; add "
            "or merge axes with reshape."
        )
    rows = probs.reshape(-1, probs.shape[-1])
    _check_distributions("probs", rows, LOGITS)
    return probs


def _check_distributions(name: str, rows: Float[Array, "N C"], remedy: str) -> None:
    valid, all_valid = _are_distributions(rows)
    if is_concrete(all_valid) and not all_valid:
        first = int(np.argmin(fetch_array(valid)))
        raise not_a_distribution(name, first, fetch_array(rows[first]), remedy)


def not_a_distribution(
    name: str, first: int, row: Float[np.ndarray, " C"], remedy: str
) -> ValueError:
    """Return the error for rows of which the one at `first` is no distribution."""
    return ValueError(
        f"Found {name}[{first}] with the sum {row.sum():.4g} and the smallest entry "
        f"{row.min():.4g}, expected numbers from 0 to 1 that sum to one; {remedy}."
    )


@jax.jit
def _are_distributions(rows: Float[Array, "N C"]) -> tuple[Bool[Array, " N"], Bool[Array, ""]]:
    sums_to_one = jnp.abs(jnp.sum(rows, axis=1) - 1) <= TOLERANCE
    valid = sums_to_one & (jnp.min(rows, axis=1) >= -TOLERANCE)
    return valid, valid.all()


def binary(p: ArrayLike, y: ArrayLike) -> tuple[Float[Array, " N"], Num[Array, " N"]]:
    """Return the probabilities of class 1 and labels, as integers unless they are soft.

    Under `jax.jit`, labels out of range make their probabilities NaN.
    """
    (p,) = as_floating(p)
    y = _without_wrapping(y)
    if p.ndim != 1 or p.size == 0:
        raise ValueError(
            f"Found p of shape {p.shape}, expected the probability of class 1 for each of at least "
            "one example, (N,); for probabilities (N, 2), pass probs[:, 1]."
        )
    if y.shape != p.shape:
        raise ValueError(
            f"Found y of shape {y.shape} for p of shape {p.shape}, expected one label for each "
            "example; for labels (N, 1), pass y[:, 0]."
        )
    in_range = _all_within(p, -TOLERANCE, 1 + TOLERANCE)
    require(in_range, "p outside 0 to 1", "probabilities; for logits, pass jax.nn.sigmoid(logits)")
    is_soft = jnp.issubdtype(y.dtype, jnp.inexact)
    y = y.astype(p.dtype if is_soft else jnp.int32)
    require(
        _all_within(y, 0, 1), "labels y outside 0 to 1", "0 or 1, or True and False; renumber them"
    )
    return _unless_mislabelled(p, y), y


@jax.jit
def _unless_mislabelled(p: Float[Array, " N"], y: Num[Array, " N"]) -> Float[Array, " N"]:
    return jnp.where((y >= 0) & (y <= 1), p, jnp.nan)


# --- scores ----------------------------------------------------------------------------------


def scores(name: str, values: ArrayLike, dtype: jnp.dtype) -> Float[Array, " N"]:
    """Return validated scores, one number for each input."""
    values = jnp.asarray(values, dtype)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"Found {name} of shape {values.shape}, expected one score per input, (N,); reduce "
            "each prediction to a number first, for example to its entropy."
        )
    numbers = _all_within(values, -jnp.inf, jnp.inf)  # false for NaN
    require(numbers, f"a NaN in {name}", "numbers; drop the inputs that it comes from")
    return values


# --- regression ------------------------------------------------------------------------------


def regression(
    mean: ArrayLike, spread: ArrayLike, y: ArrayLike, spread_name: str
) -> list[Float[Array, "..."]]:
    """Return mean, spread (variance or standard deviation) and targets in a common dtype."""
    mean, spread, y = as_floating(mean, spread, y)
    check_target_shapes(mean, spread, y, spread_name)
    check_spread(spread_name, spread)
    return [mean, spread, y]


def check_target_shapes(
    mean: Num[ArrayLike, "..."],
    spread: Num[ArrayLike, "..."],
    y: Num[ArrayLike, "..."],
    spread_name: str,
) -> None:
    """Raise a `ValueError` unless mean and targets have one shape, which spread has or a scalar."""
    check_examples("mean", mean)
    if y.shape != mean.shape:
        raise ValueError(
            f"Found y of shape {y.shape} for mean of shape {mean.shape}, expected the same shape; "
            "reshape one of them, for example y.reshape(mean.shape), so that nothing is broadcast."
        )
    if spread.shape not in ((), mean.shape):
        raise ValueError(
            f"Found {spread_name} of shape {spread.shape} for mean of shape {mean.shape}, expected "
            "the same shape or a scalar; for covariances (N, C, C), pass the diagonals."
        )


def check_examples(name: str, values: Num[ArrayLike, "..."]) -> None:
    """Raise a `ValueError` for an array without examples."""
    if values.ndim == 0 or values.shape[0] == 0:
        raise ValueError(
            f"Found {name} of shape {values.shape}, expected (N,) or (N, *outputs) with at least "
            f"one example; add the leading axis with {name}[None]."
        )


def check_spread(name: str, spread: Float[Array, "..."]) -> None:
    """Raise a `ValueError` if a concrete variance or standard deviation is not positive."""
    require(_all_positive(spread), *not_positive(name))


def not_positive(name: str) -> tuple[str, str]:
    """Return what is found and expected where a variance or standard deviation is not positive."""
    return (
        f"{name} with an entry that is not positive",
        "positive numbers everywhere; add the observation noise",
    )


@jax.jit
def _all_positive(values: Float[Array, "..."]) -> Bool[Array, ""]:
    return jnp.all(values > 0)


def samples(values: ArrayLike, y: ArrayLike) -> list[Float[Array, "..."]]:
    """Return draws `(S, N, *outputs)` and targets `(N, *outputs)` in a common dtype."""
    values, y = as_floating(values, y)
    check_examples("y", y)
    if values.shape[1:] != y.shape or values.shape[0] == 0:
        raise ValueError(
            f"Found samples of shape {values.shape} for y of shape {y.shape}, expected "
            f"(S, {', '.join(map(str, y.shape))}): the draws of every target along a first axis."
        )
    return [values, y]
