"""Everything on a page except its metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from laplace_kit.eval.report.examples import Gallery
from laplace_kit.eval.report.look import Look
from laplace_kit.eval.report.section import Section


@dataclass(frozen=True)
class PosteriorCard:
    """Facts about a posterior: a summary, a table of parameters, warnings and notes.

    Parameters
    ----------
    facts
        Facts by name, as text.
    columns, layers
        The column names and the rows of a table, one row for each parameter.
    warnings, notes
        Warnings, each with a remedy; and what is good to know, but changes no prediction much.
    """

    facts: Mapping[str, str]
    columns: tuple[str, ...] = ()
    layers: tuple[tuple[str, ...], ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def as_card(card: PosteriorCard | Mapping[str, str] | None) -> PosteriorCard | None:
    """Return a card, also for a mapping of facts."""
    return card if card is None or isinstance(card, PosteriorCard) else PosteriorCard(card)


@dataclass(frozen=True)
class Content:
    """Everything on a page except its metrics."""

    look: Look
    sections: tuple[Section, ...]
    galleries: tuple[Gallery, ...]
    card: PosteriorCard | None

    def rendered(self) -> "Content":
        """Return the content with its pictures in the format that was asked for."""
        return replace(
            self,
            sections=tuple(
                replace(
                    section,
                    pictures=tuple(
                        picture.rendered(self.look.picture_format) for picture in section.pictures
                    ),
                )
                for section in self.sections
            ),
        )
