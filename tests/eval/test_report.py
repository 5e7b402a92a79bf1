"""Reports: page, plots and `metrics.json` agree with each other and with the predictions."""

import base64
import html.parser
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.stats import norm

from laplace_kit.eval import report, summary
from laplace_kit.eval.report import ClassPredictions, RegressionPredictions


def sharpen(probs, power):
    raised = probs**power
    return raised / raised.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """Return a report on labels as frequent as "laplace" claims; "map" sharpens what it claims."""
    rng = np.random.default_rng(0)
    claims = np.array([[0.9, 0.06, 0.04], [0.8, 0.15, 0.05], [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    honest = np.repeat(claims, 500, axis=0).astype(np.float32)
    y = np.concatenate([np.repeat([0, 1, 2], np.rint(500 * claim).astype(int)) for claim in claims])
    shuffled = rng.permutation(2000)
    honest, y = honest[shuffled], y[shuffled]
    foreign = rng.dirichlet([9.0, 9.0, 9.0], size=300).astype(np.float32)
    predictions = {
        name: ClassPredictions(
            probs=sharpen(honest, power),
            shifted={"half": jnp.asarray(sharpen(honest[:500], power))},
            ood={"noise": sharpen(foreign, power)},
        )
        for name, power in (("map", 3), ("laplace", 1))
    }
    written = report.classification_report(
        predictions,
        y,
        tmp_path_factory.mktemp("reports") / "new" / "digits",
        shifted_labels={"half": y[:500]},
        title="Three <classes> & more",
        card={"structure": "full", "<script>": "<b>bold</b>"},
    )
    return predictions, y, written


@pytest.fixture(scope="module")
def regressed(tmp_path_factory):
    """Return a report on a sine whose deviation "laplace" knows and "map" halves."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, size=(400, 1))
    mean, epistemic, noise = np.sin(x), 0.1 * np.abs(x), 0.2
    std = np.sqrt(epistemic**2 + noise**2)
    y = mean + std * rng.normal(size=x.shape)
    predictions = {
        "map": RegressionPredictions(mean, std / 2),
        "laplace": RegressionPredictions(mean, std, epistemic),
    }
    return (
        predictions,
        y,
        report.regression_report(predictions, y, tmp_path_factory.mktemp("sine"), x=x),
    )


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


def table_order(metrics):
    """Return the values of `metrics.json` as a table reads them: set, metric, then predictor."""
    names = [name for name in metrics if name not in summary.RESERVED]
    sets = [
        {name: metrics[name] for name in names},
        *metrics.get("shifted", {}).values(),
        *metrics.get("ood", {}).values(),
    ]
    return [of[name][key] for of in sets for key in of[names[0]] for name in names]


@pytest.fixture(params=["classified", "regressed"])
def written(request):
    return request.getfixturevalue(request.param)[-1]


def test_metrics_json_is_what_the_report_holds(written):
    path = written.directory / "metrics.json"
    assert json.loads(path.read_text()) == written.metrics
    assert path in written.files


def test_numbers_of_the_page_are_those_of_metrics_json(written):
    shown = Page(written.index.read_text()).numbers
    values = table_order(json.loads((written.directory / "metrics.json").read_text()))
    assert [value for value, _ in shown] == values
    assert [text for _, text in shown] == [summary.number(value) for value in values]


def test_page_contains_metrics_json_and_the_verdict(written):
    words = Page(written.index.read_text()).words
    assert any(word.startswith("{") and json.loads(word) == written.metrics for word in words)
    assert set(written.verdict) <= set(words)


def test_page_needs_nothing_but_itself(written):
    text = written.index.read_text()
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    assert links
    assert all(value.startswith("data:") for value in links)
    assert "script" not in page.tags


def test_pictures_are_valid_and_the_same_in_the_page(written):
    pictures = [path for path in written.files if path.suffix == ".png"]
    links = [v for name, v in Page(written.index.read_text()).attributes if name == "src"]
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(link.removeprefix(prefix)) for link in links] == [
        path.read_bytes() for path in pictures
    ]
    for path in pictures:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
            assert image.format == "PNG"
            assert 500 < image.width < 1500
            assert 400 < image.height < 1500
            assert len(image.convert("RGB").getcolors(1 << 20)) > 10, "not one flat colour"


def test_every_picture_has_words_that_stand_in_for_it(written):
    alternatives = [v for name, v in Page(written.index.read_text()).attributes if name == "alt"]
    assert len(alternatives) == sum(path.suffix == ".png" for path in written.files)
    assert all("Laplace" in text or "MAP" in text for text in alternatives)


def test_directory_holds_the_files_and_nothing_half_written(written):
    assert written.index in written.files
    assert sorted(written.directory.iterdir()) == sorted(written.files)


def test_classification_files_and_keys(classified):
    _, _, written = classified
    assert {path.name for path in written.files} == {
        "index.html",
        "metrics.json",
        *(
            f"{kind}_{name}{where}.png"
            for name in ("map", "laplace")
            for kind, where in (
                ("reliability", ""),
                ("reliability", "@half"),
                ("confidence", ""),
                ("ood", "@noise"),
            )
        ),
    }
    metrics = written.metrics
    assert list(metrics) == [
        *("schema", "task", "num_examples", "map", "laplace", "shifted", "ood")
    ]
    assert (metrics["schema"], metrics["task"]) == (1, "classification")
    assert metrics["num_examples"] == 2000
    keys = {"accuracy", "confidence", "nll", "ece", "mce", "ace", "brier"}
    assert set(metrics["map"]) == set(metrics["shifted"]["half"]["laplace"]) == keys
    assert set(metrics["ood"]["noise"]["map"]) == {"auroc"}


def test_regression_files_and_keys(regressed):
    _, _, written = regressed
    assert {path.name for path in written.files} == {
        *("index.html", "metrics.json", "coverage.png"),
        *(f"{kind}_{name}.png" for kind in ("band", "predicted") for name in ("map", "laplace")),
    }
    assert list(written.metrics) == ["schema", "task", "num_examples", "map", "laplace"]
    assert written.metrics["task"] == "regression"


def test_classification_metrics_against_numpy(classified):
    predictions, y, written = classified
    for where, of, labels in (("map", "probs", y), ("half", "shifted", y[:500])):
        probs = getattr(predictions["map"], of)
        probs = np.asarray(probs["half"] if where == "half" else probs, float)
        found = (
            written.metrics["shifted"]["half"]["map"] if where == "half" else written.metrics["map"]
        )
        likelihood = np.take_along_axis(probs, labels[:, None], axis=1)
        np.testing.assert_allclose(found["nll"], -np.log(likelihood).mean(), rtol=1e-5)
        np.testing.assert_allclose(found["accuracy"], (probs.argmax(1) == labels).mean(), rtol=1e-6)
        np.testing.assert_allclose(found["confidence"], probs.max(1).mean(), rtol=1e-6)
        brier = ((probs - np.eye(3)[labels]) ** 2).sum(axis=1).mean()
        np.testing.assert_allclose(found["brier"], brier, rtol=1e-5)


def test_out_of_distribution_auroc_compares_with_the_test_set(classified):
    predictions, _, written = classified
    for name, of in predictions.items():
        inside, outside = 1 - of.probs.max(axis=1), 1 - of.ood["noise"].max(axis=1)
        above = (outside[:, None] > inside).mean() + 0.5 * (outside[:, None] == inside).mean()
        found = written.metrics["ood"]["noise"][name]["auroc"]
        np.testing.assert_allclose(found, above, rtol=1e-5)
        np.testing.assert_allclose(
            report.out_of_distribution_score(of.probs), inside, rtol=1e-6, atol=1e-7
        )


def test_regression_metrics_against_scipy(regressed):
    predictions, y, written = regressed
    for name, of in predictions.items():
        z = (y - of.mean) / of.std
        crps = of.std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
        expected = {
            "rmse": np.sqrt(np.mean((y - of.mean) ** 2)),
            "nll": -norm.logpdf(y, of.mean, of.std).sum(axis=1).mean(),
            "crps": crps.mean(),
            "coverage_90": (np.abs(z) <= norm.ppf(0.95)).mean(),
            "chi_squared": np.mean(z**2),
        }
        assert written.metrics[name] == pytest.approx(expected, rel=1e-4)


def test_verdict_tells_the_calibrated_predictor_from_the_over_confident(classified):
    *_, written = classified
    first, of_map, of_laplace, *_ = written.verdict
    assert first.startswith("Laplace has the lower NLL")
    assert "and the lower ECE" in first
    assert of_map.startswith("MAP is over-confident by")
    assert of_laplace.startswith("Laplace is neither over- nor under-confident")
    assert written.metrics["laplace"]["ece"] < 1e-6
    gap = written.metrics["map"]["confidence"] - written.metrics["map"]["accuracy"]
    assert f"over-confident by {100 * gap:.1f} points" in of_map


def test_verdict_of_the_regression(regressed):
    first, of_map, of_laplace = regressed[-1].verdict
    assert first.startswith("Laplace has the lower NLL")
    assert of_map.startswith("MAP is over-confident by")
    assert of_laplace.startswith("Laplace is neither over- nor under-confident")


def test_words_of_the_caller_are_shown_as_they_are(classified):
    page = Page(classified[-1].index.read_text())
    assert {"Three <classes> & more", "structure", "full", "<script>", "<b>bold</b>"} <= set(
        page.words
    )


def test_report_reads_as_its_table(classified):
    _, _, written = classified
    assert str(written) == summary.text_table(written.metrics)
    assert "MAP" in str(written).splitlines()[0]


def tiny(**changes):
    """Return valid arguments of a small regression report, some of them changed."""
    y = np.array([[0.0], [1.0], [2.0]])
    arguments = {"mean": y + 0.1, "std": np.ones_like(y), "y": y} | changes
    return {"map": RegressionPredictions(arguments["mean"], arguments["std"])}, arguments["y"]


def test_one_predictor_of_two_outputs_over_an_existing_report(tmp_path):
    values = np.arange(6.0).reshape(3, 2)
    predictions = {"ensemble-5": RegressionPredictions(values, np.ones((3, 2)))}
    (tmp_path / "index.html").write_text("an older report")
    written = report.regression_report(predictions, values, tmp_path, x=values)
    assert "an older report" not in written.index.read_text()
    assert {path.name for path in written.files} == {
        *("predicted_ensemble-5.png", "coverage.png", "metrics.json", "index.html")
    }
    assert written.metrics["ensemble-5"]["nll"] == pytest.approx(np.log(2 * np.pi))


def test_overflow_becomes_null_and_is_said(tmp_path):
    predictions, y = tiny(mean=np.array([[1e30], [1.0], [2.0]], np.float32))
    written = report.regression_report(predictions, y, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["map"]["nll"] is None
    assert "not finite" in written.index.read_text()


def test_a_file_where_the_directory_should_be(tmp_path):
    file = tmp_path / "taken"
    file.write_text("mine")
    for directory in (file, file / "below"):
        with pytest.raises(
            ValueError, match=r"Found a file at .*taken, expected a directory.*choose"
        ):
            report.regression_report(*tiny(), directory)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.zeros(3)}, r"Found y of shape \(3,\) for mean of shape \(3, 1\), expected"),
        ({"y": np.array([[0.0], [np.nan], [2.0]])}, r"Found nan in y at \(1, 0\).*drop"),
        ({"mean": np.array([[0.0], [1.0], [np.inf]])}, r"Found inf in mean at \(2, 0\)"),
        ({"std": np.array([[1.0], [0.0], [1.0]])}, r"not positive, expected .*add the observation"),
    ],
)
def test_wrong_regression_values_leave_no_report(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        report.regression_report(*tiny(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


HALVES = np.full((4, 2), 0.5, np.float32)
LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ({}, "Found no predictions, expected"),
        ({"ood": ClassPredictions(HALVES)}, "Found the name 'ood', expected .*choose another"),
        ({"../map": ClassPredictions(HALVES)}, "part of a file's name"),
        (
            {"map": ClassPredictions(HALVES, ood={"a b": HALVES})},
            "Found the name 'a b', expected letters",
        ),
        (
            {"map": ClassPredictions(HALVES, shifted={"rotated": HALVES})},
            r"Found \['rotated'\] as the shifted sets of 'map', expected \[\].*`shifted_labels`",
        ),
        (
            {
                "map": ClassPredictions(HALVES, ood={"noise": HALVES}),
                "laplace": ClassPredictions(HALVES),
            },
            r"Found \[\] as the ood sets of 'laplace', expected \['noise'\].*the same sets",
        ),
        ({"map": ClassPredictions(HALVES[:3])}, r"Found y of shape \(4,\).*expected"),
    ],
)
def test_predictions_that_do_not_fit_together(tmp_path, predictions, message):
    with pytest.raises(ValueError, match=message):
        report.classification_report(predictions, LABELS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_errors_say_which_predictor_and_set_they_are_about(tmp_path):
    predictions = {
        "map": ClassPredictions(HALVES, shifted={"rotated": HALVES}),
        "laplace": ClassPredictions(HALVES, shifted={"rotated": 2 * HALVES}),
    }
    with pytest.raises(ValueError, match="that sum to one") as caught:
        report.classification_report(
            predictions, LABELS, tmp_path, shifted_labels={"rotated": LABELS}
        )
    assert caught.value.__notes__ == ["This is about the predictor 'laplace' on 'rotated'."]
