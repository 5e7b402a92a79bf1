"""Let the API pages show the fields of a `@pytree_dataclass` as its arguments."""

from typing import Any

from griffe import Class, Decorator, Expr, ExprName, Extension


class PytreeDataclasses(Extension):
    """Treat every class under `laplace_kit.tree.pytree_dataclass` as a standard dataclass."""

    def on_class_members(self, *, cls: Class, **kwargs: Any) -> None:
        """Add the decorator by which griffe knows a dataclass."""
        names = [d.value.canonical_path for d in cls.decorators if isinstance(d.value, Expr)]
        if "laplace_kit.tree.pytree_dataclass" in names:
            known = ExprName("dataclasses.dataclass")
            cls.decorators.append(Decorator(known, lineno=cls.lineno, endlineno=cls.endlineno))
