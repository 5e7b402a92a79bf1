"""Reports of regressors: what is written, what is said, and what is refused."""

import numpy as np
import pytest

from laplace_kit.eval import report
from laplace_kit.eval.report import RegressionPredictions


def test_files(regressed, lonely):
    *_, written = regressed
    shared = {"index.html", "report.md", "metrics.json", "predictions.npz"}
    shared |= {"coverage.png", "risk_coverage.png"}
    assert {path.name for path in written.files} == shared | {
        "uncertainty_laplace.png",
        *(
            f"{kind}_{name}.png"
            for kind in ("band", "predicted", "pit")
            for name in ("map", "laplace")
        ),
    }
    assert {path.name for path in lonely.files} == shared | {
        f"{kind}_ensemble-5.png" for kind in ("predicted", "pit", "uncertainty")
    }


def test_verdict(regressed):
    use, first, of_map, of_laplace = regressed[-1].verdict
    assert use.startswith("Use Laplace: its NLL, a proper score, is significantly lower (")
    assert first.startswith("Against MAP, Laplace has a significantly lower NLL")
    assert of_map.startswith("MAP is over-confident by")
    assert of_laplace.startswith("Laplace is neither over- nor under-confident")


def test_a_report_replaces_an_older_one_byte_for_byte(tmp_path, regressed):
    predictions, y, first = regressed
    (tmp_path / "index.html").write_text("an older report")
    x = np.random.default_rng(0).uniform(-3, 3, size=(400, 1))
    written = report.regression_report(predictions, y, tmp_path, x=x)
    for ours, theirs in zip(written.files, first.files, strict=True):
        assert ours.read_bytes() == theirs.read_bytes(), ours.name


@pytest.mark.parametrize("x", [np.ones((3, 1)), np.array(["a", "b", "c"])])
def test_extreme_values_and_inputs_that_no_band_can_be_drawn_over(tmp_path, x):
    y = np.array([[0.0], [1.0], [2.0]], np.float32)
    predictions = {"map": RegressionPredictions(y + np.float32(1e30), np.ones_like(y))}
    written = report.regression_report(predictions, y, tmp_path, x=x)
    assert "band_map.png" not in {path.name for path in written.files}
    assert written.metrics["map"]["coverage_90"] == 0


def test_a_file_where_the_directory_should_be(tmp_path, regressed):
    predictions, y, _ = regressed
    file = tmp_path / "taken"
    file.write_text("mine")
    for directory in (file, file / "below"):
        with pytest.raises(
            ValueError, match=r"Found a file at .*taken, expected a directory.*choose"
        ):
            report.regression_report(predictions, y, directory)
    assert file.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": np.zeros(3)}, r"Found y of shape \(3,\) for mean of shape \(3, 1\), expected"),
        ({"y": np.array([[0.0], [np.nan], [2.0]])}, r"Found nan in y at \(1, 0\).*drop"),
        ({"mean": np.array([[0.0], [1.0], [np.inf]])}, r"Found inf in mean at \(2, 0\)"),
        ({"std": np.array([[1.0], [0.0], [1.0]])}, r"not positive, expected .*add the observation"),
    ],
)
def test_wrong_values_leave_no_report(tmp_path, changes, message):
    y = np.array([[0.0], [1.0], [2.0]])
    given = {"mean": y + 0.1, "std": np.ones_like(y), "y": y} | changes
    predictions = {"map": RegressionPredictions(given["mean"], given["std"])}
    with pytest.raises(ValueError, match=message):
        report.regression_report(predictions, given["y"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
