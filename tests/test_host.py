"""Looks of the host at arrays; `test_processes.py` has those of several processes."""

import ast
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import laplace_kit
from laplace_kit import host

PACKAGE = Path(laplace_kit.__file__).parent

# Looks that fail where another process holds a part of the array.
_LOOKS = {"np.asarray", "np.array", "jax.device_get"}
# Where arrays cannot be those of JAX, or have been fetched before.
_HOST_ONLY = (
    "host.py",  # the looks themselves
    "arrays.py",  # what users hold numbers in, other than arrays of JAX
    "eval/report/",  # `compare.py` fetches predictions before a report is made of them
    "eval/plots/style.py",
)
# What is made an array there are lists of numbers.
_NUMBERS = ("curv/capture/products.py", "tune/fixed_point.py", "tune/line_search.py", "train.py")


def _is_made_here(node: ast.expr) -> bool:
    """Return whether an argument is written out, or has just been fetched."""
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).rpartition(".")[2] in ("fetch", "fetch_array", "bool")
    displays = (ast.List, ast.Tuple, ast.ListComp, ast.GeneratorExp, ast.Constant)
    return isinstance(node, displays)


def _looks(path: Path) -> list[str]:
    """Return the looks at arrays in a file, by line."""
    module, name = ast.parse(path.read_text()), str(path.relative_to(PACKAGE))
    looks = _LOOKS - {"np.array"} if name in _NUMBERS else _LOOKS
    allowed = {
        id(node.func)
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and node.args and _is_made_here(node.args[0])
    }
    return [
        f"{name}:{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in looks
        and id(node) not in allowed
    ]


def _is_host_only(path: Path) -> bool:
    is_there = str(path.relative_to(PACKAGE)).startswith(_HOST_ONLY)
    return is_there and path.name != "compare.py"


def test_the_host_looks_at_arrays_by_fetch_alone():
    files = [path for path in PACKAGE.rglob("*.py") if not _is_host_only(path)]
    assert len(files) > 100
    assert [look for path in files for look in _looks(path)] == []


def test_the_rule_finds_looks():
    assert any("jax.device_get" in look for look in _looks(PACKAGE / "host.py"))
    assert any("np.asarray" in look for look in _looks(PACKAGE / "arrays.py"))


def test_arrays_and_numbers_are_fetched():
    found = host.fetch({"jax": jnp.arange(3), "numpy": np.eye(2), "number": 2.5, "none": None})
    assert all(type(found[name]) is np.ndarray for name in ("jax", "numpy", "number"))
    np.testing.assert_array_equal(found["jax"], [0, 1, 2])
    assert found["number"] == 2.5
    assert found["none"] is None


def test_array_likes_are_fetched_as_one_array():
    assert host.fetch_array([[1, 2], [3, 4]], float).shape == (2, 2)
    assert host.fetch_array(jnp.ones(3), np.float64).dtype == np.float64


@pytest.mark.parametrize("make", [np.array, jnp.array, np.float32])
def test_extremes(make):
    values = make(3.0) if make is np.float32 else make([2.0, -1.0, 5.0])
    assert host.extremes(values) == ((3, 3) if make is np.float32 else (-1, 5))


def test_extremes_of_nan():
    assert all(map(math.isnan, host.extremes(jnp.array([1.0, jnp.nan, 2.0]))))


def test_arrays_of_one_process_do_not_span_several():
    assert not host.spans_processes({"a": jnp.ones(2), "b": np.ones(3)})
    assert not host.is_scattered(jnp.ones(2))
    assert host.is_first()


def test_tracers_are_not_looked_at():
    assert jax.jit(lambda x: x + host.spans_processes(x) + host.is_scattered(x))(1.0) == 1


def test_work_of_one_process_is_done_at_once():
    done = []
    host.by_first(lambda: done.append(1), shared=False)
    assert done == [1]
    assert host.in_step(lambda: 7, shared=True) == 7


def test_an_error_of_the_work_is_passed_on():
    def fail():
        raise FileNotFoundError("no such folder")

    for shared in (False, True):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            host.by_first(fail, shared=shared)
