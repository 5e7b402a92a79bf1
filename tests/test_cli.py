"""The command line: what its page says runs as printed, and wrong input ends in one line."""

import io
import json
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from laplace_kit import cli, demo, memory
from laplace_kit.cli import main
from laplace_kit.eval.report.table import METRICS

ROOT = Path(__file__).parents[1]
COMMANDS = ("report", "compare", "demo", "info")


HALVES, LABELS = np.full((4, 2), 0.5), np.array([0, 1, 0, 1])


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def run(*arguments):
    """Run a command; what would end in a traceback is raised."""
    return CliRunner().invoke(
        main, [str(argument) for argument in arguments], catch_exceptions=False
    )


def assert_refused(result, *words):
    """Assert that a command ended with one line about an error, the words in it, and code 1."""
    assert result.exit_code == 1, result.output
    *_, line = result.stderr.splitlines()
    assert line.startswith("Error: ")
    for word in words:
        assert str(word) in line


# --- the page of the command line ----------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run what docs/command_line.md says, in its order; return the directory and the results."""
    text = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    directory, namespace, results = tmp_path_factory.mktemp("page"), {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        # The demonstration has a test of its own; here, the report before it stands for its own.
        patch.setattr(demo, "demo", lambda out: (None, _Written(Path(out))))
        for kind, block in re.findall(r"^```(python|sh)\n(.*?)^```$", text, re.S | re.M):
            if kind == "python":
                exec(block, namespace)
                continue
            for line in block.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "laplace-kit"
                expected = re.search(r"# exit code (\d)", line)
                results[" ".join(arguments)] = result = run(*arguments)
                assert result.exit_code == int(expected[1] if expected else 0), result.output
    return directory, results


class _Written:
    """A report that says where it would be."""

    verdict = ("Laplace is calibrated.",)

    def __init__(self, directory):
        self.index = directory / "index.html"

    def __str__(self):
        return "a table"


def output(page, start):
    """Return what the one command that starts so has printed."""
    (found,) = (result.output for line, result in page[1].items() if line.startswith(start))
    return found


def test_the_page_shows_every_command(page):
    assert {line.split()[0] for line in page[1]} == set(COMMANDS)


def test_reports_of_classifiers_and_of_a_regressor(page):
    directory, _ = page
    for out, predictors in (
        ("report", ["sharp", "calibrated"]),
        ("report-regression", ["regressor"]),
    ):
        numbers = json.loads((directory / out / "metrics.json").read_text(encoding="utf-8"))
        assert numbers["predictors"] == predictors
        assert (directory / out / "index.html").is_file()
    said = output(page, "report sharp")
    assert "sharp is over-confident by" in said
    assert "calibrated is neither over- nor under-confident" in said
    assert said.endswith(f"report: {Path('report') / 'index.html'}\n")
    assert "Sharp or calibrated?" in (directory / "report" / "index.html").read_text(
        encoding="utf-8"
    )


def test_the_numbers_are_those_of_the_predictions_in_float64(page):
    directory, _ = page
    numbers = json.loads((directory / "report" / "metrics.json").read_text(encoding="utf-8"))
    stored = np.load(directory / "sharp.npz")
    logits, y = stored["logits"], stored["y"]
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert numbers["num_examples"] == len(y)
    assert numbers["sharp"]["accuracy"] == pytest.approx(
        np.mean(logs.argmax(axis=1) == y), rel=1e-10
    )
    assert numbers["sharp"]["nll"] == pytest.approx(-logs[np.arange(len(y)), y].mean(), rel=1e-10)


def test_comparison_says_which_is_better_and_whether_by_more_than_chance(page):
    lines = output(page, "compare").splitlines()
    assert lines[0] == "Test set: calibrated against sharp"
    assert lines[1].split() == ["sharp", "calibrated", "difference", "95%", "interval"]
    judged = {line.split()[0]: line for line in lines[2:] if line}
    assert judged["NLL"].endswith("  better")
    assert judged["Accuracy"].endswith("  not significant")
    assert any("calibrated has a significantly lower NLL" in line for line in lines)


def test_comparison_reads_what_a_report_wrote(page):
    directory, _ = page
    stored = directory / "report" / "predictions.npz"
    result = run("compare", stored)
    assert result.exit_code == 0, result.output
    assert result.output == output(page, "compare")


def test_demonstration_prints_the_verdict_and_where_the_report_is(page):
    said = output(page, "demo")
    assert said.endswith(
        f"a table\n\nLaplace is calibrated.\n\nreport: {Path('demo/index.html')}\n"
    )


def test_information_is_that_of_this_machine(page):
    facts = json.loads(output(page, "info --json"))
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["devices"][0]["platform"] == jax.local_devices()[0].platform
    assert facts["memory_budget_bytes"] == memory.Limits().budget
    assert facts["x64"] is False
    lines = page[1]["info"].output.splitlines()
    assert f"jax  {jax.__version__}" in [re.sub(" {2,}", "  ", line) for line in lines]
    assert any(line.endswith(memory.readable(facts["memory_bytes"])) for line in lines)


def test_missing_files_are_named(page):
    assert_refused(page[1]["report missing.npz"], "missing.npz: No such file or directory")


def test_the_page_of_reports_explains_every_metric():
    explained = re.findall(
        r"^\| ([^`|]+) \|", (ROOT / "docs" / "report.md").read_text(encoding="utf-8"), re.M
    )
    words = {name for row in explained for name in row.split(", ")}
    assert {metric.label.split(",")[0] for metric in METRICS.values()} <= words


# --- requirements and stages --------------------------------------------------------------------


def test_requirements_end_in_code_one_and_a_line_each(tmp_path):
    file = save(tmp_path / "a.npz", y=LABELS, probs=HALVES)
    out = tmp_path / "out"
    result = run("report", file, "--out", out, "--require", "nll<0.7", "--require", "ece<0.1")
    assert result.exit_code == 0, result.output
    conditions = ("--require", "accuracy>0.5", "--require", "nll<0.7", "--require", "a/brier<0.1")
    result = run("report", file, "--out", out, *conditions)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "Failed: accuracy>0.5: a's Accuracy is 0.5000.",
        "Failed: a/brier<0.1: a's Brier score is 0.5000.",
    ]
    assert (out / "index.html").is_file()
    assert_refused(run("report", file, "--out", out, "--require", "ecee<1"), "did you mean 'ece'?")
    assert_refused(run("report", file, "--out", out, "--require", "rmse<1"), "for classification")


