"""Let the API pages show fields of a `@pytree_dataclass` as arguments, and what `_part` says."""

import ast
from typing import Any

from griffe import Class, Decorator, Docstring, Expr, ExprCall, ExprName, Extension


class PytreeDataclasses(Extension):
    """Treat every class under `laplace_kit.tree.pytree_dataclass` as a standard dataclass."""

    def on_class_members(self, *, cls: Class, **kwargs: Any) -> None:
        """Add the decorator by which griffe knows a dataclass."""
        names = [d.value.canonical_path for d in cls.decorators if isinstance(d.value, Expr)]
        if "laplace_kit.tree.pytree_dataclass" in names:
            known = ExprName("dataclasses.dataclass")
            cls.decorators.append(Decorator(known, lineno=cls.lineno, endlineno=cls.endlineno))
        for attribute in cls.attributes.values():
            value = attribute.value
            if isinstance(value, ExprCall) and str(value.function) == "_part":
                doc = ast.literal_eval(str(value.arguments[1]))
                attribute.docstring = Docstring(doc, parent=attribute)
