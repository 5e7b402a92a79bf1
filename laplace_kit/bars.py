"""Progress bars of stages and of passes over batches: what is computed, and how fast."""

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from laplace_kit.host import is_first

_T = TypeVar("_T")


def is_shown(progress: bool) -> bool:
    """Return whether this process shows bars that are asked for: the first one of several does."""
    return progress and is_first()


@contextlib.contextmanager
def stages(progress: bool, total: int) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows each of `total` stages on a progress bar, if `progress`."""
    if not is_shown(progress):
        yield lambda stage: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, leave=False, bar_format="{n_fmt}/{total_fmt} {desc} {elapsed}") as bar:

        def enter(stage: str) -> None:
            bar.update()
            bar.set_description_str(stage)

        yield enter


def with_bar(
    batches: Iterable[_T],
    name: str,
    num_of: Callable[[_T], int],
    *,
    num_batches: int | None = None,
    done: int = 0,
) -> Iterator[_T]:
    """Yield the batches, and show a bar of their examples, also of how many a second.

    The clock starts after the first batch, during which programs are compiled, so that the rate and
    the time left are those of the batches that follow.

    Parameters
    ----------
    batches
        Iterated once; a batch counts when the next one is asked for.
    name
        What is computed.
    num_of
        The number of examples of a batch.
    num_batches
        The number of all batches, which are taken to be as large as the first; `None` where it is
        not known.
    done
        The number of examples before these batches.
    """
    from tqdm.auto import tqdm

    look = {"unit": " examples", "unit_scale": True, "leave": False}
    with tqdm(desc=name, initial=done, **look) as bar:
        is_before_clock = True
        for batch in batches:
            yield batch
            num = num_of(batch)
            if is_before_clock:
                bar.initial = 0
                bar.reset(None if num_batches is None else num_batches * num)
                bar.n = bar.initial = bar.last_print_n = done + num
                bar.refresh()
                is_before_clock = False
            else:
                bar.update(num)


class Bars:
    """The bars of all passes over one stream, which they number; compared by identity."""

    def __init__(self) -> None:
        self._num_passes = 0

    def over(
        self,
        batches: Iterable[_T],
        name: str,
        num_of: Callable[[_T], int],
        *,
        num_batches: int | None = None,
        done: int = 0,
    ) -> Iterator[_T]:
        """Return the batches of the next pass with a bar; see `with_bar`."""
        self._num_passes += 1
        name = f"pass {self._num_passes}, {name}"
        return with_bar(batches, name, num_of, num_batches=num_batches, done=done)


def length_of(batches: Iterable) -> int | None:
    """Return the number of batches; `None` if it is not known."""
    length = operator.length_hint(batches, -1)
    return None if length < 0 else length


# --- what is computed ----------------------------------------------------------------------------


def titled(title: str) -> Callable[[_T], _T]:
    """Return a decorator that sets the title of a function which is summed over data."""

    def decorate(fn: _T) -> _T:
        fn.title = title
        return fn

    return decorate


def title_of(fn: Callable) -> str:
    """Return what a function computes, in words: its `title`, or its name in the code."""
    return getattr(fn, "title", None) or getattr(fn, "__name__", type(fn).__name__)
