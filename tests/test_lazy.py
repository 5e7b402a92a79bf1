"""Names that packages load when they are first used are there, as if they had been imported."""

import importlib
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import laplace_kit as lk
from laplace_kit.lazy import imported_for_type_checkers

PACKAGES = (lk, lk.approx, lk.curv, lk.eval, lk.targets, lk.tune)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_name_for_type_checkers_is_what_its_module_has(package):
    homes = imported_for_type_checkers(Path(package.__file__).read_text(encoding="utf-8"))
    assert homes
    for name, home in homes.items():
        if home == package.__name__:  # a module of the package's own
            assert getattr(package, name) is importlib.import_module(f"{home}.{name}")
        else:
            assert getattr(package, name) is getattr(importlib.import_module(home), name)
        assert name in dir(package)


def test_names_are_there_whatever_was_imported_before():
    code = (
        "import laplace_kit.eval.report.page, laplace_kit.curv.principal, laplace_kit.fitting\n"
        "import laplace_kit as lk\n"
        "from laplace_kit.eval import Report, metrics, plots\n"
        "print(callable(lk.fit), callable(lk.curv.submatrix), callable(lk.curv.linearized),\n"
        "      callable(lk.curv.solve), metrics.brier_score is lk.eval.metrics.brier_score,\n"
        "      Report is lk.eval.report.Report, 'Report' in dir(lk.eval))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 7


def test_what_is_not_there_is_told():
    with pytest.raises(AttributeError, match=r"module 'laplace_kit.eval' has no attribute 'none'"):
        _ = lk.eval.none
    with pytest.raises(ImportError, match="cannot import name 'none'"):
        exec("from laplace_kit.curv import none")
    assert not hasattr(lk.approx, "__wrapped__")
    assert pickle.loads(pickle.dumps(lk.eval.Report)) is lk.eval.Report


def test_only_imports_under_the_guard_are_read():
    source = (
        "from typing import TYPE_CHECKING\nfrom a import b\nif TYPE_CHECKING:\n"
        "    from c.d import e as e\n    from c import f as f, g as g\n    import h\n"
        "if b:\n    from i import j\n"
    )
    assert imported_for_type_checkers(source) == {"e": "c.d", "f": "c", "g": "c"}
