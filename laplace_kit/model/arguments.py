"""Keyword arguments that set a module to evaluation mode, by their usual names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

_EVALUATION = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
}


def evaluation_arguments(
    call: Callable, arguments: Mapping[str, Any] | None
) -> tuple[tuple[str, Any], ...]:
    """Return the arguments of a module's call, sorted, by default those of evaluation mode.

    Parameters
    ----------
    call
        The function whose signature is looked at.
    arguments
        What the user gives; `None` sets the usual names where the signature has them: `train`,
        `training`, `is_training` to `False`; `deterministic`, `use_running_average` to `True`.
    """
    if arguments is None:
        signature = inspect.signature(call).parameters
        arguments = {name: value for name, value in _EVALUATION.items() if name in signature}
    return tuple(sorted(arguments.items()))
