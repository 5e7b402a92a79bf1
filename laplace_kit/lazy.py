"""Lazy imports: names of a package load their modules when they are first used (PEP 562)."""

import ast
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any


def on_first_use(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package that imports names only for type checkers.

    They serve the package's modules, and the names that it imports under `if TYPE_CHECKING:`, which
    is parsed on first use. No name may be that of a module, which would take its place.

    Parameters
    ----------
    package
        The package's `__name__`.
    """

    @functools.cache
    def modules() -> Mapping[str, str]:
        spec = sys.modules[package].__spec__
        return imported_for_type_checkers(spec.loader.get_source(package))

    def load(name: str) -> Any:
        if not name.startswith("__") and importlib.util.find_spec(f"{package}.{name}"):
            value = importlib.import_module(f"{package}.{name}")
        elif not name.startswith("__") and name in modules():
            value = getattr(importlib.import_module(modules()[name]), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # from now on `__getattr__` is not called
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules()})

    return load, names


def imported_for_type_checkers(source: str) -> dict[str, str]:
    """Return the names that a source imports under `if TYPE_CHECKING:`, each with its module."""
    guarded = (
        node
        for statement in ast.parse(source).body
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"
        for node in statement.body
    )
    return {
        alias.name: node.module
        for node in guarded
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
