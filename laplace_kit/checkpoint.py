"""Passes over a stream that survive a kill: their sums and their place in the loader, in files.

A directory belongs to one fit, which its file `fit.npz` describes by fingerprints. Each pass has a
file of its own, named after a fingerprint of its arguments: a fit that starts again comes by the
same passes, takes the sums of finished ones, and goes on in the one that was interrupted. A pass
whose arguments differ in one bit is another pass, which begins at the first batch.
"""

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from laplace_kit import storage, streams
from laplace_kit.errors import check_count
from laplace_kit.host import agree, fetch_array, in_step

_FIT, _PASSES = "fit.npz", "pass-*"
_CONTENT = "checkpoint of a fit"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A directory in which a fit over a stream saves its passes, and how often.

    Parameters
    ----------
    directory
        Made if it does not exist. It holds one fit at a time, and other files are left alone.
    seconds
        The time between two saves of the running sums, which are copied to the host for it.
    batches
        The number of batches after which they are saved at the latest; `None` for any number.

    Raises
    ------
    TypeError
        If the directory is not a path.
    ValueError
        If `seconds` is negative, or `batches` no positive whole number.
    """

    directory: str | os.PathLike
    seconds: float | int = 60.0
    batches: int | None = None

    def __post_init__(self):
        if not isinstance(self.directory, str | os.PathLike):
            raise TypeError(
                f"Found a checkpoint of type {type(self.directory).__name__}, expected the path of "
                "a directory, or lk.Checkpoint(directory, seconds=, batches=)."
            )
        if not self.seconds >= 0:
            raise ValueError(
                f"Found seconds={self.seconds}, expected the time between two saves, at least zero."
            )
        if self.batches is not None:
            check_count("batches", self.batches, "batches from one save to the next")

    @property
    def path(self) -> Path:
        """The directory as a path."""
        return Path(self.directory)


def as_checkpoint(checkpoint: Checkpoint | str | os.PathLike) -> Checkpoint:
    """Return a checkpoint with its options; a directory takes the default ones."""
    return checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)


# --- the directory -------------------------------------------------------------------------------


def claim(checkpoint: Checkpoint, job: Mapping[str, PyTree]) -> None:
    """Make a directory the checkpoint of a fit, or check that it is this one's.

    Parameters
    ----------
    checkpoint
        The directory.
    job
        What determines the sums, by its name in messages: arrays, numbers and texts.

    Raises
    ------
    ValueError
        If the directory holds another fit, or a file that is damaged; if it is a file.
    """
    path = checkpoint.path
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"Found checkpoint={os.fspath(path)!r}, which is a file, expected a directory; pass "
            "another path."
        )
    path.mkdir(parents=True, exist_ok=True)
    prints = {name: fingerprint(part) for name, part in job.items()}
    found = _read(path / _FIT)
    if found is None:
        storage.write(path / _FIT, {"content": _CONTENT, "job": prints})
        return
    differing = [name for name, value in prints.items() if found["job"].get(name) != value]
    if differing:
        raise ValueError(
            f"Found a checkpoint of another fit in {os.fspath(path)!r}, which differs in "
            f"{_listed(differing)}; expected the fit that was interrupted there. Call it as it "
            "was, or begin anew in another directory, or after deleting this one."
        )


def release(checkpoint: Checkpoint, *, shared: bool = False) -> None:
    """Remove the files of a fit; the directory itself stays.

    `shared` is as in `Run`.
    """

    def remove() -> None:
        for file in (*checkpoint.path.glob(_PASSES), checkpoint.path / _FIT):
            file.unlink(missing_ok=True)

    in_step(remove, shared=shared)


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a file, `None` if there is none."""
    if not path.exists():
        return None
    try:
        found = storage.read(path)
    except ValueError as error:
        raise ValueError(
            f"Found {os.fspath(path)!r}, which is damaged or something else, expected a file of a "
            "checkpoint; delete the directory to begin anew, or pass another one."
        ) from error
    if not isinstance(found, dict) or found.get("content") != _CONTENT:
        raise ValueError(
            f"Found {os.fspath(path)!r}, which holds something other than a checkpoint, expected "
            "an empty directory or the checkpoint of a fit; pass another directory."
        )
    return found


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def fingerprint(tree: PyTree) -> str:
    """Return a fingerprint of the values, shapes and dtypes of arrays, and of texts."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        is_number = isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float)
        array = fetch_array(leaf) if is_number else np.frombuffer(str(leaf).encode(), np.uint8)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


# --- one pass ------------------------------------------------------------------------------------


class _Saved(NamedTuple):
    """What the file of a pass holds.

    `state` is that of the loader. Where it has none, `last` is the fingerprint of the last batch
    that was summed, by which a loader is noticed whose order changes.
    """

    sums: list[Array] | None = None
    num_batches: int = 0
    num_examples: int = 0
    is_finished: bool = False
    state: Any = None
    last: str = ""


class Run:
    """One pass over a loader, which goes on where it was interrupted, and saves its sums.

    Without a checkpoint it is the loader, from its beginning to its end.

    Parameters
    ----------
    loader
        The batches.
    checkpoint
        Where sums are saved, `None` for nowhere.
    name, args
        What is computed, and the arrays on which it depends besides the batches.
    shared
        Whether several processes pass over the batches together. Process 0 then decides when sums
        are saved, and writes them; all read them.

    Raises
    ------
    ValueError
        If the file is damaged, or processes find different files.
    """

    def __init__(
        self,
        loader: Iterable,
        checkpoint: Checkpoint | None,
        name: str,
        args: PyTree,
        *,
        shared: bool = False,
    ):
        self._loader, self._checkpoint, self._shared = loader, checkpoint, shared
        self.saved = _Saved()
        if checkpoint is not None:
            self._path = checkpoint.path / f"pass-{fingerprint((name, args))}.npz"
            found = _read(self._path) or {"pass": {}}
            self.saved = _Saved(**found["pass"])
        self.num_batches, self.num_examples = self.saved.num_batches, self.saved.num_examples
        self._last_save = time.monotonic()
        self._num_saved = self.num_batches
        if checkpoint is not None and shared:
            self._check_shared()

    def _check_shared(self) -> None:
        found = agree(2 * self.num_batches + self.saved.is_finished)
        if len({*found.tolist()}) > 1:
            raise ValueError(
                f"Found sums of different numbers of batches in the processes ({found // 2}), "
                "expected one directory that all processes read and write; choose one on a file "
                "system that they share."
            )

    def batches(self, read: Callable[[Any], Any]) -> Iterator[Any]:
        """Yield the loader's batches that have not been summed, as they are.

        Parameters
        ----------
        read
            From a batch as it is to its arrays, a pytree.

        Raises
        ------
        ValueError
            If the loader has fewer batches than before, or another batch in the place of the last
            one that was summed.
        """
        if self.saved.is_finished:
            return
        if self.saved.state is not None:
            self._iterator = streams.set_back(self._loader, self.saved.state)
        else:
            self._iterator = iter(self._loader)
            self._skip(read)
        yield from self._iterator

    def _skip(self, read: Callable[[Any], Any]) -> None:
        num = self.saved.num_batches
        for found in range(num):
            batch = next(self._iterator, None)
            if batch is None:
                raise ValueError(
                    f"Found {found} batches in a loader of which {num} were summed before the "
                    f"interruption, expected the same batches; {_REMEDY}."
                )
        if num and fingerprint(read(batch)) != self.saved.last:
            raise ValueError(
                f"Found another batch number {num} than before the interruption, expected the same "
                f"batches in the same order; {_REMEDY}."
            )

    def add(self, batch: Any, num_examples: int, sums: PyTree) -> None:
        """Count a batch, whose part is in the sums, and save them if it is time to."""
        self.num_batches += 1
        self.num_examples += num_examples
        if self._checkpoint is None:
            return
        since = self.num_batches - self._num_saved
        is_time = time.monotonic() - self._last_save >= self._checkpoint.seconds
        # The first batch of a pass shows whether the state of the loader can be saved.
        is_time = is_time or self.num_batches == 1 or since == self._checkpoint.batches
        if agree(is_time)[0] if self._shared else is_time:
            self._save(sums, batch)

    def finish(self, sums: PyTree) -> None:
        """Save the sums of all batches."""
        if self._checkpoint is not None and not self.saved.is_finished:
            self._save(sums, None)

    def _save(self, sums: PyTree, batch: Any) -> None:
        """Write the file; `batch` is the last one summed, `None` at the end of the pass."""
        is_finished = batch is None
        state = None if is_finished else streams.state_of(self._loader, self._iterator)
        last = "" if is_finished or state is not None else fingerprint(batch)
        counts = self.num_batches, self.num_examples
        found = _Saved(jax.tree.leaves(sums), *counts, is_finished, state, last)
        storage.write(self._path, {"content": _CONTENT, "pass": found._asdict()})
        self._last_save, self._num_saved = time.monotonic(), self.num_batches


_REMEDY = (
    "switch off shuffling, take a loader whose position can be saved (grain's, or torchdata's "
    "StatefulDataLoader), or delete the directory to begin anew"
)
