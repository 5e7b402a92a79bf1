"""The command line: reports on the predictions of any model, comparisons, a demo, versions.

Invalid input ends with one line on standard error and exit code 1, as do requirements that are not
met, and wrong usage with 2. Slow imports are left to the commands that need them.
"""

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from laplace_kit import __version__

if TYPE_CHECKING:
    from laplace_kit.eval.report import Report
    from laplace_kit.eval.report.files import StoredPredictions
    from laplace_kit.eval.report.look import Look


class _Ordered(click.Group):
    """Commands in the order of their definition, the most useful first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


_FORMATS = """\b
A file is an .npz archive, made for example by
    numpy.savez("predictions.npz", y=labels, probs=probabilities)
    numpy.savez("predictions.npz", y=targets, mean=mean, std=std)
or a .csv table with the columns y, p_0, p_1, ... or y, mean, std.
"""


@click.group(
    cls=_Ordered, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_FORMATS
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Measure the calibration of the predictions of any model.

    "laplace-kit demo" shows what a report looks like.
    """


_files = click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path)
)


def _as_text(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return an argument decoded as UTF-8, whatever the locale is."""
    if value is None:
        return None
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError as error:
        raise click.BadParameter(
            f"found {value!r}, expected text in UTF-8; set the locale of the terminal to UTF-8."
        ) from error


_title = click.option(
    "--title",
    default="Calibration report",
    show_default=True,
    callback=_as_text,
    help="The heading of the page.",
)


_seed = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The seed of the bootstrap's resamples.",
)


def _as_list(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    """Return the names in one argument, separated by commas and quoted where they hold one."""
    if value is None:
        return None
    try:
        return next(csv.reader([_as_text(ctx, param, value)], skipinitialspace=True), [])
    except csv.Error as error:
        raise click.BadParameter(
            f"found {value!r}, expected names on one line, with commas between them ({error})."
        ) from error


@main.command(epilog="Example: laplace-kit report map.npz laplace.npz --out report/")
@_files
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report"),
    show_default=True,
    help="The directory of the report; created if it does not exist.",
)
@_title
@click.option(
    "--class-names",
    callback=_as_list,
    metavar="NAMES",
    help="The names of the classes, such as 'benign,malignant'.",
)
@click.option(
    "--feature-names",
    callback=_as_list,
    metavar="NAMES",
    help="The names of the columns of the inputs, with commas between them.",
)
@click.option(
    "--target-name",
    callback=_as_list,
    metavar="NAME",
    help="The name of the label or target; of several outputs, with commas between them.",
)
@click.option(
    "--target-unit", callback=_as_text, metavar="UNIT", help="The unit of the targets, such as mm."
)
@click.option(
    "--data-name",
    callback=_as_text,
    metavar="TEXT",
    help="What the test set is, in a few words; by default the names of the files.",
)
@click.option(
    "--date",
    default="today",
    show_default=True,
    callback=_as_text,
    metavar="TEXT",
    help="The date on the page: 'today' (or that of SOURCE_DATE_EPOCH), 'none', or any text.",
)
@click.option(
    "--format",
    "picture_format",
    type=click.Choice(["png", "svg"]),
    default="png",
    show_default=True,
    help="The format of the pictures.",
)
@click.option(
    "--costs",
    type=(float, float),
    default=(1.0, 1.0),
    metavar="FP FN",
    help="The costs of a false positive and of a false negative, for two classes.",
)
@_seed
@click.option(
    "--require",
    "requirements",
    multiple=True,
    metavar="CONDITION",
    help="Fail unless a metric of the test set satisfies a condition, such as 'ece<0.05' for all "
    "predictors, or 'laplace/nll<=0.3' for one; can be repeated.",
)
def report(
    files: tuple[Path, ...],
    out: Path,
    title: str,
    class_names: list[str] | None,
    feature_names: list[str] | None,
    target_name: list[str] | None,
    target_unit: str | None,
    data_name: str | None,
    date: str,
    picture_format: Literal["png", "svg"],
    costs: tuple[float, float],
    seed: int,
    requirements: tuple[str, ...],
) -> None:
    """Write a calibration report on predictions.

    It consists of a page with pictures, and the metrics as JSON. Several files are several
    predictors for the same examples, each named after its file.
    """
    with _refusals(), _stages() as on_stage:
        on_stage("loading")
        from laplace_kit.eval.report.look import Look
        from laplace_kit.eval.report.merge import read_all, with_names
        from laplace_kit.eval.report.names import named
        from laplace_kit.eval.report.requirements import failures, parse_all

        required = parse_all(requirements)
        names = named(class_names, feature_names, target_name, target_unit)
        data_name = data_name or _encodable_names(files)
        look = Look(title, data_name, _shown_date(date), picture_format, costs)
        on_stage("reading")
        stored = with_names(read_all(files), names)
        for one in required:
            one.check(stored.is_classification, stored.predictions)
        written = _write_report(stored, out, look, seed, on_stage)
    _show(written)
    if failed := failures(required, written.metrics):
        for line in failed:
            click.echo(_encodable(line, sys.stderr), err=True)
        sys.exit(1)


@main.command(epilog="Example: laplace-kit compare map.npz laplace.npz")
@_files
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write a report to this directory too."
)
@_title
@_seed
def compare(files: tuple[Path, ...], out: Path | None, title: str, seed: int) -> None:
    """Compare predictions and test which are better.

    The files hold predictions for the same examples, with at least two predictors. Each is compared
    with the first by the paired bootstrap: a difference is significant if its interval excludes
    zero.
    """
    with _refusals(), _stages() as on_stage:
        on_stage("loading")
        from laplace_kit.eval.report.look import Look
        from laplace_kit.eval.report.merge import read_all

        look = Look(title, _encodable_names(files), _shown_date("today"))
        on_stage("reading")
        stored = read_all(files)
        if len(stored.predictions) < 2:
            raise ValueError(
                f"Found one predictor, {[*stored.predictions]}, expected at least two; pass "
                "another file, or use laplace-kit report."
            )
        if out is None:
            on_stage("resampling")
            written, numbers = None, _measure(stored, seed)
        else:
            written = _write_report(stored, out, look, seed, on_stage)
            numbers = written.metrics
    _echo(_differences(numbers))
    if written is not None:
        _echo(f"\nreport: {written.index}")


@main.command(epilog="Example: laplace-kit demo --out demo/")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("laplace-kit-demo"),
    show_default=True,
    help="The directory of the report; created if it does not exist.",
)
def demo(out: Path) -> None:
    """Train, fit and report on synthetic data.

    It takes less than a minute and needs neither data nor network access.
    """
    from laplace_kit import demo as demonstration

    click.echo("training, fitting, tuning and measuring: less than a minute ...", err=True)
    with _refusals():
        _, written = demonstration.demo(out)
    _show(written)


@main.command(epilog="Example: laplace-kit info --json")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, for programs.")
def info(as_json: bool) -> None:
    """Print versions, devices and memory.

    Include the output in bug reports.
    """
    from laplace_kit import machine

    with _refusals():
        facts = machine.facts()
    _echo(json.dumps(facts, indent=2) if as_json else machine.as_lines(facts))


# --- reports -----------------------------------------------------------------------------------


def _echo(text: object) -> None:
    """Print text, with escapes for characters that the terminal's encoding lacks."""
    click.echo(_encodable(text, sys.stdout))


def _encodable(text: object, stream: object) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return str(text).encode(encoding, "backslashreplace").decode(encoding)


def _is_terminal() -> bool:
    return sys.stderr.isatty()


@contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    """Show the current stage on a terminal, on one line that is cleared at the end."""
    if not _is_terminal():
        yield lambda stage: None
        return
    try:
        yield lambda stage: click.echo(f"\r\033[K{stage} ...", nl=False, err=True)
    finally:
        click.echo("\r\033[K", nl=False, err=True)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn errors of the library or the system into one line and exit code 1."""
    try:
        yield
    except ValueError as error:
        notes = getattr(error, "__notes__", ())
        raise click.ClickException(" ".join([str(error), *notes])) from error
    except OSError as error:
        where = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        raise click.ClickException(f"{where}{error.strerror or error}") from error


def _write_report(
    stored: "StoredPredictions",
    directory: Path,
    look: "Look",
    seed: int,
    on_stage: Callable[[str], None],
) -> "Report":
    from laplace_kit.eval.report import classification_report, regression_report

    names = stored.names
    if not stored.is_classification:
        return regression_report(
            stored.predictions,
            stored.y,
            directory,
            weights=stored.weights,
            x=stored.x,
            feature_names=names.features or None,
            target_name=names.targets or None,
            target_unit=names.unit or None,
            title=look.title,
            data_name=look.data_name,
            date=look.date,
            picture_format=look.picture_format,
            seed=seed,
            on_stage=on_stage,
        )
    return classification_report(
        stored.predictions,
        stored.y,
        directory,
        shifted_labels=stored.shifted_labels,
        weights=stored.weights,
        shifted_weights=stored.shifted_weights,
        x=stored.x,
        class_names=names.classes or None,
        feature_names=names.features or None,
        target_name=names.targets or None,
        title=look.title,
        data_name=look.data_name,
        date=look.date,
        picture_format=look.picture_format,
        costs=look.costs,
        seed=seed,
        on_stage=on_stage,
    )


def _encodable_names(files: tuple[Path, ...]) -> str:
    """Return the names of files as text that can be written in UTF-8."""
    return ", ".join(os.fsencode(path.name).decode("utf-8", "replace") for path in files)


def _shown_date(text: str) -> str:
    """Return the date to show: of today or of `SOURCE_DATE_EPOCH`, none, or the text itself."""
    if text != "today":
        return "" if text == "none" else text
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = float(epoch) if epoch.isdecimal() else None
    try:
        now = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise ValueError(
            f"Found SOURCE_DATE_EPOCH={epoch}, expected seconds since 1970; unset it, or pass "
            "--date."
        ) from error
    return now.date().isoformat()


def _measure(stored: "StoredPredictions", seed: int) -> dict[str, Any]:
    from laplace_kit.eval.report.measures import measure_classification, measure_regression

    if not stored.is_classification:
        return measure_regression(stored.predictions, stored.y, weights=stored.weights, seed=seed)
    return measure_classification(
        stored.predictions,
        stored.y,
        stored.shifted_labels,
        weights=stored.weights,
        shifted_weights=stored.shifted_weights,
        seed=seed,
    )


def _show(written: "Report") -> None:
    _echo(written)
    _echo("")
    for sentence in written.verdict:
        _echo(sentence)
    _echo(f"\nreport: {written.index}")


def _differences(numbers: Mapping[str, Any]) -> str:
    """Return tables of the differences to the first predictor on each set, and the verdict."""
    from laplace_kit.eval.report.table import display_name, groups
    from laplace_kit.eval.report.verdict import verdict

    level = f"{numbers['bootstrap']['level']:.0%} interval"
    blocks = []
    for group in groups(numbers):
        first, *others = map(display_name, group.predictors)
        for k, other in enumerate(others):
            rows = [("", first, other, "difference", level, "")]
            rows += [
                (
                    row.metric.label,
                    row.cells[0].text,
                    row.cells[k + 1].text,
                    row.changes[k].text,
                    row.changes[k].interval,
                    row.changes[k].judgement,
                )
                for row in group.rows
                if row.changes
            ]
            blocks.append(f"{group.title}: {other} against {first}\n{_aligned(rows)}")
    return "\n\n".join([*blocks, "\n".join(verdict(numbers))])


def _aligned(rows: list[tuple[str, ...]]) -> str:
    """Return rows as aligned text: the first and last columns to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                f"  {row[0]:<{widths[0]}}",
                *(f"{cell:>{width}}" for cell, width in zip(row[1:-1], widths[1:-1], strict=True)),
                row[-1],
            ]
        ).rstrip()
        for row in rows
    )
