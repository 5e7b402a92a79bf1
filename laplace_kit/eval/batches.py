"""Predictions over a loader: batches of inputs, one at a time, by one compiled program.

`predict` itself maps over chunks inside a single program, which cannot report progress; with
`split`, which cuts inputs into batches, the host loops and can show a progress bar.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from laplace_kit import bars
from laplace_kit.arrays import as_pair, is_list_of_numbers, on_host
from laplace_kit.errors import check_count
from laplace_kit.eval.outputs import Predictive
from laplace_kit.eval.rows import by_row, first_rows, rows_of
from laplace_kit.host import fetch, spans_processes
from laplace_kit.loaders import ShardedBatches
from laplace_kit.placement import placement_of

Predict = Callable[[PyTree], Predictive]


def predict_over(predict: Predict, batches: Iterable[Any], *, progress: bool = False) -> Predictive:
    """Return the predictive at the inputs of all batches, in their order.

    Parameters
    ----------
    predict
        From inputs to a `Predictive`, such as `la.predict`, with options and the key bound to it.
    batches
        A list, a torch `DataLoader` or a generator of inputs x, or of `(x, y)`, `(x, y, weights)`
        or mappings with `"labels"`, where only x is used. It is iterated once.
    progress
        Show a progress bar with the inputs a second.

    Returns
    -------
    predictive
        The same as if all inputs had been in memory. Cost: `predict` at every batch; ragged batches
        are filled up to the size of the first, so that nothing is recompiled.

    Raises
    ------
    TypeError
        If `batches` are inputs in memory, for which `predict` is enough.
    ValueError
        If there is no batch, the predictive is joint over all inputs, or several processes share
        the posterior and each has other batches: pass `laplace_kit.data.shard_batches`, whose
        examples are predicted in the order of the global batches.
    """
    parts = list(predict_batches(predict, batches, progress=progress))
    if not parts:
        raise ValueError("Found no batch, expected at least one; check the loader.")
    return _concatenated(parts)


def predict_batches(
    predict: Predict, batches: Iterable[Any], *, progress: bool = False
) -> Iterator[Predictive]:
    """Yield the predictive of each batch, for data whose predictive does not fit in memory.

    Parameters
    ----------
    predict, batches, progress
        As for `predict_over`, with the same errors.
    """
    _check_batches(batches)
    if isinstance(batches, ShardedBatches):
        return _without_filling(
            predict, _shown(batches.with_rows(), batches, _num_marked, progress)
        )
    return _predictions(predict, _shown(batches, batches, _num_in, progress))


def _shown(
    items: Iterable[Any], batches: Iterable[Any], num_of: Callable[[Any], int], progress: bool
) -> Iterable[Any]:
    """Return items, one for each batch, with a bar if it is asked for."""
    if not bars.is_shown(progress):
        return items
    return bars.with_bar(items, "predictions", num_of, num_batches=bars.length_of(batches))


def split(x: PyTree, batch_size: int) -> list[PyTree]:
    """Return inputs as a list of batches, which are views of the host's memory.

    Parameters
    ----------
    x
        Inputs with a leading axis N.
    batch_size
        The number of inputs in every batch except the last.
    """
    check_count("batch_size", batch_size, "inputs")
    x = on_host(x, "inputs")
    return [
        _rows(x, slice(low, low + batch_size)) for low in range(0, _num_examples(x), batch_size)
    ]


def _without_filling(predict: Predict, batches: Iterable[tuple]) -> Iterator[Predictive]:
    """Leave out the rows that only fill batches up."""
    for (x, *_), is_example in batches:
        yield rows_of(predict(x), np.flatnonzero(is_example))


def _predictions(predict: Predict, batches: Iterable[Any]) -> Iterator[Predictive]:
    size = None
    for item in batches:
        x = _inputs(item)
        if placement_of(x) is not None or spans_processes(x):
            yield predict(x)
            continue
        x = on_host(x, "inputs")
        num = _num_examples(x)
        size = num if size is None else size
        for low in range(0, num, size):
            rows = np.arange(low, low + size)
            # Filled up with the last input, as zeros may be invalid.
            predictive = predict(_rows(x, np.minimum(rows, num - 1)) if num != size else x)
            yield first_rows(predictive, min(size, num - low))


def _check_batches(batches: Iterable[Any]) -> None:
    if isinstance(batches, tuple | Mapping) or hasattr(batches, "shape"):
        raise TypeError(
            f"Found inputs in memory ({type(batches).__name__}), expected an iterable of batches; "
            "pass them to predict, or cut them by laplace_kit.eval.split(x, batch_size)."
        )


def _inputs(item: Any) -> PyTree:
    """Return the inputs of a batch: x itself, or the first of `(x,)`, `(x, y)`, `(x, y, w)`.

    In a mapping with `"labels"`, they are what else it holds.
    """
    item = as_pair(item)
    if not isinstance(item, tuple | list) or is_list_of_numbers(item):
        return item
    if len(item) not in (1, 2, 3):
        raise ValueError(
            f"Found a batch of {len(item)} parts, expected inputs x, (x, y) or (x, y, weights); "
            "put several inputs into one pytree, as in {'image': x1, 'text': x2}."
        )
    return item[0]


def _num_in(item: Any) -> int:
    """Return the number of inputs of a batch."""
    x = _inputs(item)
    return _num_examples(x if spans_processes(x) else on_host(x, "inputs"))


def _num_marked(batch_and_rows: tuple[Any, np.ndarray]) -> int:
    """Return the number of rows of a batch that are examples."""
    return int(batch_and_rows[1].sum())


# --- rows -----------------------------------------------------------------------------------------


def _num_examples(x: PyTree) -> int:
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise ValueError(
            f"Found a batch of inputs with the leading axes {sorted(sizes)}, expected arrays with "
            "one number of examples, at least one."
        )
    return sizes.pop()[0]


def _rows(x: PyTree, rows: slice | np.ndarray) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[rows], x)


def _concatenated(parts: list[Predictive]) -> Predictive:
    if parts[0].joint_cov is not None:
        raise ValueError(
            "Found joint covariances of each batch, expected a predictive without joint=True; the "
            "covariance between batches takes all inputs in memory: la.predict(x, joint=True)."
        )
    return by_row(lambda *rows: jax.device_put(np.concatenate(fetch(rows))), parts)
