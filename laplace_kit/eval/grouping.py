"""Groups of examples: names in order, and the number of the group of each example."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from laplace_kit.host import fetch_array

_MISSING = ("None", "nan", "NaT", "<NA>")  # as the missing values of tables are written


class Groups(NamedTuple):
    """The names of G groups in order, and the group of each example, from 0 to G - 1."""

    names: tuple[Any, ...]
    codes: Int[np.ndarray, " N"]


def as_groups(groups: Any, num: int, name: str = "groups") -> Groups:
    """Return the groups of `num` examples.

    Parameters
    ----------
    groups
        One for each example, `(num,)`: numbers, booleans or text; an array, a list, a Series.
    num
        The number of examples.
    name
        What the groups are called in messages.

    Raises
    ------
    ValueError
        If there is not one for each example, or a group is missing: NaN, None or <NA>.
    """
    values = fetch_array(groups)
    if values.shape != (num,):
        raise ValueError(
            f"Found {name} of shape {values.shape} for {num} examples, expected one for each, "
            f"({num},); several groupings are a mapping, {{'age': ..., 'site': ...}}."
        )
    if values.dtype.kind not in "biufUS":
        words = [str(value) for value in values]
        for example, word in enumerate(words):
            if word in _MISSING and not isinstance(values[example], str):
                raise _missing(name, word, example)
        values = fetch_array(words)
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise _missing(name, "NaN", int(np.isnan(values).argmax()))
    names, codes = np.unique(values, return_inverse=True)
    return Groups(tuple(names.tolist()), codes)


def _missing(name: str, what: str, example: int) -> ValueError:
    return ValueError(
        f"Found {what} among the {name}, at example {example}, expected a group for every example; "
        "give the missing ones a group of their own."
    )


def as_groupings(groups: Any, num: int) -> dict[str, Groups]:
    """Return groupings by name: those of a mapping, or one, named "group".

    A DataFrame is a mapping of its columns. Raises like `as_groups`.
    """
    if isinstance(groups, Mapping) or hasattr(type(groups), "columns"):
        found = {str(name): as_groups(groups[name], num, f"groups {name!r}") for name in groups}
        if not found:
            raise ValueError("Found no groups, expected at least one grouping.")
        return found
    return {"group": as_groups(groups, num)}


def codes_of(groups: Any, names: tuple[Any, ...], num: int) -> Int[np.ndarray, " N"]:
    """Return the numbers of known groups for new examples.

    Parameters
    ----------
    groups
        One for each example.
    names
        The known names.
    num
        The number of examples.

    Raises
    ------
    ValueError
        If a group is not among the names.
    """
    found = as_groups(groups, num)
    unknown = [name for name in found.names if name not in names]
    if unknown:
        raise ValueError(
            f"Found the group {unknown[0]!r}, expected one of {', '.join(map(repr, names))}, for "
            "which a threshold was calibrated; calibrate on examples of every group."
        )
    return fetch_array([names.index(name) for name in found.names])[found.codes]
