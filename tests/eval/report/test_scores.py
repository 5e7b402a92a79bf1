"""Scores of doubt are those of the metrics, each with its names."""

import numpy as np

from laplace_kit.eval.report.scores import SCORES, scores


def test_known_scores_by_name():
    probs = np.array([[0.5, 0.5], [0.9, 0.1]])
    found = scores(probs, np.array([0.1, 0.0]))
    np.testing.assert_allclose(found["max_probability"], [0.5, 0.1], rtol=1e-6)
    np.testing.assert_allclose(found["entropy"], -(probs * np.log(probs)).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["epistemic"], [0.1, 0.0])
    assert set(found) == set(SCORES)
    assert set(scores(probs, None)) == {"max_probability", "entropy"}
    assert len({score.suffix for score in SCORES.values()}) == len(SCORES)
