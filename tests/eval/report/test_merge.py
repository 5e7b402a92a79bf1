"""Several files about the same examples become one; what does not go together is refused."""

import numpy as np
import pytest

from laplace_kit.eval.report.merge import read_all

HALVES, LABELS = np.full((4, 2), 0.5), np.array([0, 1, 0, 1])
QUARTERS = np.stack([np.full(4, 0.25), np.full(4, 0.75)], axis=1)
MEAN, STD = np.arange(4.0), np.ones(4)


def save(path, **arrays):
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    return path


def test_predictors_side_by_side(tmp_path):
    (tmp_path / "c.csv").write_text("y,p\n0,0.75\n1,0.75\n0,0.75\n1,0.75\n")
    paths = [
        save(tmp_path / "a.npz", y=LABELS, probs=HALVES),
        save(
            tmp_path / "b.npz",
            **{"y": LABELS, "x": MEAN, "map/probs": HALVES, "laplace/probs": QUARTERS},
            **{"shifted/dark/y": LABELS[:2], "map/shifted/dark/probs": HALVES[:2]},
        ),
        tmp_path / "c.csv",
    ]
    merged = read_all(paths)
    assert list(merged.predictions) == ["a", "map", "laplace", "c"]
    np.testing.assert_array_equal(merged.y, LABELS)
    np.testing.assert_array_equal(merged.x, MEAN)
    np.testing.assert_array_equal(merged.predictions["c"].probs, QUARTERS)
    np.testing.assert_array_equal(merged.shifted_labels["dark"], LABELS[:2])
    assert read_all(paths[:1]).x is None


def test_files_of_one_name_are_told_apart_by_their_directories(tmp_path):
    paths = [save(tmp_path / of / "predictions.npz", y=LABELS, probs=HALVES) for of in "ab"]
    assert list(read_all(paths).predictions) == ["a-predictions", "b-predictions"]
    with pytest.raises(ValueError, match=r"a second predictor named 'a-predictions'.*rename"):
        read_all([*paths, paths[0]])


def test_targets_may_differ_by_rounding(tmp_path):
    y = np.array([0.1, 0.2, 1e9, 0.0])
    paths = [
        save(tmp_path / "a.npz", y=y, mean=MEAN, std=STD),
        save(tmp_path / "b.npz", y=y.astype(np.float32), mean=MEAN, std=STD),
    ]
    assert list(read_all(paths).predictions) == ["a", "b"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": LABELS[::-1], "probs": HALVES}, r"found 1 at y\[0\], expected 0, as .*same order"),
        ({"y": LABELS[:3], "probs": HALVES[:3]}, r"y of shape \(3,\), expected \(4,\), as .*a.npz"),
        ({"y": LABELS, "probs": np.full((4, 5), 0.2)}, r"of shape \(4, 5\) on the test set"),
        (
            {"y": MEAN, "mean": MEAN, "std": STD},
            r"means and standard deviations, expected probabilities, as in .*a.npz",
        ),
        (
            {"y": LABELS, "probs": HALVES, "ood/noise/probs": HALVES[:2]},
            r"of shape \(2, 2\) on ood/noise, expected \(3, 2\)",
        ),
        (
            {"y": LABELS, "probs": HALVES, "shifted/s/probs": HALVES, "shifted/s/y": LABELS[::-1]},
            r"at shifted/s/y\[0\], expected 0, as in another file",
        ),
    ],
)
def test_files_that_do_not_go_together(tmp_path, arrays, message):
    first = {"y": LABELS, "probs": HALVES, "ood/noise/probs": HALVES[:3]}
    first |= {"shifted/s/probs": HALVES, "shifted/s/y": LABELS}
    paths = [save(tmp_path / "a.npz", **first), save(tmp_path / "b.npz", **arrays)]
    with pytest.raises(ValueError, match=message) as error:
        read_all(paths)
    assert str(error.value).startswith(f"{paths[1]}: found ")
