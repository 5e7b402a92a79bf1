"""The page as Markdown, for version control, issues and pull requests."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from laplace_kit.eval.report.advice import next_steps
from laplace_kit.eval.report.content import Content
from laplace_kit.eval.report.examples import Gallery
from laplace_kit.eval.report.glossary import glossary
from laplace_kit.eval.report.section import Section, Table
from laplace_kit.eval.report.table import Group, display_name, groups
from laplace_kit.eval.report.verdict import verdict

_ESCAPED = str.maketrans({character: f"\\{character}" for character in "\\`*_{}[]<>#|"})


def markdown(metrics: Mapping[str, Any], content: Content) -> str:
    """Return the page as Markdown with pictures as files beside it."""
    return "\n\n".join(_blocks(metrics, content)) + "\n"


def _blocks(metrics: Mapping[str, Any], content: Content) -> Iterator[str]:
    yield f"# {_text(content.look.title)}"
    made, num = metrics["made"], metrics["num_examples"]
    facts = [f"{metrics['task']}, {num:,} test {'example' if num == 1 else 'examples'}"]
    facts += [text for text in (made["data"], made["date"]) if text]
    yield _text(" · ".join(facts))
    yield "## Verdict"
    yield _bullets(verdict(metrics))
    if steps := next_steps(metrics):
        yield "## Next steps"
        for step in steps:
            yield _text(step.text)
            if step.code:
                yield f"```python\n{step.code}\n```"
    yield "## Metrics"
    for group in groups(metrics):
        yield f"### {_text(group.title)}"
        yield _table(*_metrics(group))
    for section in content.sections:
        yield from _section(section)
    for gallery in content.galleries:
        yield from _gallery(gallery)
    if content.card:
        yield "## Posterior"
        yield _bullets(f"Warning: {text}." for text in content.card.warnings)
        yield _bullets(f"Note: {text}." for text in content.card.notes)
        yield _table(("", ""), content.card.facts.items())
    yield "## Glossary"
    yield _bullets(f"{name}: {meaning}" for name, meaning in glossary(metrics).items())
    yield "## Reproduction"
    yield f"```sh\n{made['command']}\n```"
    yield _text(", ".join(f"{name} {version}" for name, version in made["versions"].items()))


def _metrics(group: Group) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    first, *others = map(display_name, group.predictors)
    columns = ("", first, *others, *(f"{name} − {first}" for name in others))
    rows = (
        (
            row.metric.label,
            *(
                f"{cell.text} ({cell.interval})" if cell.interval else cell.text
                for cell in row.cells
            ),
            *(f"{of.text} ({of.judgement})" if of.judgement else of.text for of in row.changes),
            *("",) * (0 if row.changes else len(others)),
        )
        for row in group.rows
    )
    return columns, rows


def _section(section: Section) -> Iterator[str]:
    yield f"## {_text(section.title)}"
    yield _text(section.note)
    for picture in section.pictures:
        yield f"![{_text(picture.alt)}]({picture.file})"
    for table in section.tables:
        yield from _titled(table)


def _titled(table: Table) -> Iterator[str]:
    if table.title:
        yield f"### {_text(table.title)}"
    if table.note:
        yield _text(table.note)
    yield _table(table.columns, table.rows)


def _gallery(gallery: Gallery) -> Iterator[str]:
    yield f"## {_text(gallery.title)}"
    yield _text(gallery.note)
    if gallery.examples:
        columns = ("Example", gallery.truth, *gallery.predictors, *gallery.features)
        rows = ((str(e.index), e.truth, *e.says, *e.values) for e in gallery.examples)
        yield _table(columns, rows)


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = [*columns]
    lines = [_line(columns), _line(["---"] * len(columns))]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell if cell == '---' else _text(cell) for cell in cells)} |"


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {_text(text)}" for text in texts)


def _text(text: str) -> str:
    """Return text on one line, with what Markdown would read as markup escaped."""
    return " ".join(text.split()).translate(_ESCAPED)
