"""Names of classes, features and targets: as given, or those of a DataFrame and a Series."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxtyping import PyTree

_LONGEST = 80


@dataclass(frozen=True)
class Names:
    """The names that a report shows; empty where there are none.

    Parameters
    ----------
    classes
        One name for each class.
    features
        One name for each column of the inputs.
    targets
        One name for each output of a regression, or a single one.
    unit
        The unit of the targets.
    """

    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    unit: str = ""

    def of_class(self, index: int) -> str:
        """Return the name of a class, its number if it has none."""
        return self.classes[index] if self.classes else str(index)

    def of_target(self, index: int = 0, default: str = "") -> str:
        """Return the name of an output, with its unit, or a default name with the unit."""
        name = self.targets[index] if index < len(self.targets) else default
        return f"{name} ({self.unit})" if self.unit else name

    def or_else(self, other: "Names") -> "Names":
        """Return these names, and those of `other` where there are none."""
        return Names(
            self.classes or other.classes,
            self.features or other.features,
            self.targets or other.targets,
            self.unit or other.unit,
        )

    def known(self) -> dict[str, list[str] | str]:
        """Return the names that there are, as plain lists and texts, for `metrics.json`."""
        found = {kind: value for kind, value in vars(self).items() if value}
        return {kind: value if kind == "unit" else [*value] for kind, value in found.items()}


NO_NAMES = Names()


def named(
    class_names: Sequence[Any] | None = None,
    feature_names: Sequence[Any] | None = None,
    target_name: str | Sequence[Any] | None = None,
    target_unit: str | None = None,
) -> Names:
    """Return the names that were given, as one object.

    Raises
    ------
    TypeError, ValueError
        If names are a single text, empty, too long or not unique.
    """
    if isinstance(target_name, str):
        target_name = [target_name]
    return Names(
        _texts("class_names", class_names),
        _texts("feature_names", feature_names),
        _texts("target_name", target_name),
        "" if target_unit is None else _text("target_unit", target_unit),
    )


def names_of(x: PyTree, y: PyTree) -> Names:
    """Return the names that inputs and targets carry, such as a DataFrame and a Series.

    Columns name features, or the outputs of a regression; the name of a Series the target; and the
    categories of a categorical Series the classes. Names that are numbers are not taken: NumPy and
    pandas count columns that nobody has named.
    """
    categories = categories_of(y)
    targets = _columns(y) or [getattr(y, "name", None)]
    return Names(
        classes=() if categories is None else tuple(map(_plain, categories)),
        features=_all_texts(_columns(x)),
        targets=_all_texts(targets),
    )


def with_codes(x: PyTree, y: PyTree) -> tuple[PyTree, PyTree]:
    """Return inputs and targets as arrays: a DataFrame's values, and the numbers of categories."""
    return (x.to_numpy() if _columns(x) else x), codes_of(y)


def categories_of(y: Any) -> list[Any] | None:
    """Return the categories of a categorical Series or array, `None` for all other targets."""
    if str(getattr(y, "dtype", "")) != "category":
        return None
    return [*(y.cat if hasattr(y, "cat") else y).categories]


def codes_of(y: Any) -> Any:
    """Return categorical targets as the numbers of their categories, and all others as they are.

    Raises
    ------
    ValueError
        If a target is missing.
    """
    if categories_of(y) is None:
        return y
    codes = (y.cat.codes if hasattr(y, "cat") else y.codes).astype("int32")
    if num := int((codes < 0).sum()):
        raise ValueError(
            f"Found {num} missing labels among the categories, expected a label for each example; "
            "drop those examples."
        )
    return getattr(codes, "values", codes)


def check_fit(
    names: Names,
    *,
    num_classes: int | None = None,
    num_outputs: int | None = None,
    x: PyTree = None,
) -> None:
    """Raise a `ValueError` for a number of names that is not that of what they name.

    Parameters
    ----------
    names
        The names.
    num_classes, num_outputs
        The number of classes, or that of outputs of a regression; `None` for the other task.
    x
        The inputs, if known: an array `(N, D)` has D features.
    """
    if names.classes and num_classes is None:
        _refuse("class_names", names.classes, "none for a regression", "leave them out")
    if names.classes and len(names.classes) != num_classes:
        _refuse("class_names", names.classes, f"{num_classes}, one for each class")
    if names.unit and num_outputs is None:
        _refuse("target_unit", (names.unit,), "none for classes", "leave it out")
    if len(names.targets) > 1 and len(names.targets) != (num_outputs or 1):
        _refuse("target_name", names.targets, f"{num_outputs or 1}, one for each output")
    shape = getattr(x, "shape", None)
    if not names.features or x is None:
        return
    if shape is None or len(shape) > 2:
        found = "a pytree" if shape is None else f"an array of shape {tuple(shape)}"
        _refuse("feature_names", names.features, f"none for {found}", "leave them out")
    if len(names.features) != (num := shape[1] if len(shape) == 2 else 1):
        _refuse("feature_names", names.features, f"{num}, one for each column of the inputs")


def _columns(values: Any) -> list[Any]:
    """Return the columns of a DataFrame; none for anything else."""
    return [*values.columns] if hasattr(type(values), "columns") else []


def _all_texts(values: Sequence[Any]) -> tuple[str, ...]:
    """Return names, if all of them are texts or tuples of texts, as of a DataFrame's levels."""
    if not all(isinstance(value, str | tuple) and value for value in values):
        return ()
    found = tuple(map(_plain, values))
    return found if len({*found}) == len(found) else ()


def _plain(value: Any) -> str:
    """Return a name on one line, not too long."""
    parts = map(str, value) if isinstance(value, tuple) else (str(value),)
    name = " ".join(" ".join(parts).split())
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _texts(argument: str, values: Sequence[Any] | None) -> tuple[str, ...]:
    if values is None:
        return ()
    if isinstance(values, str | bytes):
        raise TypeError(
            f"Found {argument}={values!r}, one text, expected a sequence of names; pass a list."
        )
    found = tuple(_text(argument, value) for value in values)
    twice = [name for name, number in Counter(found).items() if number > 1]
    if twice:
        raise ValueError(
            f"Found {argument} with {twice[0]!r} more than once, expected unique names; rename one."
        )
    return found


def _text(argument: str, value: Any) -> str:
    name = _plain(value)
    if not name:
        raise ValueError(f"Found an empty text in {argument}, expected a name; pass one for each.")
    return name


def _refuse(
    argument: str, found: Sequence[str], expected: str, remedy: str = "pass as many"
) -> NoReturn:
    shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    raise ValueError(f"Found {len(found)} of {argument} ({shown}), expected {expected}; {remedy}.")
