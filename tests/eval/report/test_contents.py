"""Arrays of a file are what they should be, or their first fault is named with its place."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from laplace_kit.eval.report import contents
from laplace_kit.eval.report.contents import Contents


def holding(lines=None, **arrays) -> Contents:
    return Contents(Path("a.npz"), {k: np.asarray(v) for k, v in arrays.items()}, lines)


def test_probabilities_in_every_form():
    logits = np.random.default_rng(0).normal(size=(5, 3)) * 100
    probs = softmax(logits, axis=1)
    np.testing.assert_array_equal(contents.probabilities(holding(probs=probs), "probs"), probs)
    found = contents.probabilities(holding(logits=logits), "logits")
    np.testing.assert_allclose(found, probs, rtol=1e-12)
    p = expit(logits[:, 0])
    expected = np.stack([1 - p, p], axis=1)
    np.testing.assert_array_equal(contents.probabilities(holding(probs=p), "probs"), expected)
    found = contents.probabilities(holding(logits=logits[:, 0]), "logits")
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_labels_as_integers_and_as_distributions():
    probs = np.full((3, 2), 0.5)
    assert contents.labels(holding(y=[0, 1, 1]), "y", probs).tolist() == [0, 1, 1]
    assert contents.labels(holding(y=[True, False, True]), "y", probs).tolist() == [1, 0, 1]
    np.testing.assert_array_equal(contents.labels(holding(y=probs), "y", probs), probs)
    of_table = holding(lines=(2, 3, 4), y=[0.0, 1.0, 1.0])
    assert contents.labels(of_table, "y", probs).dtype.kind == "i"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"probs": [[0.5, 0.6]]}, r"probs\[0\] with the sum 1.1 .*softmax"),
        ({"probs": [[0.9, 0.2, 0.5], [0.1, 0.8, 0.5]]}, r"the sum 1.6 .*; transpose it"),
        ({"probs": [[0.5, np.nan]]}, r"nan at probs\[0, 1\], expected finite"),
        ({"probs": [[np.inf, np.nan]]}, r"and 1 more such values"),
        ({"probs": [0.5, 1.5]}, r"1.5 at probs\[1\], expected p\(y = 1\)"),
        ({"probs": [[0.5], [0.2]]}, r"shape \(2, 1\), expected \(N, C\).*drop the last axis"),
        ({"probs": np.zeros((0, 3))}, r"shape \(0, 3\), expected one example"),
        ({"probs": ["a", "b"]}, r"dtype <U1, expected real numbers"),
        ({"probs": [1 + 2j]}, r"dtype complex128, expected real numbers"),
    ],
)
def test_what_are_no_probabilities(arrays, message):
    with pytest.raises(ValueError, match=message):
        contents.probabilities(holding(**arrays), "probs")


def test_probabilities_are_no_logits():
    for logits in ([[0.0, 0.0]], [[3.0, -2.0]], [[0.5, 0.5], [0.5, 0.4]], [0.5, 0.5]):
        contents.probabilities(holding(logits=logits), "logits")
    with pytest.raises(ValueError, match=r"logits whose rows all sum to one.*as probs"):
        contents.probabilities(holding(logits=[[0.5, 0.5], [0.9, 0.1]]), "logits")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1], r"y of shape \(2,\) for probabilities of shape \(3, 2\)"),
        ([0, 1, 2], r"the label 2 at y\[2\], expected integers from 0 to 1"),
        ([0.0, 1.0, 1.0], r"y of dtype float64 .*expected integer labels"),
    ],
)
def test_what_are_no_labels(y, message):
    with pytest.raises(ValueError, match=message):
        contents.labels(holding(y=y), "y", np.full((3, 2), 0.5))


def test_regression_arrays():
    file = holding(y=[1.0, 2.0], mean=[1, 2], std=[0.5, 0.0], odd=[1.0], minus=[1.0, -1.0])
    y = contents.targets(file, "y")
    assert y.shape == (2, 1)
    assert contents.means(file, "mean", y).dtype.kind == "f"
    assert contents.deviations(file, "std", y, positive=False).ravel().tolist() == [0.5, 0.0]
    with pytest.raises(ValueError, match=r"0 at std\[1, 0\], expected positive.*noise"):
        contents.deviations(file, "std", y, positive=True)
    with pytest.raises(ValueError, match=r"-1 at minus\[1, 0\], expected no negative"):
        contents.deviations(file, "minus", y, positive=True)
    with pytest.raises(ValueError, match=r"odd of shape \(1,\), expected \(2, 1\)"):
        contents.means(file, "odd", y)
    with pytest.raises(ValueError, match=r"\(2, 1, 1\), expected \(N,\) or \(N, C\)"):
        contents.targets(holding(y=np.zeros((2, 1, 1))), "y")


def test_an_epistemic_part_is_no_larger_than_the_whole():
    std = np.array([[1.0], [2.0]])
    # Rounded to bfloat16, a part may seem larger.
    file = holding(y=[0.0, 0.0], rounded=[1.004, 0.0], larger=[0.5, 2.5], negative=[-0.5, 1.0])
    np.testing.assert_array_equal(contents.epistemic_parts(file, "rounded", std), [[1.004], [0.0]])
    with pytest.raises(ValueError, match=r"2.5 at larger\[1, 0\] where std is 2, .*noise"):
        contents.epistemic_parts(file, "larger", std)
    with pytest.raises(ValueError, match=r"-0.5 at negative\[0, 0\], expected no negative"):
        contents.epistemic_parts(file, "negative", std)


def test_information_and_inputs():
    file = holding(y=[0, 1], epistemic=[0.1, -1e-4], wrong=[0.1, -0.1], x=np.zeros((2, 4)), z=[1])
    probs = np.full((2, 2), 0.5)
    assert contents.information(file, "epistemic", probs).shape == (2,)
    with pytest.raises(ValueError, match=r"-0.1 at wrong\[1\]"):
        contents.information(file, "wrong", probs)
    bits = holding(rounded=[0.0, np.log(2) + 1e-4], bits=[0.0, 0.9])
    assert contents.information(bits, "rounded", probs)[1] > np.log(2)
    with pytest.raises(ValueError, match=r"0.9 at bits\[1\], expected at most 0.6931 .*bits by"):
        contents.information(bits, "bits", probs)
    assert contents.inputs(file, "x").shape == (2, 4)
    with pytest.raises(ValueError, match=r"z of shape \(1,\), expected inputs with the leading"):
        contents.inputs(file, "z")


def test_log_probabilities_of_logits_and_as_they_are():
    logits = np.array([[300.0, 0.0, -20.0], [1.0, 2.0, 3.0]])
    probs = softmax(logits, axis=1)
    expected = log_softmax(logits, axis=1)
    found = contents.log_probabilities(holding(logits=logits), "logits", probs)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    held = holding(probs=probs, log_probs=expected)
    assert contents.log_probabilities(held, "log_probs", probs) is held.arrays["log_probs"]
    binary = contents.log_probabilities(holding(logits=np.array([40.0])), "logits", np.ones((1, 2)))
    np.testing.assert_allclose(binary, [[-40.0, 0.0]], atol=1e-12)
    wrong = holding(log_probs=expected[::-1])
    with pytest.raises(ValueError, match=r"at log_probs\[0, 0\] where the probability is 1, "):
        contents.log_probabilities(wrong, "log_probs", probs)
    with pytest.raises(ValueError, match=r"log_probs of shape \(1, 3\), expected \(2, 3\)"):
        contents.log_probabilities(holding(log_probs=expected[:1]), "log_probs", probs)
