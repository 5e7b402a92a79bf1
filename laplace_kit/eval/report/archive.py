"""Archives of predictions: which names their arrays may have, and what each name means."""

import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from laplace_kit.eval.report.contents import Contents, refused

SHARED = ("y", "x")  # what all predictors have in common
REGRESSION = ("mean", "std", "epistemic_std")

_NAME = r"[\w.+-]+"
_KEY = re.compile(rf"(?:(?!shifted/|ood/)({_NAME})/)?(?:(shifted|ood)/({_NAME})/)?(\w+)")
_FIELDS = {
    None: (*SHARED, "probs", "log_probs", "logits", "epistemic", "aleatoric", *REGRESSION),
    "shifted": ("y", "probs", "log_probs", "logits"),
    "ood": ("probs", "logits", "epistemic"),
}
_EXPECTED = (
    "y and probs (or logits), or y, mean and std; of several predictors with the name of each in "
    "front, as in map/probs; and shifted/<set>/... or ood/<set>/..."
)

# What reading a damaged archive may raise; `RuntimeError` stands for entries that seem encrypted,
# compressed by unknown methods, or nested without end, `MemoryError` for absurd shapes.
_DAMAGE = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, struct.error),
    *(ValueError, KeyError, TypeError, RuntimeError, MemoryError, OverflowError),
)


class Place(NamedTuple):
    """Whose predictions, and on which set: `None` for a lone predictor, and for the test set."""

    predictor: str | None
    kind: str | None = None
    set: str | None = None


class Key(NamedTuple):
    """The name of an array in its parts: a place, and what the array says there."""

    place: Place
    field: str

    def __str__(self) -> str:
        """Return the name."""
        return "/".join(filter(None, (*self.place, self.field)))


Keys = Mapping[Key, str]


def parse(name: str) -> Key | None:
    """Return what the name of an array means, `None` if nothing."""
    match = _KEY.fullmatch(name)
    if not match:
        return None
    *place, field = match.groups()
    key = Key(Place(*place), field)
    known = field in _FIELDS[key.place.kind] and not (field in SHARED and key.place.predictor)
    return key if known else None


def read_npz(path: Path) -> Contents:
    """Return the arrays of an archive.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged, foreign, or holds what would have to be unpickled.
    """
    with path.open("rb") as file:
        try:
            if file.read(2) != b"PK":
                raise ValueError("it is no archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                return Contents(path, {name: np.asarray(archive[name]) for name in archive.files})
        except _DAMAGE as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise refused(
                path,
                f"what cannot be read as an archive of arrays ({reason})",
                "a whole file of numbers, made by numpy.savez",
                "save it again",
            ) from error


def keys_of(contents: Contents) -> Keys:
    """Return the names of the arrays by what they mean, if together they can be predictions.

    Parameters
    ----------
    contents
        Of a file.

    Raises
    ------
    ValueError
        If a name means nothing, or one that is always needed is missing.
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
            found, "the name of its predictor in front of each array, or of none", "add the names"
        )
    if fields & {*REGRESSION} and not fields <= {*SHARED, *REGRESSION}:
        raise contents.refused(
            found, "probabilities, or means and standard deviations", "use a file for each"
        )
    return {key: name for name, key in parsed.items()}


def one_of(contents: Contents, keys: Keys, place: Place, *fields: str) -> str:
    """Return the name of the one array among `fields` that there is at a place.

    Raises
    ------
    ValueError
        If there is none, or more than one.
    """
    wanted = [Key(place, field) for field in fields]
    there = [keys[key] for key in wanted if key in keys]
    if len(there) != 1:
        raise contents.refused(
            " and ".join(there) if there else ", ".join(keys.values())[:300],
            " or ".join(map(str, wanted)) + (", not both" if there else " too"),
            "drop one" if there else "add what is missing",
        )
    return there[0]
