"""The package's annotations hold in every test: wrong arguments and results are refused."""

import checking
import jaxtyping
import numpy as np
import pytest
from exact import as_users_call
from jaxtyping import Float

from laplace_kit import tree

typed = checking.typed(typechecker=checking.checked)


@typed
def shared_length(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    return float(first @ second)


@typed
def half(number: int, names: tuple[str, ...] = ()) -> int:
    return number / 2


@typed
def numbers(high: int):
    yield from range(high)


def test_shapes_agree_within_a_call():
    assert shared_length(np.ones(2), np.ones(2)) == 2
    with pytest.raises(jaxtyping.TypeCheckError):
        shared_length(np.ones(2), np.ones((2, 1)))
    with pytest.raises(jaxtyping.TypeCheckError):
        shared_length(np.ones(2), np.ones(3))


def test_arguments_and_results_are_checked_without_shapes_too():
    with pytest.raises(jaxtyping.TypeCheckError, match="number"):
        half("two")
    with pytest.raises(jaxtyping.TypeCheckError, match="names"):
        half(2, names=(1,))
    with pytest.raises(jaxtyping.TypeCheckError, match="return"):
        half(2)
    assert list(numbers(2)) == [0, 1]
    with pytest.raises(jaxtyping.TypeCheckError, match="high"):
        list(numbers("two"))


def test_functions_of_the_package_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError):
        tree.pytree_dataclass(static=3)
    with as_users_call():
        tree.pytree_dataclass(static=3)
