"""Sections of regressors: one picture for each of what is compared, with the numbers given."""

import io

import numpy as np
from PIL import Image

from laplace_kit.eval.report import regression_sections as sections

RNG = np.random.default_rng(0)
MEAN = {name: RNG.normal(size=20) for name in ("map", "other")}
STD = {name: np.full(20, 0.5) for name in MEAN}
Y = RNG.normal(size=20)


def captions(section):
    for picture in section.pictures:
        with Image.open(io.BytesIO(picture.png)) as image:
            assert min(image.size) > 300
    return [picture.caption for picture in section.pictures]


def test_a_picture_for_every_predictor():
    values = {"map": {"rmse": 1.5}, "other": {"rmse": 0.5}}
    intervals = {name: (MEAN[name] - STD[name], MEAN[name] + STD[name]) for name in MEAN}
    found = sections.predicted(MEAN, STD, intervals, Y, values)
    assert captions(found) == ["MAP, test set: RMSE 1.5000", "other, test set: RMSE 0.5000"]
    assert [picture.file for picture in found.pictures] == [
        "predicted_map.png",
        "predicted_other.png",
    ]


def test_coverage_curves_quote_every_predictor():
    values = {"map": {"coverage_90": 0.5}, "other": {"coverage_90": 0.875}}
    levels = np.array([0.25, 0.5])
    found = sections.coverage(levels, {"map": levels, "other": levels}, values)
    assert captions(found) == ["Coverage of 90% intervals: MAP 0.5000, other 0.8750"]


def test_the_epistemic_share_is_that_of_the_variances():
    found = sections.uncertainty(MEAN, STD, {"other": np.full(20, 0.3)}, Y, np.ones(20))
    assert captions(found) == ["other, test set: epistemic share of the variance 0.3600"]
