"""Reports that several test files look at, each written once."""

import numpy as np
import pytest

from laplace_kit.eval import report
from laplace_kit.eval.report import ClassPredictions, PosteriorCard, RegressionPredictions, measures

NUM = 400

LONG = "an_unusually.long+name-" * 5


def sharpened(probs, power):
    raised = probs**power
    return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


def classifiers(names=("map", "laplace", "ensemble"), shifted="rotated", ood="noise"):
    """Return predictions and labels as frequent as the second claims; the first sharpens them."""
    rng = np.random.default_rng(0)
    claims = np.array([[0.9, 0.06, 0.04], [0.8, 0.15, 0.05], [0.7, 0.2, 0.1], [0.5, 0.3, 0.2]])
    honest = np.repeat(claims, NUM // 4, axis=0)
    counts = np.rint(NUM / 4 * claims).astype(int)
    y = np.concatenate([np.repeat([0, 1, 2], of) for of in counts])
    shuffled = rng.permutation(NUM)
    honest, y = honest[shuffled], y[shuffled]
    foreign = rng.dirichlet([9.0, 9.0, 9.0], size=150)
    predictions = {}
    for name, power in zip(names, (3.0, 1.0, 1.5), strict=False):
        known = power != 3.0
        predictions[name] = ClassPredictions(
            sharpened(honest, power),
            {shifted: sharpened(honest, 2 * power)},
            {ood: sharpened(foreign, power)},
            rng.uniform(0.0, 0.1, NUM).astype(np.float32) if known else None,
            {ood: rng.uniform(0.2, 0.5, 150).astype(np.float32)} if known else {},
        )
    return predictions, y, {shifted: y}


def images():
    """Return smooth images, `(N, 8, 8)`."""
    rows, columns = np.mgrid[:8, :8] / 7
    phases = np.random.default_rng(1).uniform(0, 3, (NUM, 2, 1, 1))
    return np.sin(2 * rows + phases[:, 0]) * np.sin(2 * columns + phases[:, 1])


def regressors(num_outputs=1, names=("map", "laplace")):
    """Return predictions of a sine whose deviation the last knows and the first halves."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, size=(NUM, 1))
    mean = np.repeat(np.sin(x), num_outputs, axis=1)
    epistemic = np.broadcast_to(0.1 * np.abs(x), mean.shape)
    std = np.sqrt(epistemic**2 + 0.2**2)
    y = mean + std * rng.normal(size=mean.shape)
    both = RegressionPredictions(mean, std / 2), RegressionPredictions(mean, std, epistemic)
    return dict(zip(names, both[-len(names) :], strict=True)), y, x


@pytest.fixture(scope="session", autouse=True)
def fewer_resamples():
    """Resample less often: programs that XLA does not optimise are slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "NUM_RESAMPLES", 100)
        yield


@pytest.fixture(scope="session")
def classified(tmp_path_factory):
    """Return predictions, labels and the report, with everything that a report can have."""
    predictions, y, shifted_labels = classifiers()
    card = PosteriorCard(
        {"structure": "full", "<script>": "<b>bold</b>"},
        ("parameter", "prior precision"),
        (("dense.kernel", "2.5"), ("dense.bias", "1")),
        ("the mode is not the mode",),
    )
    directory = tmp_path_factory.mktemp("reports") / "new" / "digits"
    written = report.classification_report(
        predictions,
        y,
        directory,
        shifted_labels=shifted_labels,
        x=images(),
        title="Three <classes> & more",
        card=card,
    )
    return predictions, y, written


@pytest.fixture(scope="session")
def regressed(tmp_path_factory):
    """Return predictions, targets and the report of a regression over one input."""
    predictions, y, x = regressors()
    directory = tmp_path_factory.mktemp("sine")
    return predictions, y, report.regression_report(predictions, y, directory, x=x)


@pytest.fixture(scope="session")
def lonely(tmp_path_factory):
    """Return the report of a single predictor, of two outputs."""
    predictions, y, x = regressors(2, ("ensemble-5",))
    return report.regression_report(predictions, y, tmp_path_factory.mktemp("one"), x=x)


@pytest.fixture(scope="session")
def decided(tmp_path_factory):
    """Return a report on two classes with names, features and costs."""
    rng = np.random.default_rng(0)
    p = rng.beta(0.8, 2.0, NUM)
    probs, y = np.stack([1 - p, p], axis=1), (rng.uniform(size=NUM) < p).astype(int)
    return report.classification_report(
        {"map": ClassPredictions(sharpened(probs, 2.0)), "laplace": ClassPredictions(probs)},
        y,
        tmp_path_factory.mktemp("decided"),
        x=rng.normal(size=(NUM, 4)),
        class_names=["benign", "malignant"],
        feature_names=["radius", "texture", "area", "age"],
        costs=(1.0, 8.0),
        data_name="a sample",
        date="2031-02-03",
        picture_format="svg",
    )


@pytest.fixture(scope="session")
def crowded(tmp_path_factory):
    """Return a report on more classes than can be shown, with long names."""
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.normal(size=(NUM, 30))
    y = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    probs = np.exp(3.0 * logits)
    return report.classification_report(
        {"map": ClassPredictions(probs / probs.sum(axis=1, keepdims=True))},
        y,
        tmp_path_factory.mktemp("crowded"),
        class_names=[f"class number {k} $ {LONG}"[: 30 + 2 * k] for k in range(30)],
    )


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """Return a report in which every word is too long."""
    predictions, y, shifted_labels = classifiers(
        ("map", LONG + "1", LONG + "2"), "s" * 60, "o" * 60
    )
    card = PosteriorCard(
        {"w" * 90: "v" * 200}, ("parameter",) * 3, (("layers." * 20,) * 3,), ("z" * 200,)
    )
    return report.classification_report(
        predictions,
        y,
        tmp_path_factory.mktemp("hostile"),
        shifted_labels=shifted_labels,
        x={"long" * 20: np.random.default_rng(0).normal(size=(NUM, 7)) * 1e9},
        title="T" * 150,
        card=card,
    )