def test_stages_are_shown_on_a_terminal_only(tmp_path, monkeypatch):
    file = save(tmp_path / "a.npz", y=LABELS, probs=HALVES)
    assert run("report", file, "--out", tmp_path / "out").stderr == ""
    monkeypatch.setattr(cli, "_is_terminal", lambda: True)
    result = run("report", file, "--out", tmp_path / "out")
    # Without the codes that clear the line, which need a real terminal.
    shown = [part.removesuffix(" ...") for part in result.stderr.split("\r") if part]
    assert shown == ["loading", "reading", "resampling", "drawing", "writing"]


def test_reports_are_quick_to_start(tmp_path):
    """Processor seconds of a whole run on 10,000 examples, on one core that others use too."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(10_000, 10))
    y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    file = save(tmp_path / "a.npz", y=y, logits=logits)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = [sys.executable, "-m", "laplace_kit", "report", str(file), "--out", str(tmp_path)]
    subprocess.run(program, check=True, cwd=ROOT, stdout=subprocess.PIPE)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["report", "compare"])
def test_wrong_files_end_in_one_line_and_write_nothing(command, tmp_path):
    out = tmp_path / "out"
    bad = save(tmp_path / "bad.npz", y=LABELS, probs=2 * HALVES)
    assert_refused(run(command, bad, "--out", out), f"{bad}: found probs[0] with the sum 2")
    (tmp_path / "bad.csv").write_text("y,p\n1,0.5\n1,x\n")
    assert_refused(run(command, tmp_path / "bad.csv", "--out", out), "'x' as p in line 3")
    assert_refused(run(command, tmp_path, "--out", out), tmp_path)
    assert not out.exists()


def test_comparison_needs_two(tmp_path):
    one = save(tmp_path / "a.npz", y=LABELS, probs=HALVES)
    assert_refused(run("compare", one), "one predictor, ['a'], ", "two", "laplace-kit report")
    other = save(tmp_path / "b.npz", y=LABELS[::-1], probs=HALVES)
    assert_refused(run("compare", one, other), other, "same examples")


def test_directories_that_cannot_be_written(tmp_path):
    file = save(tmp_path / "a.npz", y=LABELS, probs=HALVES)
    assert_refused(run("report", file, "--out", file), file, "expected a directory")
    assert_refused(run("demo", "--out", file), file, "expected a directory")


def test_names_that_a_report_cannot_have(tmp_path):
    file = save(tmp_path / "schema.npz", y=LABELS, probs=HALVES)
    assert_refused(run("report", file, "--out", tmp_path / "out"), "'schema'", "choose another")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/out"), "Error: /out: Permission denied\n"),
        (OSError("disk gone"), "Error: disk gone\n"),
        (KeyboardInterrupt(), "\nAborted!\n"),
    ],
)
def test_what_the_system_refuses_and_interrupts_are_quiet(error, line, monkeypatch):
    def stop(out):
        raise error

    monkeypatch.setattr(demo, "demo", stop)
    result = run("demo")
    assert result.exit_code == 1
    assert result.stderr.endswith(line)


def test_without_a_device_the_reason_is_told(monkeypatch):
    def fail():
        raise RuntimeError("Unable to initialize\nbackend 'cuda'")

    monkeypatch.setattr(jax, "local_devices", fail)
    assert_refused(run("info"), "Unable to initialize backend 'cuda'")


@pytest.mark.parametrize(
    "arguments", [["report"], ["compare"], ["rport", "a"], ["report", "a.npz", "--oout", "b"]]
)
def test_wrong_usage(arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Example: laplace-kit {command}\b", result.output)
    assert re.search(rf"^  {command} +[A-Z].*\.$", run("--help").output, re.M)


# --- the program itself --------------------------------------------------------------------------


def test_as_a_module(tmp_path):
    def call(*arguments, **options):
        program = [sys.executable, "-m", "laplace_kit", *arguments]
        return subprocess.run(program, text=True, cwd=ROOT, stderr=subprocess.PIPE, **options)

    (tmp_path / "bad.npz").write_bytes(b"PK no archive")
    done = call("report", str(tmp_path / "bad.npz"), stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "cannot be read as an archive" in done.stderr

    reader, writer = os.pipe()
    os.close(reader)
    done = call("--help", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_program_itself_imports_nothing_heavy():
    code = (
        "import sys, types; package = types.ModuleType('laplace_kit');"
        f"package.__path__ = [{str(ROOT / 'laplace_kit')!r}]; package.__version__ = '0';"
        "sys.modules['laplace_kit'] = package; import laplace_kit.cli;"
        "print(*{'jax', 'numpy', 'matplotlib'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# --- locales -------------------------------------------------------------------------------------


def test_titles_and_files_are_text_whatever_the_locale_is(tmp_path):
    """In a C locale Python hands on bytes of UTF-8 as lone surrogates."""
    title, stem = (text.encode().decode("ascii", "surrogateescape") for text in ("Güte", "modèle"))
    file = save(tmp_path / f"{stem}.npz", y=LABELS, probs=HALVES)
    result = run("report", file, "--out", tmp_path / "out", "--title", title)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<h1>Güte</h1>" in page
    assert "modèle" in page
    other = run("report", file, "--out", tmp_path / "out", "--title", "G\udcfcte")  # Latin-1
    assert other.exit_code == 2
    assert "expected text in UTF-8" in other.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_a_terminal_lacks_is_escaped(encoding, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    cli._echo("1 ± 2 of \udce4")
    sys.stdout.flush()
    kept = "±" if encoding == "utf-8" else "\\xb1"
    assert written.getvalue().decode() == f"1 {kept} 2 of \\udce4\n"


# --- what stands on a page ------------------------------------------------------------------------


def test_names_costs_date_and_format_of_a_report(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    path = save(tmp_path / "a.npz", y=rng.integers(0, 2, 40), probs=rng.uniform(size=40))
    options = ("--class-names", 'benign,"malignant, bad"', "--costs", "1", "5", "--format", "svg")
    result = run("report", path, "--out", tmp_path / "out", *options, "--date", "today")
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert numbers["names"] == {"classes": ["benign", "malignant, bad"]}
    assert numbers["sections"]["thresholds"]["costs"] == [1.0, 5.0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", numbers["made"]["date"])
    assert numbers["made"]["data"] == "a.npz"
    assert (tmp_path / "out" / "positive_roc.svg").exists()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert cli._shown_date("today") == "1970-01-02"
    assert (cli._shown_date("none"), cli._shown_date("in spring")) == ("", "in spring")
    assert_refused(
        run("report", path, "--out", tmp_path / "no", "--class-names", "a,b,c"),
        "Found 3 of class_names (a, b, c), expected 2",
    )
    assert_refused(run("report", path, "--costs", "0", "1"), "Found costs=(0.0, 1.0)")
    result = run("report", path, "--class-names", "cat\ndog")
    assert result.exit_code == 2
    assert "expected names on one line, with commas between them" in " ".join(result.output.split())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "9" * 30)
    assert_refused(
        run("report", path, "--out", tmp_path / "no", "--date", "today"),
        f"Found SOURCE_DATE_EPOCH={'9' * 30}, expected seconds since 1970; unset it, or pass",
    )
    assert not (tmp_path / "no").exists()


def test_name_and_unit_of_a_target(tmp_path):
    rng = np.random.default_rng(0)
    path = save(tmp_path / "a.npz", y=rng.normal(size=30), mean=np.zeros(30), std=np.ones(30))
    named = ("--target-name", "height", "--target-unit", "cm", "--date", "none")
    assert run("report", path, "--out", tmp_path / "out", *named).exit_code == 0
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert numbers["names"] == {"targets": ["height"], "unit": "cm"}
    assert numbers["made"]["date"] == ""
    assert "in cm" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    refused = run("report", path, "--out", tmp_path / "no", "--class-names", "a,b")
    assert_refused(refused, "none for a regression")
    assert not (tmp_path / "no").exists()
