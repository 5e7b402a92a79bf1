"""Names of a package that load their modules when they are first used (PEP 562)."""

import ast
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any


def on_first_use(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package that imports names for type checkers alone.

    These are its modules, and the names that it imports under `if TYPE_CHECKING:`, which is read
    when the first of them is asked for. What shares its name with a module must be imported at
    once: the module would take its place.

    Parameters
    ----------
    package
        Its `__name__`.
    """

    @functools.cache
    def homes() -> Mapping[str, str]:
        spec = sys.modules[package].__spec__
        return imported_for_type_checkers(spec.loader.get_source(package))

    def load(name: str) -> Any:
        if not name.startswith("__") and importlib.util.find_spec(f"{package}.{name}"):
            value = importlib.import_module(f"{package}.{name}")
        elif not name.startswith("__") and name in homes():
            value = getattr(importlib.import_module(homes()[name]), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)  # found without a question from here on
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes()})

    return load, names


def imported_for_type_checkers(source: str) -> dict[str, str]:
    """Return the modules of the names that a source imports under `if TYPE_CHECKING:`."""
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
