"""The sections of a report: plots of every predictor, rendered to PNG, with captions.

Predictors and sets go by their names. Captions quote measured values; nothing here measures.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import ArrayLike, Float, Num

from laplace_kit.eval import plots
from laplace_kit.eval.summary import METRICS, Values, display_name, number

if TYPE_CHECKING:
    import matplotlib.figure

TEST = "test set"
_WIDTH, _DPI = 4.6, 160


@dataclass(frozen=True)
class Picture:
    """A figure as a PNG, with the name of its file and a caption that can stand in for it."""

    file: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as an address that holds it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """Pictures of one kind and how to read them."""

    title: str
    note: str
    pictures: tuple[Picture, ...]


# --- classification ----------------------------------------------------------------------------


def reliability(
    probs: Mapping[str, Mapping[str, Float[ArrayLike, "_ C"]]],
    labels: Mapping[str, ArrayLike],
    measured: Mapping[str, Values],
) -> Section:
    """Draw a reliability diagram with the counts of its bins for each set and predictor."""
    pictures = []
    for where, by_name in probs.items():
        for name, of_name in by_name.items():
            figure = _figure(4.8)
            upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
            plots.reliability_diagram(upper, of_name, labels[where]).set_xlabel("")
            plots.bin_counts(lower, of_name, labels[where])
            caption = _caption(name, where, "ece", measured[where])
            pictures.append(_picture(_file("reliability", name, where), caption, figure))
    note = (
        "How often predictions of each confidence are right. Bars that reach the dashed line are "
        "calibrated; where they stay below it the predictor claims too much. The lower panel "
        "counts the predictions behind each bar: few of them make a noisy bar."
    )
    return Section("Reliability", note, tuple(pictures))


def confidence(
    probs: Mapping[str, Float[ArrayLike, "N C"]], y: ArrayLike, measured: Values
) -> Section:
    """Draw the confidence of right and of wrong test predictions for each predictor."""
    pictures = []
    for name, of_name in probs.items():
        figure = _figure(3.2)
        plots.confidence_histogram(figure.subplots(), of_name, y)
        caption = _caption(name, TEST, "accuracy", measured)
        pictures.append(_picture(_file("confidence", name), caption, figure))
    note = (
        "Confidence of the right and of the wrong predictions, each as shares of its own number. "
        "Errors made with high confidence are the costly ones."
    )
    return Section("Confidence, right and wrong", note, tuple(pictures))


def scores(
    in_scores: Mapping[str, Float[ArrayLike, " N"]],
    out_scores: Mapping[str, Mapping[str, Float[ArrayLike, " _"]]],
    measured: Mapping[str, Values],
) -> Section:
    """Draw out-of-distribution scores against those of the test set for each set and predictor."""
    pictures = []
    for where, by_name in out_scores.items():
        for name, of_name in by_name.items():
            figure = _figure(3.2)
            ax = plots.score_histograms(figure.subplots(), in_scores[name], of_name)
            ax.set_xlabel("1 − largest probability")
            caption = _caption(name, where, "auroc", measured[where])
            pictures.append(_picture(_file("ood", name, where), caption, figure))
    note = (
        "One minus the largest probability, on the test set and on inputs of another kind. The "
        "less the two overlap, the better such inputs are told apart (AUROC 1: always; 0.5: never)."
    )
    return Section("Out of distribution", note, tuple(pictures))


# --- regression --------------------------------------------------------------------------------


def bands(
    x: Num[ArrayLike, " N"],
    mean: Mapping[str, Float[ArrayLike, " N"]],
    std: Mapping[str, Float[ArrayLike, " N"]],
    epistemic_std: Mapping[str, Float[ArrayLike, " N"] | None],
    y: Num[ArrayLike, " N"],
    measured: Values,
) -> Section:
    """Draw the predictive band over one input, with the observations, for each predictor."""
    pictures = []
    for name in mean:
        figure = _figure(3.6)
        plots.predictive_band(
            figure.subplots(),
            x,
            mean[name],
            std[name],
            epistemic_std[name],
            x_observed=x,
            y_observed=y,
        )
        caption = _caption(name, TEST, "coverage_90", measured)
        pictures.append(_picture(_file("band", name), caption, figure))
    note = "Predictive mean and central 90% interval, with the observations of the test set."
    return Section("Predictive band", note, tuple(pictures))


def predicted(
    mean: Mapping[str, Float[ArrayLike, " N"]],
    std: Mapping[str, Float[ArrayLike, " N"]],
    y: Num[ArrayLike, " N"],
    measured: Values,
) -> Section:
    """Draw predictions with their intervals against observations for each predictor."""
    pictures = []
    for name in mean:
        figure = _figure(4.2)
        plots.predicted_against_observed(figure.subplots(), mean[name], std[name], y)
        caption = _caption(name, TEST, "rmse", measured)
        pictures.append(_picture(_file("predicted", name), caption, figure))
    note = "Of a calibrated predictor's 90% intervals nine in ten cross the dashed line."
    return Section("Predicted against observed", note, tuple(pictures))


def coverage(
    mean: Mapping[str, Float[ArrayLike, " N"]],
    std: Mapping[str, Float[ArrayLike, " N"]],
    y: Num[ArrayLike, " N"],
) -> Section:
    """Draw the coverage curves of all predictors together."""
    figure = _figure(4.2)
    ax = figure.subplots()
    for series, name in enumerate(mean):
        label = display_name(name)
        plots.coverage_curve(ax, mean[name], std[name], y, label=label, series=series)
    caption = f"{' and '.join(map(display_name, mean))}, {TEST}"
    note = (
        "Share of the observations inside the central intervals of each nominal level. Below the "
        "dashed line the intervals are too narrow, above it too wide."
    )
    return Section("Coverage", note, (_picture("coverage.png", caption, figure),))


# --- rendering ---------------------------------------------------------------------------------


def _figure(height: float) -> "matplotlib.figure.Figure":
    """Return an empty figure of a height in inches that no global state knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def _picture(file: str, caption: str, figure: "matplotlib.figure.Figure") -> Picture:
    """Render; without the name of the software in it, the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return Picture(file, caption, buffer.getvalue())


def _file(kind: str, name: str, where: str = TEST) -> str:
    """Name a plot; no predictor or set has an @ in its name."""
    return f"{kind}_{name}.png" if where == TEST else f"{kind}_{name}@{where}.png"


def _caption(name: str, where: str, key: str, values: Values) -> str:
    return f"{display_name(name)}, {where}: {METRICS[key].label} {number(values[name][key])}"
