"""Pages, pictures and `metrics.json` agree with each other, and the page needs nothing else."""

import base64
import datetime
import html.parser
import io
import json
import shlex

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from laplace_kit.cli import main
from laplace_kit.eval.report import ClassPredictions, classification_report, files, page, table
from laplace_kit.eval.report.look import Look
from laplace_kit.eval.report.page import PosteriorCard
from laplace_kit.eval.report.section import Section


class Page(html.parser.HTMLParser):
    """What a test asks of a page: its tags, the numbers it shows and the words around them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.numbers, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.extend(attributes)
        if tag == "data":
            self.numbers.append([float(dict(attributes)["value"]), None])

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "data" and self.numbers[-1][1] is None:
            self.numbers[-1][1] = data
        self.words.append(data.strip())


@pytest.fixture(params=["classified", "regressed"])
def written(request):
    return request.getfixturevalue(request.param)[-1]


@pytest.fixture
def shown(written):
    return Page(written.index.read_text(encoding="utf-8"))


def sources(shown):
    return [value for name, value in shown.attributes if name == "src"]


def test_metrics_json_is_what_the_report_holds(written):
    path = written.directory / "metrics.json"
    assert json.loads(path.read_text(encoding="utf-8")) == written.metrics
    assert path in written.files
    assert str(written) == table.text_table(written.metrics)


def test_numbers_of_the_page_are_those_of_metrics_json(written, shown):
    numbers = json.loads((written.directory / "metrics.json").read_text(encoding="utf-8"))
    sets = [{name: numbers[name] for name in numbers["predictors"]}]
    sets += [of for kind in ("shifted", "ood") for of in numbers.get(kind, {}).values()]
    is_classes = numbers["task"] == "classification"
    shown_first = ("accuracy", "nll", "brier", "ece", "aurc") if is_classes else ("rmse", "nll")
    shown_first += () if is_classes else ("crps", "coverage_90")
    values = [
        of[name][key]
        for of in sets
        for key in sorted(
            dict.fromkeys(key for by_key in of.values() for key in by_key),
            key=lambda key: key not in shown_first,  # the others are folded below them
        )
        for name in of
        if key in of[name]
    ]
    assert [value for value, _ in shown.numbers] == values
    assert [text.replace("−", "-") for _, text in shown.numbers] == [*map(table.number, values)]


def test_links_lead_to_the_set_that_they_name(tmp_path, classified):
    titles = ("Detection, noise1", "Detection, noise2", "Detection, Noise1", "Detection, \u00fc")
    sections = tuple(Section(title, "", ()) for title in titles)
    content = page.Content(Look("Links"), sections, (), None)
    written = page.write(tmp_path, classified[-1].metrics, content, lambda path: path.touch())
    found = Page(written.index.read_text(encoding="utf-8")).attributes
    links = [value.removeprefix("#") for name, value in found if name == "href"]
    anchors = [value for name, value in found if name == "id"]
    assert len({*anchors}) == len(anchors) == len(titles) + 5
    assert [link for link in links if link in anchors] == anchors


def test_page_holds_metrics_json_the_verdict_and_the_intervals(written, shown):
    assert any(word.startswith("{") and json.loads(word) == written.metrics for word in shown.words)
    assert set(written.verdict) <= set(shown.words)
    intervals = written.metrics["bootstrap"]["test"]["intervals"]
    for of in intervals.values():
        for bounds in of.values():
            assert table.interval(bounds).replace("-", "−") in shown.words


def test_page_needs_nothing_but_itself(written, shown):
    text = written.index.read_text(encoding="utf-8")
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    links = [value for name, value in shown.attributes if name in ("src", "href", "srcset")]
    anchors = {f"#{value}" for name, value in shown.attributes if name == "id"}
    assert links
    assert all(link.startswith("data:") or link in anchors for link in links)
    assert "script" not in shown.tags


def test_pictures_are_valid_and_the_same_in_the_page(written, shown):
    paths = [path for path in written.files if path.suffix == ".png"]
    prefix = "data:image/png;base64,"
    inlined = {base64.b64decode(link.removeprefix(prefix)) for link in sources(shown)}
    assert inlined == {path.read_bytes() for path in paths}
    for path in paths:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
            assert image.format == "PNG"
            if path.name.startswith("example_"):
                assert image.size == (8, 8)
                continue
            assert 500 < image.width < 1500
            assert 400 < image.height < 1500
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10, "not one flat colour"


def test_every_picture_has_words_that_stand_in_for_it(shown):
    alternatives = [value for name, value in shown.attributes if name == "alt"]
    assert len(alternatives) == len(sources(shown))
    named = ("Laplace", "MAP", "ensemble", "Example")
    assert all(any(name in text for name in named) for text in alternatives)


def test_directory_holds_the_files_and_nothing_half_written(written):
    assert written.index in written.files
    assert sorted(written.directory.iterdir()) == sorted(written.files)


def test_words_of_the_caller_are_shown_as_they_are(classified):
    shown = Page(classified[-1].index.read_text(encoding="utf-8"))
    expected = {"Three <classes> & more", "structure", "full", "<script>", "<b>bold</b>"}
    assert expected | {"dense.kernel", "2.5", "the mode is not the mode."} <= set(shown.words)


def test_predictions_can_be_read_again(classified):
    predictions, y, written = classified
    found = files.read_predictions(written.directory / "predictions.npz")
    np.testing.assert_array_equal(found.y, y)
    for name, of in predictions.items():
        np.testing.assert_array_equal(found.predictions[name].probs, of.probs)


def test_facts_alone_make_a_card():
    assert page.as_card(None) is None
    assert page.as_card({"a": "b"}) == PosteriorCard({"a": "b"})
    assert page.as_card(PosteriorCard({"a": "b"}, warnings=("c",))).warnings == ("c",)


def test_a_report_is_shown_short_and_with_a_link(classified):
    written = classified[-1]
    assert repr(written) == f"Report({str(written.index)!r}, map, laplace, ensemble)"
    found = written._repr_html_()
    assert f'<a href="{written.index}">' in found
    assert all(word in found for word in ("Use Laplace", "Accuracy", "<pre>"))


def test_markdown_holds_verdict_metrics_pictures_and_words_as_they_are(written):
    text = (written.directory / "report.md").read_text(encoding="utf-8")
    for path in written.files:
        if path.suffix == ".png" and not path.name.startswith("example_"):
            assert f"]({path.name})" in text
    plain = text.replace("\\", "")
    assert all(sentence in plain for sentence in written.verdict)
    for name in written.metrics["predictors"]:
        assert table.number(written.metrics[name]["nll"]) in text
    assert "<script>" not in text
    widths = {}
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        bars = {line.replace("\\|", "").count("|") for line in lines}
        widths[block] = len(bars)
    assert max(widths.values()) == 1, "every row of a table has as many columns"


def test_date_data_and_versions_are_on_the_page_and_can_be_left_out(tmp_path, classified):
    predictions, y, whole = classified
    one = {"map": report_predictions(predictions)}
    assert whole.metrics["made"]["date"] == whole.metrics["made"]["data"] == ""
    written = classification_report(
        one, y, tmp_path, date=datetime.date(2031, 2, 3), data_name="<digits>", picture_format="svg"
    )
    page_text = written.index.read_text(encoding="utf-8")
    assert "&lt;digits&gt; · 2031-02-03" in page_text
    assert "data:image/svg+xml;base64," in page_text
    assert {path.suffix for path in written.files} == {".html", ".md", ".json", ".npz", ".svg"}
    made = written.metrics["made"]
    assert {"laplace_kit", "JAX", "NumPy", "Python"} == set(made["versions"])
    assert "--date 2031-02-03 --data-name '<digits>' --format svg" in made["command"]


def report_predictions(predictions):
    return ClassPredictions(predictions["map"].probs)


def test_the_command_on_the_page_makes_the_same_numbers(tmp_path, monkeypatch, classified):
    predictions, y, _ = classified
    first = classification_report(
        {"a": report_predictions(predictions)},
        y,
        tmp_path,
        title="It's",
        class_names=["x", "y", "z"],
    )
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(first.metrics["made"]["command"])
    assert program == "laplace-kit"
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    again = tmp_path / "again"
    for name in ("index.html", "report.md", "metrics.json"):
        ours, theirs = ((where / name).read_text(encoding="utf-8") for where in (again, tmp_path))
        if name == "metrics.json":
            ours, theirs = json.loads(ours), json.loads(theirs)
            assert {**ours, "made": None} == {**theirs, "made": None}
        else:
            assert "It&#39;s" in ours or "It's" in ours


@pytest.mark.parametrize("shared", [False, True])
def test_a_process_that_reports_for_itself_writes_for_itself(
    shared, tmp_path, classified, monkeypatch
):
    monkeypatch.setattr(page, "is_first", lambda: False)
    predictions, y, _ = classified
    one = {"map": report_predictions(predictions)}
    written = classification_report(one, y, tmp_path / "own", shared=shared)
    assert written.index.exists() != shared
