"""The stages of a report, announced one by one to a function that shows progress."""

from collections.abc import Callable

OnStage = Callable[[str], None]


def ignore(stage: str) -> None:
    """Show nothing."""
