"""The command line: reports on the predictions of any model, comparisons, a demo, versions.

Invalid input ends with one line on standard error and exit code 1, as do requirements that are not
met, and wrong usage with 2. Slow imports are left to the commands that need them.
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from laplace_kit import __version__

if TYPE_CHECKING:
    from laplace_kit.eval.report import Report
    from laplace_kit.eval.report.files import StoredPredictions

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "matfree", "numpy")


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


def _as_text(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Return an argument decoded as UTF-8, whatever the locale is."""
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
    files: tuple[Path, ...], out: Path, title: str, seed: int, requirements: tuple[str, ...]
) -> None:
    """Write a calibration report on predictions.

    It consists of a page with pictures, and the metrics as JSON. Several files are several
    predictors for the same examples, each named after its file.
    """
    with _refusals(), _stages() as on_stage:
        on_stage("loading")
        from laplace_kit.eval.report.merge import read_all
        from laplace_kit.eval.report.requirements import failures, parse_all

        required = parse_all(requirements)
        on_stage("reading")
        stored = read_all(files)
        for one in required:
            one.check(stored.is_classification, stored.predictions)
        written = _write_report(stored, out, title, seed, on_stage)
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
        from laplace_kit.eval.report.merge import read_all

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
            written = _write_report(stored, out, title, seed, on_stage)
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
    facts = _facts()
    _echo(json.dumps(facts, indent=2) if as_json else _as_lines(facts))


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
    title: str,
    seed: int,
    on_stage: Callable[[str], None],
) -> "Report":
    from laplace_kit.eval.report import classification_report, regression_report

    if not stored.is_classification:
        return regression_report(
            stored.predictions,
            stored.y,
            directory,
            weights=stored.weights,
            x=stored.x,
            title=title,
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
        title=title,
        seed=seed,
        on_stage=on_stage,
    )


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


# --- this machine ------------------------------------------------------------------------------


def _facts() -> dict[str, Any]:
    """Return versions, devices and memory."""
    import jax

    from laplace_kit.memory import Limits

    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        message = " ".join(str(error).split())
        raise click.ClickException(f"JAX finds no device: {message}") from error
    return {
        "versions": {
            "laplace-kit": __version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
        "platform": platform.platform(),
        "devices": [
            {
                "platform": device.platform,
                "kind": device.device_kind,
                "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
            }
            for device in devices
        ],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "memory_budget_bytes": Limits().budget,
        "x64": bool(jax.config.jax_enable_x64),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _as_lines(facts: Mapping[str, Any]) -> str:
    """Return the facts as lines of text."""
    from laplace_kit.memory import readable

    lines = {name: version or "not installed" for name, version in facts["versions"].items()}
    lines["platform"] = facts["platform"]
    for k, device in enumerate(facts["devices"]):
        held = device["memory_bytes"]
        lines[f"device {k}"] = f"{device['platform']}, {device['kind']}" + (
            f", {readable(held)}" if held else ""
        )
    lines["memory of the machine"] = readable(facts["memory_bytes"])
    lines["memory for one operation"] = readable(facts["memory_budget_bytes"])
    lines["64-bit numbers"] = "on" if facts["x64"] else "off"
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())
