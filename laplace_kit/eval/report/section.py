"""Sections of a page: pictures and tables with a note, and the numbers that they show."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from laplace_kit.eval.report.pictures import Picture


@dataclass(frozen=True)
class Table:
    """A table as text; the first column names the rows.

    Parameters
    ----------
    columns, rows
        The names of the columns, and the rows, of one text for each column.
    title, note
        A heading, and a sentence below it.
    marked
        The indices of rows to emphasise.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    note: str = ""
    marked: tuple[int, ...] = ()


@dataclass(frozen=True)
class Section:
    """Pictures and tables on one question, with a note on how to read them.

    Parameters
    ----------
    title, note
        The heading, and a few sentences.
    pictures, tables
        What is shown, pictures first.
    key, numbers
        The name under which the numbers of the section stand in `metrics.json`, under `sections`,
        and the numbers: plain ones and texts, in lists and mappings.
    conclusions
        Sentences for the verdict.
    """

    title: str
    note: str
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    key: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    conclusions: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, Any]:
        """What `metrics.json` holds of the section; empty if there is nothing."""
        said = {"conclusions": [*self.conclusions]} if self.conclusions else {}
        return {**self.numbers, **said}
