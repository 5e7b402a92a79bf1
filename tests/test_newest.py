"""The versions that are tested: those that are stated, and which interpreter the newest need."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "newest"


def test_the_readme_states_the_versions_that_the_package_declares():
    stated = re.search(
        r"Python ([\d.]+) to ([\d.]+) and JAX ([\d.]+) to ([\d.]+)\s+are tested",
        (ROOT / "README.md").read_text(encoding="utf-8"),
    )
    oldest, newest, oldest_jax, _ = stated.groups()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={oldest}"
    assert {f"jax>={oldest_jax}", f"jaxlib>={oldest_jax}"} <= set(project["dependencies"])
    classified = re.findall(r"Python :: (3\.\d+)", " ".join(project["classifiers"]))
    assert (classified[0], classified[-1]) == (oldest, newest)


@pytest.mark.parametrize("python", ["/bin/false", "/no/python3.13"])
def test_an_interpreter_that_is_none_is_refused(python):
    done = subprocess.run(
        [SCRIPT], env={"NEWEST_PYTHON": python, "PATH": "/usr/bin:/bin"}, stderr=subprocess.PIPE
    )
    assert done.returncode == 3  # which `.ci/run` takes for a reason to go on
    assert f"Found NEWEST_PYTHON={python}, expected Python 3.13" in done.stderr.decode()
    assert "make test-newest NEWEST_PYTHON=/path/to/python3.13" in done.stderr.decode()


def test_torch_is_added_to_an_environment_that_has_the_rest():
    script = ROOT / ".ci" / "torch"
    done = subprocess.run(
        [script],
        env={"TORCH_PYTHON": "/bin/false", "PATH": "/usr/bin:/bin"},
        stderr=subprocess.PIPE,
    )
    assert done.returncode == 3  # which `.ci/run` takes for a reason to go on
    assert "Found no tests' environment at /bin/false, expected" in done.stderr.decode()


@pytest.mark.parametrize(("version", "is_new"), [((3, 12), False), ((3, 13), True)])
def test_which_interpreters_are_new(version, is_new):
    (asked,) = re.findall(r"""-c '(import ensurepip.*?)'""", SCRIPT.read_text(encoding="utf-8"))
    asked = asked.replace("sys.version_info", str(version)).replace("ensurepip, ", "")
    assert subprocess.run([sys.executable, "-c", asked]).returncode == (not is_new)
