"""Archives of predictions: the valid array names and their meaning."""

import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from laplace_kit.eval.report.contents import Contents, refused

NAMES = ("class_names", "feature_names", "target_name", "target_unit")
SHARED = ("y", "x", "weights", *NAMES)  # fields shared by all predictors
# What distributions that are not normal imply for the targets, as in `Distributions`.
DISTRIBUTIONS = ("log_prob", "cdf", "cdf_below", "low", "high", "content", "crps")
REGRESSION = ("mean", "std", "epistemic_std", *DISTRIBUTIONS)

_NAME = r"[\w.+-]+"
_KEY = re.compile(rf"(?:(?!shifted/|ood/)({_NAME})/)?(?:(shifted|ood)/({_NAME})/)?(\w+)")
_FIELDS = {
    None: (*SHARED, "probs", "log_probs", "logits", "epistemic", "aleatoric", *REGRESSION),
    "shifted": ("y", "weights", "probs", "log_probs", "logits"),
    "ood": ("probs", "logits", "epistemic"),
}
_EXPECTED = (
    "y and probs (or logits), or y, mean and std; for several predictors, prefixed with their "
    "names, as in map/probs; and shifted/<set>/... or ood/<set>/..."
)

# Errors that a damaged archive may raise: `RuntimeError` for entries that seem encrypted, have an
# unknown compression or are nested too deeply, `MemoryError` for absurd shapes.
_DAMAGE = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error),
    *(ValueError, KeyError, TypeError, RuntimeError, MemoryError, OverflowError),
)


class Place(NamedTuple):
    """A predictor and a data set; `None` for a single unnamed predictor and for the test set."""

    predictor: str | None
    kind: str | None = None
    set: str | None = None


class Key(NamedTuple):
    """A parsed array name: the predictor and data set, and the field."""

    place: Place
    field: str

    def __str__(self) -> str:
        """Return the array name."""
        return "/".join(filter(None, (*self.place, self.field)))


Keys = Mapping[Key, str]


def parse(name: str) -> Key | None:
    """Return the parsed name of an array, `None` if it is not valid."""
    match = _KEY.fullmatch(name)
    if not match:
        return None
    *place, field = match.groups()
    key = Key(Place(*place), field)
    known = field in _FIELDS[key.place.kind] and not (field in SHARED and key.place.predictor)
    return key if known else None


def read_npz(path: Path) -> Contents:
    """Return the arrays of an archive.

    An `OSError` is raised if the file cannot be opened, a `ValueError` if it is damaged, not an
    archive, or holds pickled objects.
    """
    with path.open("rb") as file:
        try:
            if file.read(2) != b"PK":
                raise ValueError("it is not an archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return Contents(path, {name: np.asarray(archive[name]) for name in archive.files})
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise refused(
                path,
                f"a file that cannot be read as an archive of arrays ({reason})",
                "a complete file of numbers, made by numpy.savez",
                "save it again",
            ) from error


def parse_names(contents: Contents) -> Keys:
    """Return the array names by parsed key.

    A `ValueError` is raised if a name is not valid, or the arrays do not form predictions.
    """
    found = ", ".join(contents.arrays)[:300] or "no arrays"
    parsed = {name: parse(name) for name in contents.arrays}
    unknown = [name for name, key in parsed.items() if key is None]
    if unknown:
        raise contents.refused(
            f"an array named {unknown[0][:80]!r} among {found}", _EXPECTED, "rename or drop it"
        )
    fields = {key.field for key in parsed.values()}
    names = {key.place.predictor for key in parsed.values() if key.field not in SHARED}
    if "y" not in contents.arrays or not names:
        raise contents.refused(found, _EXPECTED, "add what is missing")
    if None in names and len(names) > 1:
        raise contents.refused(
            found, "a predictor's name in front of every array, or of none", "add the names"
        )
    if fields & {*REGRESSION} and not fields <= {*SHARED, *REGRESSION}:
        raise contents.refused(
            found, "probabilities, or means and standard deviations", "use separate files"
        )
    return {key: name for name, key in parsed.items()}


def one_of(contents: Contents, keys: Keys, place: Place, *fields: str) -> str:
    """Return the name of the single array among `fields` at a place; a `ValueError` otherwise."""
    wanted = [Key(place, field) for field in fields]
    there = [keys[key] for key in wanted if key in keys]
    if len(there) != 1:
        raise contents.refused(
            " and ".join(there) if there else ", ".join(keys.values())[:300],
            " or ".join(map(str, wanted)) + (", not both" if there else " too"),
            "drop one" if there else "add what is missing",
        )
    return there[0]
