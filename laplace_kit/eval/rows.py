"""The rows of a predictive: its arrays that have the inputs on their first axis."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, PyTree

from laplace_kit import tree
from laplace_kit.eval.outputs import Predictive, with_joint_covariance
from laplace_kit.host import fetch, is_scattered
from laplace_kit.targets.outputs import Outputs

_MOST_COPIED = 1 << 24  # bytes


def first_rows(predictive: Predictive, num: int) -> Predictive:
    """Return the predictive of the first `num` inputs."""
    return predictive if num == len(predictive.f_mean) else rows_of(predictive, slice(num))


def rows_of(predictive: Predictive, rows: slice | np.ndarray) -> Predictive:
    """Return the predictive of some of its inputs."""
    joint = predictive.joint_cov
    rest = by_row(lambda part: _cut(part, (rows,)), [predictive])
    if joint is None:
        return rest
    return with_joint_covariance(rest, _cut(_cut(joint, (rows,)), np.s_[:, :, rows]))


def _cut(part: Array | np.ndarray, places: tuple) -> Array | np.ndarray:
    """Return part of an array, cut on the host unless it is traced.

    On the device each number of rows would need its own program, which costs less than a copy of
    many bytes. What lay on several devices lies on one after the copy.
    """
    if isinstance(part, np.ndarray) or not tree.is_concrete(part):
        return part[places]
    if part.nbytes > _MOST_COPIED and not is_scattered(part):
        return part[places]
    is_on_one = len(part.sharding.device_set) == 1
    return jax.device_put(fetch(part)[places], part.sharding if is_on_one else None)


def filled_rows(predictive: Predictive, num: int) -> Predictive:
    """Return the predictive with copies of its last input up to `num` inputs."""
    rows = np.minimum(np.arange(num), len(predictive.f_mean) - 1)
    return by_row(lambda part: _cut(part, (rows,)), [predictive])


def by_row(fn: Callable, predictives: Sequence[Predictive]) -> Predictive:
    """Return a predictive of what a function makes of each array that has rows.

    Parameters
    ----------
    fn
        From the arrays of all predictives to one array.
    predictives
        Predictives under one likelihood; what is shared by all inputs is taken from the first.
    """
    targets = [one.targets for one in predictives]
    names = [f.name for f in dataclasses.fields(targets[0]) if f.name not in targets[0].shared]
    fields = [{name: _rows_of(getattr(one, name)) for name in names} for one in targets]

    def map_array(*leaves):
        return fn(*leaves) if np.ndim(leaves[0]) else leaves[0]

    changed = tree.replace(targets[0], **jax.tree.map(map_array, *fields))
    return tree.replace(predictives[0], targets=changed)


def _rows_of(field: PyTree) -> PyTree:
    """Leave out the covariance between inputs, which has them on two axes."""
    return tree.replace(field, joint_cov=None) if isinstance(field, Outputs) else field
