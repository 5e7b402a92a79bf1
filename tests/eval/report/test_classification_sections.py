"""Sections of classifiers: one picture for each of what is compared, with the numbers given."""

import io

import numpy as np
from PIL import Image

from laplace_kit.eval.report import classification_sections as sections
from laplace_kit.eval.report.pictures import Picture

RNG = np.random.default_rng(0)
PROBS = {name: RNG.dirichlet([2.0, 1.0, 1.0], 30).astype(np.float32) for name in ("map", "other")}
Y = RNG.integers(0, 3, 30)


def captions(section):
    for picture in section.pictures:
        with Image.open(io.BytesIO(picture.png)) as image:
            assert min(image.size) > 300
    return [picture.caption for picture in section.pictures]


def test_reliability_of_every_set_and_predictor():
    values = {"map": {"ece": 0.125}, "other": {"ece": 0.25}}
    shifted = {"map": {"ece": 0.5}, "other": {"ece": 0.75}}
    found = sections.reliability(
        {"test set": PROBS, "noisy": PROBS},
        {"test set": Y, "noisy": Y},
        {"test set": values, "noisy": shifted},
        {"test set": None, "noisy": None},
    )
    assert captions(found) == [
        "MAP, test set: ECE 0.1250",
        "other, test set: ECE 0.2500",
        "MAP, noisy: ECE 0.5000",
        "other, noisy: ECE 0.7500",
    ]
    assert len({picture.file for picture in found.pictures}) == 4


def test_curves_quote_every_predictor():
    curve = (np.linspace(0.1, 1, 30), np.linspace(0, 0.5, 30))
    found = sections.risk_coverage(
        {"map": curve, "other": curve}, {"map": {"aurc": 0.1}, "other": {"aurc": 0.2}}
    )
    assert captions(found) == ["AURC: MAP 0.1000, other 0.2000"]


def test_the_epistemic_share_is_that_of_the_parts():
    parts = (np.full(30, 0.1), np.linspace(0.0, 0.6, 30))
    right, ones = {"other": PROBS["other"].argmax(1) == Y}, np.ones(30)
    found = sections.uncertainty({"other": parts}, right, ones)
    assert captions(found) == ["other, test set: epistemic share of the entropy 0.7500"]
    last = np.eye(30)[-1]
    found = sections.uncertainty({"other": parts}, right, last)
    assert captions(found) == [f"other, test set: epistemic share of the entropy {0.6 / 0.7:.4f}"]
    nothing = sections.uncertainty({"other": (np.zeros(30),) * 2}, right, ones)
    assert captions(nothing) == ["other, test set: epistemic share of the entropy 0.0000"]


def test_a_predictor_looks_alike_in_every_picture(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        sections.plots, "roc_curve", lambda ax, x, y, *, label, series: drawn.append(series)
    )
    curve = (np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    found = sections.roc_curves(
        "noise", {"max_probability": {"other": curve}}, {"other": {"auroc": 0.5}}, ["map", "other"]
    )
    assert drawn == [1], "as on the page, although the first knows nothing of this set"
    assert captions(found) == ["By largest probability, noise: AUROC other 0.5000"]


def test_pictures_of_two_predictors_have_the_same_axes(monkeypatch):
    figures = []

    def drawn(file, caption, figure, alt=""):
        figures.append(figure)
        return Picture(file, caption)

    monkeypatch.setattr(sections.pictures, "picture", drawn)
    inside = {"map": {"entropy": np.linspace(0, 0.1, 9)}, "other": {"entropy": np.ones(9)}}
    outside = {"map": {"entropy": np.linspace(0, 0.2, 9)}, "other": {"entropy": 2 * np.ones(9)}}
    measured = {name: {"auroc_entropy": 0.5} for name in inside}
    sections.score_histograms("far", inside, outside, measured, np.ones(9))
    parts = {name: (of, of) for name, of in (("map", np.ones(30)), ("other", 3 * np.ones(30)))}
    sections.uncertainty(parts, dict.fromkeys(parts, np.ones(30, bool)), np.ones(30))
    sections.confidence(PROBS, Y, {name: {"accuracy": 0.5} for name in PROBS}, None)
    sections.reliability(
        {"test set": PROBS},
        {"test set": Y},
        {"test set": {name: {"ece": 0.5} for name in PROBS}},
        {"test set": None},
    )
    assert len(figures) == 8
    for one, two in zip(figures[::2], figures[1::2], strict=True):
        for first, second in zip(one.axes, two.axes, strict=True):
            assert first.get_xlim() == second.get_xlim()
            assert first.get_ylim() == second.get_ylim()
