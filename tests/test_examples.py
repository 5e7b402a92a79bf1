"""The examples run as they are, and the shortest way from a model to a report is ten lines."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {"torch_dataloader.py": "torch", "equinox_mlp.py": "equinox"}
PRINTS = {
    "equinox_mlp.py": "with a faulty instrument: the posterior is",
    "flax_linen.py": "observed  predicted  of which epistemic",
    "flax_nnx.py": "report: out/flax_nnx/index.html",
    "save_and_load.py": "with ten times the prior precision",
    "torch_dataloader.py": "layer capture",
}
DEMOS = {"diabetes.py", "digits.py"}  # run by `make demo` and `make demo-regression`


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*PRINTS, *DEMOS}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRINTS)
def test_example_runs(name, tmp_path):
    needed = NEEDS.get(name)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed: pip install {needed}")
    # In a process of its own, as users run it, and where it may write.
    paths = [str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert PRINTS[name] in done.stdout
    for file in ("index.html", "metrics.json") if name == "flax_nnx.py" else ():
        assert (tmp_path / "out" / "flax_nnx" / file).stat().st_size > 0


def test_report_of_a_trained_flax_model_takes_at_most_ten_lines():
    lines = (EXAMPLES / "flax_nnx.py").read_text(encoding="utf-8").splitlines()
    trained = next(n for n, line in enumerate(lines) if line.startswith("module = train("))
    reported = next(n for n, line in enumerate(lines) if "la.report(" in line)
    imports = [line for line in lines if line == "import laplace_kit as lk"]
    code = [line for line in lines[trained + 1 : reported + 1] if line and line[0] != "#"]
    assert len(imports) == 1
    assert len(imports + code) <= 10
