"""The section about groups: who is worst, in words and pictures, of classifiers and regressors."""

import json

import numpy as np
import pytest

from laplace_kit.eval.report import (
    ClassPredictions,
    RegressionPredictions,
    classification_report,
    regression_report,
)
from laplace_kit.eval.report.group_sections import group_section, group_sections


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(3), 400).astype("float32")
    y = (probs.cumsum(axis=1) < rng.uniform(size=(400, 1))).sum(axis=1).clip(0, 2)
    site = np.array(["north", "<west>"])[rng.integers(0, 2, 400)]
    y = np.where(site == "<west>", rng.integers(0, 3, 400), y)
    predictions = {
        "map": ClassPredictions(probs),
        "laplace": ClassPredictions(probs**0.5 / (probs**0.5).sum(axis=1, keepdims=True)),
    }
    groups = {"site": site, "parity": np.arange(400) % 2}
    directory = tmp_path_factory.mktemp("groups")
    return classification_report(predictions, y, directory, groups=groups)


def test_the_worst_group_is_in_the_page_and_in_the_numbers(written):
    page = written.index.read_text()
    assert "map is worst for site &lt;west&gt;" in page or "MAP is worst for site" in page
    assert "<west>" not in page
    numbers = json.loads((written.directory / "metrics.json").read_text())["groups"]
    assert [*numbers] == ["site", "parity"]
    west = numbers["site"]["<west>"]
    assert west["gaps"]["map"]["nll"][0] > 0
    assert west["gaps"]["map"]["nll"][3] <= 0.05
    assert west["num_examples"] + numbers["site"]["north"]["num_examples"] == 400
    names = {file.name for file in written.files}
    assert {
        "groups_0_nll.png",
        "groups_1_overconfidence.png",
        "groups_3_overconfidence.png",
    } <= names
    assert "significantly different: &lt;west&gt;" in page


def test_regressors_by_group(tmp_path):
    rng = np.random.default_rng(1)
    mean, codes = np.zeros((300, 1)), np.arange(300) % 3
    y = rng.normal(size=(300, 1)) * np.where(codes == 2, 3.0, 1.0)[:, None]
    found = regression_report(
        {"map": RegressionPredictions(mean, mean + 1)}, y, tmp_path, groups=codes
    )
    gap = found.metrics["groups"]["group"]["2"]["gaps"]["map"]["coverage_90"]
    assert gap[0] < 0
    assert gap[3] <= 0.05
    assert (tmp_path / "groups_1_coverage_90.png").exists()


def test_many_groups_are_cut_in_words_and_pictures():
    """31 groups differ, of which five are named and 30 drawn."""
    one = {"nll": 1.0, "overconfidence": 0.1}
    group = {
        "num_examples": 1,
        "map": one,
        "intervals": {"map": {}},
        "gaps": {"map": {key: [0.5, 0.1, 0.9, 0.01] for key in one}},
    }
    measured = {"site": {f"s{number}": group for number in range(31)}}
    section = group_section(measured, "classification", {"map": one})
    assert section.note.startswith("The metrics of each group, of the 30 with most examples, the")
    assert "significantly different: s0, s1, s2, s3, s4 and 26 more" in section.pictures[0].caption
    assert "(p of a group = 0.01)" in section.conclusions[0]
    few = group_section({"site": {"a": group}}, "classification", {"map": one})
    assert few.note.startswith("The metrics of each group, the largest number")


def test_without_groups_there_is_no_section():
    assert group_sections({"task": "regression"}, {}) == ()
