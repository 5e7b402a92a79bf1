"""How a page was made: its date and data, the versions, and the command that makes it again."""

import platform
import shlex
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

from laplace_kit.eval.report.look import Look


def made(metrics: Mapping[str, Any], look: Look) -> dict[str, Any]:
    """Return date and data, empty where they are not told, the versions, and the command.

    The command reads the `predictions.npz` of the report: it makes the same numbers and pictures,
    without inputs, groups and the facts about the posterior.
    """
    versions = {
        "laplace_kit": _version(),
        "JAX": jax.__version__,
        "NumPy": np.__version__,
        "Python": platform.python_version(),
    }
    words = ["laplace-kit", "report", "predictions.npz", "--out", "again/"]
    words += ["--title", look.title, "--seed", str(metrics["seed"])]
    words += ["--date", look.shown_date or "none"]
    words += ["--data-name", look.data_name] if look.data_name else []
    words += ["--format", look.picture_format] if look.picture_format != "png" else []
    words += ["--costs", *(f"{cost:g}" for cost in look.costs)] if look.costs != (1, 1) else []
    return {
        "date": look.shown_date,
        "data": look.data_name,
        "versions": versions,
        "command": shlex.join(words),
    }


def _version() -> str:
    try:
        return metadata.version("laplace-kit")
    except metadata.PackageNotFoundError:
        return "not installed"
