"""Imports point downwards, and what is heavy is loaded when first used."""

import ast
import builtins
import graphlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "laplace_kit"
MODULES = sorted(PACKAGE.rglob("*.py"))

# The layers above the ground floor, lowest first; the files of the façade stand on top of all.
LAYERS = ("curv", "approx", "eval")
FACADE = (
    "__init__",
    "fitting",
    "laplace",
    "record",
    "tune",
    "continual",
    "job",
    "train",
    "card",
    "quality",
    "stored",
    "machine",
    "cli",
    "demo",
    "__main__",
)
# What of the ground floor takes more than one file.
GROUND_FLOOR = ("likelihood", "model", "targets")
FOLDERS_OF_FACADE = ("tune",)


def dotted(path: Path) -> str:
    """Return the name by which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = tuple(map(dotted, MODULES))


def layer(module: str) -> int:
    """Return 0 for the ground floor, 1 to 3 for `LAYERS`, 4 for the façade."""
    _, name, *_ = (*module.split("."), "__init__")
    if name in FACADE:
        return len(LAYERS) + 1
    return LAYERS.index(name) + 1 if name in LAYERS else 0


def imports(path: Path, source: str) -> set[str]:
    """Return this package's modules that the source of a file imports, also inside functions."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{origin}.{alias.name}" for alias in node.names}
            found |= {name if name in NAMES else origin for name in names}
    return {module for module in found if module.split(".")[0] == PACKAGE.name}


def test_imports_point_downwards():
    upwards = [
        f"{name} stands below {module}"
        for path, name in zip(MODULES, NAMES, strict=True)
        for module in sorted(imports(path, path.read_text(encoding="utf-8")))
        if layer(module) > layer(name)
    ]
    assert not upwards, "\n".join(upwards)


class WithoutAnnotations(ast.NodeTransformer):
    """Drops what is imported for type checkers alone."""

    def visit_If(self, node):
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def test_imports_make_no_ring():
    """Inside functions neither, where a ring would only be hidden; packages list their modules."""
    files = {dotted(path): path for path in MODULES if path.name != "__init__.py"}
    graph = {}
    for name, path in files.items():
        source = WithoutAnnotations().visit(ast.parse(path.read_text(encoding="utf-8")))
        graph[name] = imports(path, ast.unparse(source)) & set(files) - {name}
    graphlib.TopologicalSorter(graph).prepare()  # raises a `CycleError` that names the ring


def test_the_facade_makes_no_ring_for_annotations_either():
    """Modules that `Laplace` passes its parts to do not import `Laplace`."""
    files = {dotted(path): path for path in MODULES if path.name != "__init__.py"}
    files = {name: path for name, path in files.items() if layer(name) > len(LAYERS)}
    graph = {
        name: imports(path, path.read_text(encoding="utf-8")) & set(files) - {name}
        for name, path in files.items()
    }
    assert len(graph["laplace_kit.laplace"]) > 5
    graphlib.TopologicalSorter(graph).prepare()


def test_the_layers_are_those_of_the_package():
    folders = {path.relative_to(PACKAGE).parts[0] for path in MODULES if path.parent != PACKAGE}
    assert folders == {*LAYERS, *GROUND_FLOOR, *FOLDERS_OF_FACADE}


def test_the_rule_sees_every_form_of_import():
    path = PACKAGE / "curv" / "imaginary.py"
    source = (
        "import laplace_kit.eval.metrics\nfrom laplace_kit import Laplace, tree\n"
        "from laplace_kit.approx import full\nfrom . import ggn\nfrom .operator import bind\n"
        "from ..eval import link\ndef f():\n    from laplace_kit.fitting import fit\n"
        "    import jax\n"
    )
    assert imports(path, source) == {
        "laplace_kit",
        "laplace_kit.approx.full",
        "laplace_kit.curv.ggn",
        "laplace_kit.curv.operator",
        "laplace_kit.eval.link",
        "laplace_kit.eval.metrics",
        "laplace_kit.fitting",
        "laplace_kit.tree",
    }


def test_import_loads_nothing_heavy():
    heavy = [
        "equinox",
        "flax",
        "jax.scipy.linalg",
        "jinja2",
        "matfree",
        "matplotlib",
        "optax",
        "scipy",
        "sklearn",
        "tqdm",
    ]
    own = ["cli", "demo", "quality", "train"]
    own += ["eval.evaluation", "eval.metrics", "eval.plots", "eval.report", "curv.plots"]
    heavy += [f"{PACKAGE.name}.{name}" for name in own]
    code = f"import sys, laplace_kit; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
def test_import_takes_a_fraction_of_that_of_jax(tmp_path):
    """With compiled bytecode, in processor time, the best of several processes."""
    code = (
        "import time\nstart = time.process_time()\nimport jax\nmiddle = time.process_time()\n"
        "import laplace_kit\nprint((time.process_time() - middle) / (middle - start))\n"
    )
    kept = {name: value for name, value in os.environ.items() if "DONTWRITEBYTECODE" not in name}
    environment = kept | {"PYTHONPYCACHEPREFIX": str(tmp_path)}
    shares = [
        float(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))
        for _ in range(8)
    ]
    assert min(shares[1:]) < 0.3


def bound(tree: ast.Module) -> set[str]:
    """Return the names that a file binds anywhere, and those that Python has."""
    found = {*dir(builtins), "__file__"}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.ExceptHandler(name=name) | ast.MatchAs(name=name) | ast.MatchStar(name=name):
                found.add(name)
            case ast.alias(name=name, asname=other):
                found.add(other or name.partition(".")[0])
    return found


def unbound(source: str) -> set[str]:
    """Return the names that a file reads without binding them; axes of shapes are strings."""
    tree = ast.parse(source)
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return read - bound(tree)


def test_every_name_is_bound():
    """Ruff cannot tell: it takes the axes of shapes in annotations for names."""
    assert unbound("import numpy as np\ndef f(x): return np.sum(y)") == {"y"}
    missing = {path: unbound(path.read_text(encoding="utf-8")) for path in MODULES}
    assert {path: names for path, names in missing.items() if names} == {}
