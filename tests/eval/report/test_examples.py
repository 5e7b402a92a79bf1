"""The examples shown are the ones that the rules name, and pictures are drawn of images alone."""

import numpy as np
import pytest

from laplace_kit.eval.report import examples

PROBS = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.3, 0.7]])
LABELS = np.array([0, 0, 0, 1])


def smooth(num, side):
    rows, columns = np.mgrid[:side, :side] / side
    phase = np.random.default_rng(0).uniform(0, 3, (num, 2, 1, 1))
    return np.sin(2 * rows + phase[:, 0]) + np.cos(2 * columns + phase[:, 1])


def test_classes_by_entropy_and_by_confidence_in_what_is_wrong():
    probs = {"map": PROBS[:, ::-1], "laplace": PROBS}
    unsure, wrong = examples.classification_galleries(probs, LABELS, "laplace")
    assert [example.index for example in unsure.examples] == [1, 3, 2, 0]
    assert [example.index for example in wrong.examples] == [2]
    assert wrong.predictors == ("MAP", "Laplace")
    assert wrong.examples[0].says == ("0 (80%)", "1 (80%)")
    assert wrong.examples[0].truth == "0"
    assert "predictions of Laplace with the highest confidence, of 1 in total" in wrong.note


def test_nothing_wrong_is_said():
    _, wrong = examples.classification_galleries(
        {"laplace": PROBS}, PROBS.argmax(axis=1), "laplace"
    )
    assert wrong.examples == ()
    assert wrong.note == "No prediction of Laplace on the test set is wrong."


def test_examples_of_weight_zero_are_not_shown():
    weights = np.array([1.0, 0.0, 0.0, 2.0])
    unsure, wrong = examples.classification_galleries(
        {"laplace": PROBS}, LABELS, "laplace", weights=weights
    )
    assert [example.index for example in unsure.examples] == [3, 0]
    assert wrong.examples == ()
    mean, y = np.zeros((3, 1)), np.array([[1.0], [5.0], [0.1]])
    _, far = examples.regression_galleries(
        {"map": mean}, {"map": np.ones((3, 1))}, y, "map", weights=np.array([1.0, 0.0, 1.0])
    )
    assert [example.index for example in far.examples] == [0, 2]


def test_numbers_by_deviation_and_by_miss():
    mean, y = np.zeros((3, 2)), np.array([[0.0, 1.0], [5.0, 0.0], [0.0, 0.1]])
    std = np.array([[1.0, 1.0], [2.0, 2.0], [0.1, 0.01]])
    unsure, far = examples.regression_galleries({"map": mean}, {"map": std}, y, "map")
    assert [example.index for example in unsure.examples] == [1, 0, 2]
    assert [example.index for example in far.examples] == [2, 1, 0]
    assert far.examples[0].truth == "0.100, output 1"
    assert far.examples[0].says == ("0.000 ± 0.010",)


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (smooth(5, 12), (5, 12, 12)),
        (smooth(5, 12)[..., None], (5, 12, 12)),
        (np.stack([smooth(5, 12)] * 3, axis=-1), (5, 12, 12, 3)),
        (smooth(5, 12).reshape(5, 144), (5, 12, 12)),
        (smooth(1, 28).reshape(1, 784), (1, 28, 28)),
    ],
)
def test_images_are_images(x, shape):
    assert examples.as_images(x).shape == shape


@pytest.mark.parametrize(
    "x",
    [
        None,
        {"image": smooth(5, 12)},
        smooth(5, 12)[:, :4],
        smooth(5, 12)[..., None, None],
        np.random.default_rng(0).normal(size=(64, 64)),
        np.random.default_rng(0).normal(size=(64, 64)) + np.arange(64) % 7,
        np.random.default_rng(0).normal(size=(64, 20, 10)).cumsum(axis=1),
        np.zeros((5, 64)),
        np.full((5, 64), "a"),
        np.ones((5, 60)),
    ],
)
def test_tables_and_sequences_are_not_images(x):
    assert examples.as_images(x) is None


def test_leading_values_are_named_by_their_place():
    x = {"a": np.arange(3.0), "b": np.arange(12.0).reshape(3, 2, 2), "c": np.array(["x"] * 3)}
    names, values = examples.leading_values(x)
    assert names == ("x['a']", "x['b'][0]", "x['b'][1]", "x['b'][2]", "x['b'][3]")
    np.testing.assert_array_equal(values[1], [1, 4, 5, 6, 7])
    assert examples.leading_values(None) == ((), None)


def test_each_picture_is_kept_once():
    probs = {"laplace": np.repeat(PROBS, 2, axis=0)}
    found = examples.classification_galleries(probs, np.repeat(LABELS, 2), "laplace", smooth(8, 12))
    shown = {example.index for gallery in found for example in gallery.examples}
    assert {image.file for image in examples.pictures(found)} == {
        f"example_{index}.png" for index in shown
    }
